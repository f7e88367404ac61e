import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import (
    Cast,
    Float8,
    MagnitudePruning,
    Quantization,
    SemiStructuredPruning,
    StructuredPruning,
)
from hf_fingerprint.errors import FingerprintError


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(8, 4, 3, 3),
        "linear.weight": torch.randn(16, 10) * torch.logspace(-3, 0, 16)[:, None],
        "half.weight": torch.randn(6, 6).half(),
        "bias": torch.randn(16),
        "count": torch.tensor(7),
        "table": torch.arange(12).reshape(3, 4),
        "zero.weight": torch.zeros(3, 3),
    }


ATTACKS = [
    MagnitudePruning(0.5),
    MagnitudePruning(0.5, "global"),
    StructuredPruning(0.5),
    SemiStructuredPruning(),
    Quantization(8),
    Quantization(4, by_channel=True),
    Float8("e4m3"),
    Float8("e5m2"),
    Cast("bfloat16"),
    Cast("float16"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_leaves_its_input_and_what_is_no_weight_alone(state, attack):
    before = {name: tensor.clone() for name, tensor in state.items()}

    after = attack(state)

    assert all(torch.equal(before[name], state[name]) for name in state)
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in state.items()}
    assert torch.equal(after["count"], state["count"])
    assert torch.equal(after["table"], state["table"])
    assert not torch.equal(after["linear.weight"].float(), state["linear.weight"])
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_shares_no_memory_with_its_input(state, attack):
    after = attack(state)

    assert all(after[name].data_ptr() != tensor.data_ptr() for name, tensor in state.items())


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_passes_over_empty_tensors(attack):
    after = attack({"none.weight": torch.zeros(0, 4), "thin.weight": torch.zeros(4, 0), "w": torch.ones(2, 2)})

    assert {name: tuple(tensor.shape) for name, tensor in after.items()} == {
        "none.weight": (0, 4),
        "thin.weight": (4, 0),
        "w": (2, 2),
    }


@pytest.mark.parametrize("attack", ATTACKS[:-2], ids=repr)
def test_compression_keeps_precision_and_vectors(state, attack):
    after = attack(state)

    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in state.items()}
    assert torch.equal(after["bias"], state["bias"])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizing_rounds_to_the_nearest_of_a_symmetric_grid(state, bits):
    old, new = state["conv.weight"], Quantization(bits)(state)["conv.weight"]

    scale = old.abs().max() / (2 ** (bits - 1) - 1)
    levels = new / scale
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert len(new.unique()) <= 2**bits - 1
    assert (new - old).abs().max() <= scale / 2 * 1.001
    assert new.abs().max() == pytest.approx(float(old.abs().max()), rel=1e-5)


def test_a_scale_for_each_channel_is_finer_where_channels_are_small(state):
    old = state["linear.weight"]
    errors = [
        (Quantization(8, by)(state)["linear.weight"] - old).norm(dim=1) / old.norm(dim=1) for by in (False, True)
    ]

    assert errors[1].max() < 0.01 < errors[0].max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_casting_changes_the_precision_of_all_floats(state, dtype):
    after = Cast(dtype)(state)

    kinds = {n: t.dtype for n, t in after.items()}
    assert kinds.pop("count") == kinds.pop("table") == torch.int64
    assert set(kinds.values()) == {getattr(torch, dtype)}
    assert torch.equal(after["bias"], state["bias"].to(getattr(torch, dtype)))


@given(st.integers(2, 8), st.booleans(), st.integers(0, 1000))
def test_quantizing_twice_is_quantizing_once(bits, by_channel, seed):
    weights = {"w": torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))}
    attack = Quantization(bits, by_channel)

    once = attack(weights)

    assert torch.allclose(attack(once)["w"], once["w"], atol=1e-6)


def test_attacks_show_their_strength():
    assert repr(MagnitudePruning(0.5)) == "MagnitudePruning(sparsity=0.5, scope='tensor')"
    assert repr(Quantization()) == "Quantization(bits=8, by_channel=False)"
    assert repr(Cast()) == "Cast(dtype='bfloat16')"


@pytest.mark.parametrize(("format", "fraction"), [("e4m3", 3), ("e5m2", 2)])
def test_eight_bit_floats_keep_as_many_bits_as_their_fraction_has(state, format, fraction):
    old, new = state["linear.weight"], Float8(format)(state)["linear.weight"]

    peak = old.abs().amax(1, keepdim=True)
    normal = old.abs() > peak / 1000
    assert ((new - old).abs() / old.abs())[normal].max() <= 2.0 ** -(fraction + 1) * 1.001
    assert torch.allclose(new.abs().amax(1, keepdim=True), peak, rtol=1e-5)
    assert all(len(row.abs().unique()) <= 128 for row in new)


@pytest.mark.parametrize(
    "wrong", [lambda: Quantization(1), lambda: Float8("e3m4"), lambda: Cast("int8")({}), lambda: Cast("load")({})]
)
def test_what_is_no_precision_is_an_error(wrong):
    with pytest.raises(FingerprintError, match="choose"):
        wrong()


def test_fewer_bits_are_farther_off(state):
    errors = [(attack(state)["conv.weight"] - state["conv.weight"]).norm() for attack in Quantization().sweep()]

    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 50
