import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.attacks import STRATEGIES, collude


def states(*rows: list[float], dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    return [
        {"w": torch.tensor(row, dtype=dtype), "n": torch.tensor(i), "e": torch.zeros(0, 3)}
        for i, row in enumerate(rows)
    ]


EXPECTED = {
    "average": [2.0, 0.0, 5.0, -1 / 3],
    "minimum": [1.0, -1.0, 5.0, -1.0],
    "maximum": [3.0, 1.0, 5.0, 1.0],
    "median": [2.0, 0.0, 5.0, -1.0],
    "minority": [3.0, 1.0, 5.0, 1.0],
}


def test_there_is_an_example_of_every_strategy():
    assert STRATEGIES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_colluders_mix_weight_by_weight(strategy):
    mixed = collude(states([1, -1, 5, -1], [2, 0, 5, 1], [3, 1, 5, -1]), strategy)

    assert torch.allclose(mixed["w"], torch.tensor(EXPECTED[strategy]))


def test_averaging_is_what_colluders_do_first():
    assert torch.equal(collude(states([1], [2]))["w"], torch.tensor([1.5]))


def test_an_unknown_strategy_is_an_error():
    with pytest.raises(KeyError):
        collude(states([1], [2]), "magic")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_integers_and_empty_tensors_are_kept_and_inputs_left_alone(strategy, dtype):
    given_states = states([1, 2, 3], [3, 2, 1], dtype=dtype)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in given_states]

    mixed = collude(given_states, strategy)

    assert mixed["w"].dtype == dtype
    assert torch.equal(mixed["n"], torch.tensor(0))
    assert mixed["n"].data_ptr() != given_states[0]["n"].data_ptr()
    assert mixed["e"].shape == (0, 3)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(before, given_states, strict=True) for n in a)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_copy_alone_stays_as_it_is(strategy):
    assert torch.equal(collude(states([1, -2, 3]), strategy)["w"], torch.tensor([1.0, -2.0, 3.0]))


@pytest.mark.parametrize("lone", range(5))
def test_a_minority_of_one_wins(lone):
    rows = [[1.0] if i == lone else [-1.0] for i in range(5)]

    assert collude(states(*rows), "minority")["w"] == 1
    assert collude(states(*([-x for x in row] for row in rows)), "minority")["w"] == -1


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=6))
def test_what_is_mixed_lies_between_the_copies_and_forgets_their_order(rows):
    for strategy in STRATEGIES:
        mixed = collude(states(*rows), strategy)["w"]
        stacked = torch.tensor(rows)
        assert (mixed >= stacked.amin(0) - 1e-4).all()
        assert (mixed <= stacked.amax(0) + 1e-4).all()
        assert torch.allclose(collude(states(*rows[::-1]), strategy)["w"], mixed)
        if strategy not in {"average"}:
            assert ((mixed == stacked).any(0)).all()
