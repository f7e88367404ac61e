import pytest
import timm
import torch

from hf_fingerprint.attacks import ChannelPermutation, HeadPermutation, RowRescaling, StreamPermutation
from hf_fingerprint.attacks.symmetries import hidden_channels


def off_the_start(name):
    """A model whose normalizations have statistics and whose last ones in a block aren't 0."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand_like(tensor) + (0.5 if key.endswith("running_var") else 0.0))
    return model.eval()


MODELS = {name: off_the_start(name) for name in ("test_vit", "test_resnet", "test_efficientnet")}
HEADS = MODELS["test_vit"].blocks[0].attn.num_heads
NORM_EPS = {"test_resnet": 1e-5, "test_efficientnet": 1e-5}
CASES = [
    *[(name, ChannelPermutation()) for name in MODELS],
    *[(name, ChannelPermutation(strength=0.3, seed=4)) for name in MODELS],
    *[(name, RowRescaling(flip=flip, eps=eps)) for name, eps in NORM_EPS.items() for flip in (False, True)],
    ("test_vit", HeadPermutation(HEADS)),
    ("test_vit", StreamPermutation()),
]


def outputs(name, state=None):
    model = MODELS[name]
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(state or kept)
        with torch.no_grad():
            return model(
                torch.randn(4, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
            )
    finally:
        model.load_state_dict(kept)


@pytest.mark.parametrize(("name", "attack"), CASES, ids=str)
def test_the_function_stays_and_the_weights_do_not(name, attack):
    state = {key: tensor.clone() for key, tensor in MODELS[name].state_dict().items()}
    before = {key: tensor.clone() for key, tensor in state.items()}

    after = attack(state)

    assert outputs(name, after) == pytest.approx(outputs(name), rel=1e-3, abs=1e-4)
    assert all(torch.equal(state[key], before[key]) for key in before)
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert len(changed) >= 4
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", MODELS)
def test_strength_is_the_share_of_channels_that_may_move(name):
    state = MODELS[name].state_dict()
    channels = next(hidden_channels(state))
    weight = channels.rows[0]

    after = ChannelPermutation(strength=0.5)(state)

    moved = sum(not torch.equal(a, b) for a, b in zip(after[weight], state[weight], strict=True))
    assert 0 < moved <= round(0.5 * channels.count)
    assert all(
        torch.equal(a, b) for a, b in zip(ChannelPermutation(strength=0)(state).values(), state.values(), strict=True)
    )


def test_another_seed_is_another_order():
    state = MODELS["test_vit"].state_dict()
    one, two = ChannelPermutation(seed=1)(state), ChannelPermutation(seed=2)(state)

    assert any(not torch.equal(one[name], two[name]) for name in state)
