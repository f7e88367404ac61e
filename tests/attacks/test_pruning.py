import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import ChannelRemoval, MagnitudePruning, SemiStructuredPruning, StructuredPruning
from hf_fingerprint.attacks.symmetries import hidden_channels
from hf_fingerprint.errors import FingerprintError


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(8, 4, 3, 3),
        "linear.weight": 0.1 * torch.randn(16, 10),
        "half.weight": torch.randn(6, 6).half(),
        "bias": torch.randn(16),
    }


WEIGHTS = ("conv.weight", "linear.weight", "half.weight")


@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.9, 1])
def test_pruning_zeroes_the_smallest_share_of_each_tensor(state, sparsity):
    after = MagnitudePruning(sparsity)(state)

    for name in WEIGHTS:
        old, new = state[name].flatten(), after[name].flatten()
        kept = new != 0
        assert (~kept).sum() == round(sparsity * old.numel())
        assert torch.equal(new[kept], old[kept])
        if 0 < sparsity < 1:
            assert old[~kept].abs().max() <= old[kept].abs().min()


@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.9, 1])
def test_global_pruning_zeroes_the_smallest_weights_of_all(state, sparsity):
    after = MagnitudePruning(sparsity, "global")(state)

    old, new = (torch.cat([found[name].flatten().float() for name in WEIGHTS]) for found in (state, after))
    kept = new != 0
    assert (~kept).sum() == round(sparsity * len(old))
    assert torch.equal(new[kept], old[kept])
    if 0 < sparsity < 1:
        assert old[~kept].abs().max() <= old[kept].abs().min()
        zeros = [(after[name] == 0).double().mean() for name in WEIGHTS]
        assert zeros[1] > zeros[0]


@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 1])
def test_structured_pruning_zeroes_the_weakest_rows_whole(state, sparsity):
    after = StructuredPruning(sparsity)(state)

    for name in WEIGHTS:
        gone = (after[name].flatten(1) == 0).all(1)
        assert gone.sum() == round(sparsity * len(state[name]))
        assert torch.equal(after[name][~gone], state[name][~gone])
        sizes = state[name].flatten(1).float().abs().sum(1)
        if 0 < sparsity < 1:
            assert sizes[gone].max() <= sizes[~gone].min()


@given(st.integers(1, 5), st.integers(1, 13), st.integers(0, 999))
def test_two_of_every_four_weights_go_and_they_are_the_smallest(rows, columns, seed):
    old = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))

    new = SemiStructuredPruning()({"w": old})["w"]

    whole = columns // 4 * 4
    fours, before = new[:, :whole].reshape(-1, 4), old[:, :whole].reshape(-1, 4)
    assert ((fours == 0).sum(1) == 2).all()
    assert torch.equal(fours.abs().sort(1).values[:, 2:], before.abs().sort(1).values[:, 2:])
    assert torch.equal(new[:, whole:], old[:, whole:])


def test_a_share_of_the_tensors_is_the_largest_of_them(state):
    after = SemiStructuredPruning(1 / 3)(state)

    assert [name for name in state if not torch.equal(after[name], state[name])] == ["conv.weight"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MagnitudePruning(1.5),
        lambda: MagnitudePruning(-0.1),
        lambda: MagnitudePruning(0.5, "rows"),
        lambda: StructuredPruning(2),
        lambda: ChannelRemoval(1.5),
        lambda: SemiStructuredPruning(-1),
    ],
)
def test_a_share_lies_between_none_and_all(wrong):
    with pytest.raises(FingerprintError, match="choose"):
        wrong()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_vit"])
def test_the_weakest_hidden_channels_are_removed_from_all_layers_that_have_them(architecture, share):
    torch.manual_seed(0)
    state = timm.create_model(architecture).state_dict()

    after = ChannelRemoval(share)(state)

    assert after.keys() == state.keys()
    for channels in hidden_channels(state):
        left = channels.count - min(round(share * channels.count), channels.count - 1)
        first = state[channels.rows[0]].flatten(1).norm(dim=1)
        assert {len(after[name]) for name in channels.rows} == {left}
        assert {after[name].shape[1] for name in channels.columns} == {left}
        if not any(channels.rows[0] in other.columns for other in hidden_channels(state)):
            sizes = after[channels.rows[0]].flatten(1).norm(dim=1)
            assert sizes.sort().values == pytest.approx(first.sort().values[-left:])


def test_a_model_without_known_hidden_layers_loses_no_channels(state):
    with pytest.raises(FingerprintError, match="no hidden layers"):
        ChannelRemoval(0.1)(state)
