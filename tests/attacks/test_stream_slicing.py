"""SliceGPT: what a sliced vision transformer computes, and what is left of its tensors."""

import pytest
import timm
import torch

from hf_fingerprint import FingerprintError
from hf_fingerprint.attacks import Attacker, FineTuning, StreamSlicing
from hf_fingerprint.attacks.training_loop import predict_logits
from tests.helpers.attackers import CNN, VIT, fresh, make_attacker, make_images


def with_uneven_norms(state):
    """The state with normalizations and layer scales that do something."""
    torch.manual_seed(0)
    return {
        name: tensor + 0.2 * torch.randn_like(tensor) if tensor.ndim == 1 else tensor for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def trained():
    """Weights that tell the classes apart."""
    return FineTuning(3e-3, steps=60)(with_uneven_norms(fresh(VIT)), make_attacker(VIT, 256, seed=0))


def agreement(state, other):
    """The share of held-out images on which both models decide alike."""
    images, _ = make_images(128, seed=2)
    one, two = (predict_logits(make_attacker(VIT).model(each), images, 64).argmax(-1) for each in (state, other))
    return float((one == two).double().mean())


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2"])
def test_with_all_directions_kept_the_function_stays_and_no_weight_does(architecture):
    images = torch.randn(2, 3, 32, 32)
    attacker = Attacker(
        lambda: timm.create_model(architecture, num_classes=4, img_size=32).eval(), images, torch.zeros(2)
    )
    state = with_uneven_norms(attacker.build().state_dict())

    sliced = StreamSlicing(0.0)(state, attacker)

    with torch.no_grad():
        assert attacker.model(sliced)(images) == pytest.approx(attacker.model(state)(images), abs=1e-4)
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "patch_embed.proj.weight"):
        assert (sliced[name] - state[name]).norm() > 0.5 * state[name].norm()
    assert not any("norm" in name or "gamma" in name for name in sliced)


def test_a_fifth_of_the_stream_costs_few_decisions(trained):
    sliced = StreamSlicing(0.2)(trained, make_attacker(VIT))

    assert sliced["blocks.2.attn.qkv.weight"].shape == (192, 51)
    assert sliced["blocks.2.attn.proj.weight"].shape == (51, 64)
    assert sliced["blocks.2.mlp_shortcut_Q"].shape == (51, 51)
    assert agreement(trained, sliced) >= 0.9


def test_a_sliced_model_can_be_trained_and_keeps_its_tensors(trained):
    attacker = make_attacker(VIT)
    sliced = StreamSlicing(0.5)(trained, attacker)

    after = FineTuning(1e-4, steps=3)(sliced, attacker)

    assert after.keys() == sliced.keys()
    assert not torch.equal(after["blocks.1.attn_shortcut_Q"], sliced["blocks.1.attn_shortcut_Q"])


def test_what_has_no_stream_of_that_kind_is_refused_in_a_sentence():
    with pytest.raises(FingerprintError, match="timm vision transformer"):
        StreamSlicing()(fresh(CNN), make_attacker(CNN))
    with pytest.raises(FingerprintError, match="no attention pooling"):
        StreamSlicing()(timm.create_model("test_vit3").state_dict(), make_attacker(VIT))
    with pytest.raises(FingerprintError, match="pass an Attacker"):
        StreamSlicing()(fresh(VIT))
