"""Attacks on weights and images on a GPU. Those that read values are left out: these tensors have none."""

import pytest
import timm
import torch

from hf_fingerprint.attacks import SUITE
from hf_fingerprint.attacks.attack import Attacker
from tests.helpers.fake_cuda import CUDA, Transfers, fake_cuda, fake_module


CPU = torch.device("cpu")
ON_VIT = {
    *("noise", "low-rank", "clip", "prune", "prune-rows", "prune-2-of-4", "prune-global", "int", "int-channel"),
    *("half", "bf16", "fp8", "reset", "reinitialize-end", "shuffle-channels", "shuffle-heads", "shuffle-stream"),
    *("dummy-zero", "dummy-cancelling", "dummy-split", "rotate-heads", "rotate-stream", "slice-stream"),
    *("delta-rank", "delta-trim", "delta-dare", "delta-della", "delta-blur", "delta-int", "delta-sign"),
    *("delta-ternary", "delta-noise", "delta-shrink", "delta-scale", "ancestor-weights"),
}
ON_RESNET = {"rescale-rows", "flip-rows", "fold-norms"}
MODELS = {"test_vit": ON_VIT, "test_resnet": ON_RESNET}


@pytest.fixture(scope="module")
def models():
    return {name: timm.create_model(name).eval() for name in MODELS}


def attack_on(model, name, place):
    """The devices of the attacked weights of a copy that is in this place, and what was computed on the CPU.

    The attacker's images are on CUDA.
    """
    weights = model.state_dict()
    with fake_cuda() as mode, torch.no_grad():
        state = {n: mode.from_tensor(tensor).to(place) for n, tensor in weights.items()}
        images, labels = torch.empty(8, 3, 160, 160, device=CUDA), torch.zeros(8, dtype=torch.int64, device=CUDA)
        attacker = Attacker(lambda: fake_module(model, mode), images, labels, base=state, ancestor=state)
        with Transfers() as transfers:
            attacked = SUITE[name].attacks[0](state, attacker)
        return {tensor.device for tensor in attacked.values()}, transfers.names


@pytest.mark.parametrize("place", [CUDA, CPU], ids=["weights on CUDA", "weights on the CPU"])
@pytest.mark.parametrize(("architecture", "name"), [(a, n) for a, names in MODELS.items() for n in sorted(names)])
def test_attacked_weights_are_where_the_copy_was(architecture, name, place, models):
    assert attack_on(models[architecture], name, place)[0] == {place}


@pytest.mark.parametrize("name", ["low-rank", "delta-rank", "delta-shrink", "slice-stream"])
def test_decompositions_are_computed_where_the_images_are(name, models):
    _, operations = attack_on(models["test_vit"], name, CPU)

    assert operations
    assert not [each for each in operations if "svd" in each or "eigh" in each]
