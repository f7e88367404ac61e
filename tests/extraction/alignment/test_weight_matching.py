import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.extraction.alignment import weight_matching
from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.duplicate_units import find_duplicate_units
from hf_fingerprint.extraction.alignment.weight_matching import (
    ScaledPermutation,
    assign,
    fit_scaled_permutation,
    match_weights,
    match_weights_given_orders,
)


def made(seed: int, rows: int, columns: int, kernel: int, drift: float, flips: bool):
    """Weights, what an attacker made of them without changing the function, and what both do."""
    rng = np.random.default_rng(seed)
    ours = rng.standard_normal((rows, columns, kernel)).astype(np.float32)
    row_order, column_order = rng.permutation(rows), rng.permutation(columns)
    row_scale, column_scale = (
        np.exp(rng.uniform(-1, 1, n)) * (rng.choice([-1, 1], n) if flips else 1) for n in (rows, columns)
    )
    drifted = ours + drift * rng.standard_normal(ours.shape)
    theirs = (drifted * row_scale[:, None, None] / column_scale[:, None])[row_order][:, column_order]
    inputs = rng.standard_normal((columns, 200)).astype(np.float32)
    outputs = rng.standard_normal((rows, 200)).astype(np.float32)
    seen = (
        Activations(inputs, outputs),
        Activations((inputs * column_scale[:, None])[column_order], (outputs * row_scale[:, None])[row_order]),
    )
    return ours, drifted, theirs.astype(np.float32), seen


@pytest.mark.parametrize("drift", [0.0, 0.1, 0.4])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(16, 40), st.integers(16, 40), st.sampled_from([1, 9]), st.booleans())
def test_permuted_and_rescaled_weights_are_aligned(drift, seed, rows, columns, kernel, flips):
    ours, drifted, theirs, seen = made(seed, rows, columns, kernel, drift, flips)

    back = match_weights(ours, theirs, seen)(theirs)

    error, whole = np.linalg.norm(back - drifted), np.linalg.norm(ours)
    assert error / whole < 1e-4 + 2 * drift * np.sqrt((1 / rows + 1 / columns) / kernel)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_without_activations_one_side_that_stayed_gives_the_other(seed, move_rows):
    rng = np.random.default_rng(seed)
    ours = rng.standard_normal((24, 32, 1)).astype(np.float32)
    theirs = ours[rng.permutation(24)] if move_rows else ours[:, rng.permutation(32)]

    assert match_weights(ours, theirs, None)(theirs) == pytest.approx(ours, abs=1e-4)


