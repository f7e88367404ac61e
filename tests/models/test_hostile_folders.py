"""No folder decides what runs: each kind of hostile folder is refused, or built without its hostile entries."""

import os
from types import SimpleNamespace

import pytest
import torch

from hf_fingerprint.errors import BuildError, FingerprintError
from tests.helpers.hostile_folders import KINDS, Watch, write_hostile_folder
from tests.helpers.small_models import build, save_timm, save_vit


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models that hostile folders are made from, and what they give."""
    root = tmp_path_factory.mktemp("models")
    folders = {"timm": save_timm(root / "timm", img_size=32, num_classes=4), "vit": save_vit(root / "vit")}
    built = {form: build(folder) for form, folder in folders.items()}
    return SimpleNamespace(folders=folders, built=built)


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    return Watch(tmp_path_factory.getbasetemp())


@pytest.mark.filterwarnings("ignore:.*image processor that transformers")
@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_folder_runs_nothing(models, watch, tmp_path, name):
    kind = KINDS[name]
    folder = write_hostile_folder(kind, models.folders[kind.form], tmp_path / "model")
    built = refusal = None

    with watch.over(folder) as seen:
        try:
            built = build(folder)
        except FingerprintError as error:
            refusal = error

    assert seen == []
    assert (refusal is None) == kind.builds, refusal
    if built is None:
        assert isinstance(refusal, BuildError)
        assert len(str(refusal).splitlines()) == 1 and len(str(refusal)) < 500
    else:
        given = torch.zeros(1, *built.size)
        ours, plain = (getattr(out := m.module(given), "logits", out) for m in (built, models.built[kind.form]))
        assert torch.equal(ours, plain)


def test_there_are_enough_kinds():
    assert len(KINDS) >= 60


def test_the_watch_detects_what_it_watches_for(tmp_path):
    watch = Watch(tmp_path / "allowed")
    write_hostile_folder(KINDS["code"], save_vit(tmp_path / "vit"), tmp_path / "model")
    module = tmp_path / "model" / "modeling_evil.py"

    with watch.over(tmp_path / "model") as seen:
        with pytest.raises(RuntimeError):
            torch.load(tmp_path / "model" / "payload.pth", weights_only=False)
        exec(compile(module.read_text(), module, "exec"))
        (tmp_path / "elsewhere").write_text("x")
        os.close(os.open(tmp_path / "by the system", os.O_WRONLY | os.O_CREAT))
        (tmp_path / "model" / "inner" / "payload.pth").read_bytes()
        with pytest.raises(OSError):
            __import__("socket").create_connection(("127.0.0.1", 9), 1)

    observed = " ".join(seen)
    for what in ("os.system", "exec", "elsewhere", "by the system", "inner/payload.pth", "socket", "the payload ran"):
        assert what in observed
