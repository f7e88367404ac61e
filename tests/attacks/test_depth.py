"""Blocks that are dropped or inserted: what the model computes, and what is left of its tensors."""

import pytest
import timm
import torch

from hf_fingerprint import FingerprintError
from hf_fingerprint.attacks import Attacker, BlockInsertion, BlockRemoval
from hf_fingerprint.attacks.depth import fit_depth


@pytest.fixture(scope="module")
def attacker():
    torch.manual_seed(0)
    return Attacker(lambda: timm.create_model("test_vit", num_classes=4), torch.randn(4, 3, 160, 160), torch.arange(4))


@pytest.fixture(scope="module")
def state(attacker):
    """A model whose fourth block changes next to nothing."""
    torch.manual_seed(1)
    state = attacker.build().state_dict()
    for name in state:
        if name.startswith("blocks.3.") and any(part in name for part in ("proj", "fc2")):
            state[name] *= 1e-3
    return state


def outputs(attacker, state):
    with torch.no_grad():
        return attacker.model(state)(attacker.images)


def test_the_block_that_changes_least_is_dropped_and_the_others_are_numbered_anew(attacker, state):
    after = BlockRemoval(1 / 6)(state, attacker)

    assert not any(name.startswith("blocks.5.") for name in after)
    for old, new in ((2, 2), (4, 3), (5, 4)):
        assert torch.equal(after[f"blocks.{new}.mlp.fc1.weight"], state[f"blocks.{old}.mlp.fc1.weight"])
    assert outputs(attacker, after) == pytest.approx(outputs(attacker, state), abs=1e-2)


def test_inserted_blocks_change_nothing(attacker, state):
    after = BlockInsertion(0.5)(state)

    assert sum(name.endswith("fc1.weight") for name in after) == 9
    assert outputs(attacker, after) == pytest.approx(outputs(attacker, state), abs=1e-4)


def test_inserted_blocks_of_a_residual_network_change_nothing():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)

    after = BlockInsertion(0.5)(model.state_dict())

    deeper = fit_depth(timm.create_model("resnet18", num_classes=4), after)
    deeper.load_state_dict(after)
    with torch.no_grad():
        assert deeper.eval()(images) == pytest.approx(model(images), abs=1e-4)
    assert len(deeper.layer1) + len(deeper.layer2) + len(deeper.layer3) + len(deeper.layer4) == 12


def test_a_stage_of_one_block_is_left(attacker):
    model = timm.create_model("resnet18")
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("layer2.1.")}

    assert [len(getattr(fit_depth(model, state), f"layer{i}")) for i in (1, 2, 3, 4)] == [2, 1, 2, 2]


def test_a_model_without_a_stack_of_blocks_is_an_error():
    with pytest.raises(FingerprintError, match="no stack of blocks"):
        BlockInsertion()({"conv.weight": torch.ones(3, 3)})
    with pytest.raises(FingerprintError, match="between 0 and 1"):
        BlockInsertion(2.0)({"conv.weight": torch.ones(3, 3)})
