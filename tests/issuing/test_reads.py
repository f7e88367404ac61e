"""The first issue of a base reads its file once to analyze it and once to copy it; building the model adds one."""

import pytest

from hf_fingerprint import issue
from hf_fingerprint.checkpoints import Checkpoint
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, new_vault, save_plain, save_timm, save_vit


@pytest.mark.parametrize(
    ("save", "settings", "passes"),
    [(save_plain, PLAIN_SETTINGS, 2), (save_timm, SETTINGS, 3), (save_vit, SETTINGS, 3)],
    ids=["plain", "timm", "transformers"],
)
def test_passes_over_the_weights(save, settings, passes, tmp_path, monkeypatch):
    model, vault = save(tmp_path / "model"), new_vault(tmp_path / "vault")
    size = (model / "model.safetensors").stat().st_size
    counts = []
    read_file = Checkpoint.read_file

    def counting(self: Checkpoint, file: int, offset: int, buffer):
        counts.append(len(buffer))
        return read_file(self, file, offset, buffer)

    monkeypatch.setattr(Checkpoint, "read_file", counting)

    issue(model, "alice", vault, tmp_path / "alice", settings)
    assert (passes - 0.1) * size < sum(counts) <= passes * size

    counts.clear()
    issue(model, "bob", vault, tmp_path / "bob")
    assert sum(counts) <= size
