import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import STRATEGIES, Collusion, collude
from hf_fingerprint.attacks.mixing import block_of
from hf_fingerprint.errors import FingerprintError


def states(*rows: list[float], dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    return [
        {"w": torch.tensor(row, dtype=dtype), "n": torch.tensor(i), "e": torch.zeros(0, 3)}
        for i, row in enumerate(rows)
    ]


def layered(copies: int, layers: int = 60) -> list[dict[str, torch.Tensor]]:
    """Copies whose every weight says whose it is, but a head that they share."""
    return [
        {
            name: torch.full(shape, float(i))
            for layer in range(layers)
            for name, shape in (
                (f"blocks.{layer // 3}.fc{layer % 3}.weight", (2, 3)),
                (f"blocks.{layer // 3}.fc{layer % 3}.bias", (2,)),
            )
        }
        | {"head.weight": torch.ones(100, 100)}
        for i in range(copies)
    ]


SURE = {
    "average": [2.0, 0.0, 5.0, -1 / 3],
    "weighted average": [14 / 6, 2 / 6, 5.0, -2 / 6],
    "minimum": [1.0, -1.0, 5.0, -1.0],
    "maximum": [3.0, 1.0, 5.0, 1.0],
    "min-max": [2.0, 0.0, 5.0, 0.0],
    "median": [2.0, 0.0, 5.0, -1.0],
    "minority": [3.0, 1.0, 5.0, 1.0],
}
RANDOM = {"random pick", "random extreme", "layers", "blocks"}
ROWS = ([1, -1, 5, -1], [2, 0, 5, 1], [3, 1, 5, -1])


def test_every_strategy_is_tested_here():
    assert set(STRATEGIES) == {*SURE, *RANDOM, "slerp"}


@pytest.mark.parametrize("strategy", SURE)
def test_colluders_mix_weight_by_weight(strategy):
    assert torch.allclose(collude(states(*ROWS), strategy)["w"], torch.tensor(SURE[strategy]))


def test_averaging_is_what_colluders_do_first():
    assert torch.equal(collude(states([1], [2]))["w"], torch.tensor([1.5]))


def test_an_unknown_strategy_is_an_error():
    with pytest.raises(FingerprintError, match=r"minority.*got magic"):
        collude(states([1], [2]), "magic")


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, -0.5), (0.0, 0.0), (1.0, 1.0, 1.0)])
def test_weights_are_one_for_each_copy(weights):
    with pytest.raises(FingerprintError, match="weights"):
        Collusion("weighted average", weights)(states([1], [2]))


def test_what_takes_no_weights_says_so():
    with pytest.raises(FingerprintError, match="takes no weights: choose weighted average or slerp"):
        Collusion("minimum", (1.0, 2.0))


def test_copies_of_different_models_do_not_mix():
    with pytest.raises(FingerprintError, match="different tensors"):
        collude([{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with pytest.raises(FingerprintError, match="different shapes"):
        collude([{"a": torch.ones(1)}, {"a": torch.ones(2)}])
    with pytest.raises(FingerprintError, match="at least one"):
        collude([])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_integers_and_empty_tensors_are_kept_and_inputs_left_alone(strategy, dtype):
    given_states = states([1, 2, 3], [3, 2, 1], dtype=dtype)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in given_states]

    mixed = collude(given_states, strategy)

    assert mixed["w"].dtype == dtype
    assert mixed["n"] in (0, 1)
    assert not {t.data_ptr() for t in mixed.values() if t.numel()} & {
        t.data_ptr() for state in given_states for t in state.values()
    }
    assert mixed["e"].shape == (0, 3)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(before, given_states, strict=True) for n in a)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_copy_alone_is_unchanged(strategy):
    assert torch.equal(collude(states([1, -2, 3]), strategy)["w"], torch.tensor([1.0, -2.0, 3.0]))


@pytest.mark.parametrize("lone", range(5))
def test_a_minority_of_one_wins(lone):
    rows = [[1.0] if i == lone else [-1.0] for i in range(5)]

    assert collude(states(*rows), "minority")["w"] == 1
    assert collude(states(*([-x for x in row] for row in rows)), "minority")["w"] == -1


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=6))
def test_what_is_mixed_lies_between_the_copies_and_forgets_their_order(rows):
    for strategy in {*SURE, *RANDOM} - {"weighted average"}:
        mixed = collude(states(*rows), strategy)["w"]
        stacked = torch.tensor(rows)
        assert (mixed >= stacked.amin(0) - 1e-4).all()
        assert (mixed <= stacked.amax(0) + 1e-4).all()
        if strategy in SURE:
            assert torch.allclose(collude(states(*rows[::-1]), strategy)["w"], mixed)
        if strategy not in {"average", "min-max"}:
            assert (mixed == stacked).any(0).all()