def test_pruned_weights_stay_exactly_0_and_do_not_spoil_the_factors():
    ours, drifted, theirs, seen = made(1, 30, 30, 1, 0.0, False)
    theirs[np.abs(theirs) < np.median(np.abs(theirs))] = 0

    back = match_weights(ours, theirs, seen)(theirs)

    assert (back == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert back[back != 0] == pytest.approx(drifted[back != 0], rel=1e-3)


def test_a_suspect_with_more_channels_gives_those_that_are_the_bases():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((20, 16, 1)).astype(np.float32)
    larger = np.concatenate([rng.standard_normal((5, 16, 1)).astype(np.float32), ours[::-1]])

    assert match_weights(ours, larger, None)(larger) == pytest.approx(ours, abs=1e-4)


def test_the_assignment_is_one_to_one_and_the_best():
    similarity = np.array([[0.9, 0.8, 0.1], [0.95, 0.1, 0.2]])

    assert assign(similarity).tolist() == [1, 0]
    assert assign(np.eye(3)[[2, 0, 1]]).tolist() == [2, 0, 1]


def test_a_rearrangement_leaves_what_it_is_given_alone():
    theirs = np.ones((2, 3, 1), np.float32)
    rearrangement = ScaledPermutation(
        np.array([1, 0]), np.array([2, 1, 0]), np.array([2.0, 3.0]), np.array([1.0, 1.0, 5.0])
    )

    assert rearrangement(theirs)[:, :, 0].tolist() == [[2, 2, 10], [3, 3, 15]]
    assert (theirs == 1).all()


def test_an_order_that_another_layer_stands_in_gives_the_other_side():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((24, 32, 1)).astype(np.float32)
    rows, columns = rng.permutation(24), rng.permutation(32)
    theirs = ours[rows][:, columns]

    lost = match_weights_given_orders(ours, theirs, [np.arange(24)], [np.arange(32)])
    found = match_weights_given_orders(ours, theirs, [np.arange(24)], [rng.permutation(32), np.argsort(columns)])

    assert np.abs(lost(theirs) - ours).max() > 0.5
    assert found(theirs) == pytest.approx(ours)


@pytest.mark.parametrize("scaled", ["nothing", "rows", "columns", "both"])
def test_factors_are_fitted_where_something_was_rescaled_and_only_there(scaled):
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((30, 40, 1)).astype(np.float32)
    drifted = ours + 0.3 * rng.standard_normal(ours.shape)
    row, column = (
        np.exp(rng.uniform(-1, 1, n)) if scaled in (name, "both") else np.ones(n)
        for name, n in (("rows", 30), ("columns", 40))
    )
    theirs = (drifted / row[:, None, None] / column[:, None]).astype(np.float32)

    found = fit_scaled_permutation(ours, theirs, np.arange(30), np.arange(40))

    assert (found.row_factors == 1).all() == (scaled in ("nothing", "columns"))
    assert (found.column_factors == 1).all() == (scaled in ("nothing", "rows"))
    assert np.linalg.norm(found(theirs) - drifted) < 0.12 * np.linalg.norm(drifted)


def test_split_channels_are_added_up_where_the_order_of_the_rows_is_known():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((20, 24, 1)).astype(np.float32)
    noise = rng.standard_normal(ours.shape).astype(np.float32)
    inputs = rng.standard_normal((24, 100))
    order = rng.permutation(48)
    theirs = np.concatenate([0.4 * ours + noise, 0.6 * ours - noise], 1)[:, order]

    merged = find_duplicate_units(np.tile(inputs, (2, 1))[order])
    found = match_weights_given_orders(ours, theirs, [np.arange(20)], [np.arange(24)], merged)

    assert found(theirs) == pytest.approx(ours, abs=1e-4)
    plain = match_weights_given_orders(ours, theirs, [np.arange(20)], [np.arange(24)])
    assert np.square(plain(theirs) - ours).mean() > 0.1


def test_orders_may_be_of_channels_that_were_split():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((20, 24, 1)).astype(np.float32)
    noise = rng.standard_normal(ours.shape).astype(np.float32)
    theirs = np.concatenate([0.4 * ours + noise, 0.6 * ours - noise], 1)
    merged = find_duplicate_units(np.tile(rng.standard_normal((24, 100)), (2, 1)))

    found = fit_scaled_permutation(ours, theirs, np.arange(20), np.arange(24), merged)

    assert found(theirs) == pytest.approx(ours, abs=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_channel_that_is_another_altogether_brings_no_factors(axis):
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((30, 40, 1)).astype(np.float32)
    np.moveaxis(ours, axis, 0)[3] *= 1e-3
    theirs = ours + 0.1 * rng.standard_normal(ours.shape).astype(np.float32)
    np.moveaxis(theirs, axis, 0)[3] = 5

    found = fit_scaled_permutation(ours, theirs, np.arange(30), np.arange(40))

    assert (found.row_factors == 1).all() and (found.column_factors == 1).all()


def test_no_assignment_is_made_for_large_tensors_that_have_nothing_in_common(monkeypatch):
    ours, _, theirs, seen = made(0, 60, 60, 1, 0.1, True)
    rng = np.random.default_rng(1)
    other = [rng.standard_normal(a.shape).astype(np.float32) for a in (theirs, seen[1].inputs, seen[1].outputs)]
    monkeypatch.setattr(weight_matching, "LARGE_TENSOR", 0)
    monkeypatch.setattr(weight_matching, "CHANCE_DEVIATIONS", 10.0)

    back = match_weights(ours, theirs, seen)(theirs)
    assert np.vdot(back, ours) > 0.95 * np.linalg.norm(back) * np.linalg.norm(ours)

    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", lambda costs: pytest.fail("assigned"))
    match_weights(ours, other[0], (seen[0], Activations(*other[1:])))
