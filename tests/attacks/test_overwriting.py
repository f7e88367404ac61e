import tempfile

import pytest
import torch

from hf_fingerprint import Issuer, trace
from hf_fingerprint.attacks import Overwriting, overwriting
from hf_fingerprint.carriers import select_from_model
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, VIT, changed, fresh, make_attacker, same
from tests.helpers.small_models import PLAIN_SETTINGS, save_plain, unlocked_vault


def moved(before, after, names):
    """How far the weights of some tensors went, in units of their rows' root mean squares."""
    parts = [
        (after[n] - before[n]).flatten(1) / before[n].flatten(1).square().mean(1, keepdim=True).sqrt() for n in names
    ]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(("architecture", "with_model"), [(CNN, True), (CNN, False), (VIT, True)])
def test_every_carrier_gets_a_mark_as_strong_as_said(architecture, with_model):
    state, attacker = fresh(architecture), make_attacker(architecture)

    after = Overwriting(0.01)(state, attacker if with_model else None)

    assert same(state, fresh(architecture))
    names = changed(state, after)
    if with_model:
        assert names == set(select_from_model(attacker.model(state), attacker.images[:1]))
    assert torch.allclose(moved(state, after, names).abs(), torch.tensor(0.01), rtol=1e-2)
    attacker.model(after)


def test_marks_add_up_and_are_new_each_time():
    state = fresh(CNN)

    thrice, once = Overwriting(0.01, 3)(state), Overwriting(0.01)(state)

    names = changed(state, thrice)
    assert float(moved(state, thrice, names).square().mean().sqrt()) == pytest.approx(0.01 * 3**0.5, rel=0.05)
    signs = [moved(state, after, names).sign() for after in (once, Overwriting(0.01)(state))]
    assert abs(float((signs[0] * signs[1]).mean())) < 0.05


def test_the_budget_may_be_spent_instead():
    state, attacker = fresh(CNN), make_attacker(CNN)

    after = Overwriting(None)(state, attacker)

    assert 0 < float(moved(state, after, changed(state, after)).abs().max()) < 0.064
    with pytest.raises(FingerprintError, match="pass an Attacker"):
        Overwriting(None)(state)


def test_nothing_is_left_behind_and_the_vault_alone_lay_in_a_private_folder(monkeypatch, tmp_path):
    state = fresh(CNN)  # timm imports what writes to the folder for temporary files
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen, real = [], overwriting.issue

    def noting(model, recipient, vault):
        marked, folder = real(model, recipient, vault), vault.folder.parent
        seen.append((folder.parent, folder.stat().st_mode & 0o777, [path.name for path in folder.iterdir()]))
        return marked

    monkeypatch.setattr(overwriting, "issue", noting)

    Overwriting(0.01, 2)(state)

    assert seen == [(tmp_path, 0o700, ["vault"])] * 2
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_marks():
    steps = []

    Overwriting(0.01, 2)(fresh(CNN), make_attacker(CNN, progress=lambda *step: steps.append(step)))

    assert len(steps) == 2


def test_a_mark_written_over_still_names_its_recipient(tmp_path):
    from safetensors.torch import load_file, save_file

    model, vault = save_plain(tmp_path / "model"), unlocked_vault(tmp_path / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = [issuer.issue(name, tmp_path / name).path for name in ("alice", "bob")]
    save_file(Overwriting(0.003, 2)(load_file(copies[0] / "model.safetensors")), tmp_path / "leak.safetensors")

    result = trace(tmp_path / "leak.safetensors", vault)

    assert [score.recipient for score in result.accused] == ["alice"]


def test_no_mark_at_all_is_refused():
    with pytest.raises(FingerprintError, match="choose 1 or more"):
        Overwriting(times=0)