@given(st.integers(2, 5), st.floats(0, 3), st.integers(0, 99))
def test_slerp_keeps_the_norm_of_copies_that_share_it(copies, spread, seed):
    torch.manual_seed(seed)
    center = torch.randn(200)
    rows = [torch.nn.functional.normalize(center + spread * torch.randn(200), dim=0) for _ in range(copies)]

    mixed = collude([{"w": row} for row in rows], "slerp")["w"]

    assert mixed.norm() == pytest.approx(1, rel=1e-4)


def test_slerp_goes_as_far_along_the_arc_as_the_weights_say():
    east, north = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}

    third = Collusion("slerp", (2.0, 1.0))([east, north])["w"]

    assert third.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], rel=1e-6)


def test_slerp_of_copies_that_hardly_differ_is_their_average():
    torch.manual_seed(0)
    base = torch.randn(1000)
    copies = [{"w": base + 0.003 * torch.randn(1000).sign()} for _ in range(4)]

    assert torch.allclose(collude(copies, "slerp")["w"], collude(copies)["w"], atol=2e-5)


@pytest.mark.parametrize("strategy", ["random pick", "random extreme", "layers", "blocks"])
def test_chance_is_seeded_and_fair(strategy):
    copies = layered(3)
    one, again, other = (Collusion(strategy, seed=seed)(copies) for seed in (1, 1, 2))

    flat = [torch.cat([t.flatten() for n, t in state.items() if n != "head.weight"]) for state in (one, again, other)]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    takers = {0, 2} if strategy == "random extreme" else {0, 1, 2}
    assert {int(value) for value in flat[0].unique()} == takers
    assert all(0.5 / len(takers) < (flat[0] == i).double().mean() < 1.6 / len(takers) for i in takers)


@pytest.mark.parametrize(("strategy", "part"), [("layers", 2), ("blocks", 1)])
def test_layers_and_blocks_come_whole_from_one_copy(strategy, part):
    mixed = collude(layered(3), strategy)

    contributors: dict[str, set[float]] = {}
    for name, tensor in mixed.items():
        if name != "head.weight":
            contributors.setdefault(".".join(name.split(".")[: part + 1]), set()).update(tensor.flatten().tolist())
    assert len(contributors) == {"layers": 60, "blocks": 20}[strategy]
    assert all(len(given) == 1 for given in contributors.values())


@pytest.mark.parametrize("strategy", ["layers", "blocks"])
def test_shares_count_the_weights_that_tell_copies_apart(strategy):
    copies = layered(3)
    collusion = Collusion(strategy, seed=5)

    mixed = collusion(copies)

    weights = torch.cat([tensor.flatten() for name, tensor in mixed.items() if ".fc" in name and tensor.ndim == 2])
    assert collusion.contributions(copies) == pytest.approx([float((weights == i).double().mean()) for i in range(3)])
    assert sum(collusion.contributions(copies)) == pytest.approx(1)


def test_shares_of_mixtures_are_their_weights():
    assert Collusion("median").contributions(states([1], [2])) == (0.5, 0.5)
    assert Collusion("weighted average", (3.0, 1.0)).contributions(states([1], [2])) == (0.75, 0.25)
    assert Collusion("layers").contributions(states([1], [1])) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.2.attn.qkv.weight", "blocks.2"),
        ("blocks.1.0.conv_pw.weight", "blocks.1.0"),
        ("stages.1.blocks.0.conv_dw.weight", "stages.1.blocks.0"),
        ("layers.0.blocks.1.mlp.fc1.bias", "layers.0.blocks.1"),
        ("vit.encoder.layer.11.output.dense.weight", "vit.encoder.layer.11"),
        ("layer1.0.bn1.weight", "layer1.0"),
        ("conv_stem.weight", "conv_stem"),
        ("cls_token", "cls_token"),
    ],
)
def test_blocks_are_found_by_the_numbers_in_names(name, block):
    assert block_of(name) == block
