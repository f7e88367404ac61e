import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_fingerprint.attacks import BatchNormFolding, DummyUnits
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.alignment.suspect_model import load_into_base_model
from hf_fingerprint.models import build_model, synthetic_images
from tests.helpers.small_models import save_timm


def run(folder, architecture, change):
    """What the base gives, and the same with a changed state in its architecture."""
    with open_checkpoint(save_timm(folder / "model", architecture, num_classes=10)) as original:
        ours = build_model(original)
    state = change({name: tensor.clone() for name, tensor in ours.module.state_dict().items()})
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "suspect.safetensors")
    images = synthetic_images(ours, 2)
    with open_checkpoint(folder / "suspect.safetensors") as suspect, torch.no_grad():
        theirs = load_into_base_model(ours, {}, suspect)
        return ours.module(images).numpy(), None if theirs is None else theirs.module(images).numpy()


@pytest.mark.parametrize("kind", ["zero", "cancelling", "split"])
@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_efficientnet"])
def test_other_widths_run_and_give_the_same(tmp_path, architecture, kind):
    before, after = run(tmp_path, architecture, DummyUnits(0.5, kind))

    assert after == pytest.approx(before, abs=1e-3)


def test_folded_normalizations_run_and_give_the_same(tmp_path):
    before, after = run(tmp_path, "resnet18", BatchNormFolding())

    assert after == pytest.approx(before, abs=1e-3)


def test_colors_are_added_up_for_a_gray_model(tmp_path):
    def gray(state):
        return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].sum(1, keepdim=True)}

    before, after = run(tmp_path, "test_vit", gray)

    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.8


def test_a_model_of_which_much_is_missing_is_not_run(tmp_path):
    _, after = run(tmp_path, "test_vit", lambda s: {n: t for n, t in s.items() if ".norm1." not in n})

    assert after is None


@pytest.mark.parametrize(("architecture", "last"), [("test_vit", "blocks.5."), ("resnet18", "layer2.1.")])
def test_a_model_without_a_block_runs_as_if_it_passed_its_input_on(tmp_path, architecture, last):
    def without_outputs(state):
        outputs = [f"{last}{part}" for part in ("attn.proj.", "mlp.fc2.", "bn2.weight", "bn2.bias")]
        return {n: torch.zeros_like(t) if any(n.startswith(o) for o in outputs) else t for n, t in state.items()}

    _, dropped = run(tmp_path, architecture, lambda s: {n: t for n, t in s.items() if not n.startswith(last)})
    _, passed = run(tmp_path, architecture, without_outputs)

    assert dropped == pytest.approx(passed, abs=1e-5)


def test_a_new_classifier_is_no_obstacle(tmp_path):
    width = timm.create_model("test_vit").num_features
    new = {"head.weight": torch.zeros(3, width), "head.bias": torch.ones(3)}

    _, other = run(tmp_path, "test_vit", lambda state: state | new)
    _, gone = run(tmp_path, "test_vit", lambda state: {n: t for n, t in state.items() if not n.startswith("head")})

    assert (other == np.ones((2, 3))).all()
    assert gone.shape == (2, 10)
