"""The mark is read from a truncated delta that was trained after it, whose own subspace is no longer known."""

import numpy as np
import pytest

from hf_fingerprint.extraction.truncated_delta import may_be_truncated, read_truncated
from tests.extraction.test_ancestor_delta import AMPLITUDE, COLUMNS, ROWS, Tuned, correlation, truncated


RANK = 12


def colored_drift(rng, size, directions=6):
    """Drift in the owner's leading directions and in some of its own, each less than the one before."""
    sides = rng.standard_normal((ROWS, directions)), rng.standard_normal((directions, COLUMNS))
    strong = (sides[0] * np.linspace(3, 0.3, directions)) @ sides[1]
    return AMPLITUDE * size * (strong + 0.3 * rng.standard_normal((ROWS, COLUMNS)))


def read(tuned, suspect):
    return read_truncated(suspect.astype(np.float32), tuned.owner, tuned.inverse, True)


def by_projection_alone(tuned, suspect):
    left, _, right = np.linalg.svd(tuned.owner, full_matrices=False)
    outside = suspect - tuned.owner
    for side in left[:, :RANK] @ left[:, :RANK].T, right[:RANK].T @ right[:RANK]:
        outside = outside - (side @ outside if len(side) == ROWS else outside @ side)
    return correlation(suspect - tuned.owner - outside, tuned.mark)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_training_after_a_truncation_hides_no_mark(size):
    tuned = Tuned()
    suspect = truncated(tuned.copy, RANK) + colored_drift(tuned.rng, size)
    assert may_be_truncated(suspect.astype(np.float32), tuned.owner, tuned.inverse)

    values, gains = read(tuned, suspect)

    projected = by_projection_alone(tuned, suspect)
    assert correlation(values * gains, tuned.mark) > max(3 * projected, 6 / np.sqrt(ROWS * COLUMNS))


def test_columns_without_drift_show_more():
    """As taps of a kernel that only ever see padding: nothing trains them."""
    tuned = Tuned()
    still = np.arange(COLUMNS) % 9 != 4
    drift = colored_drift(tuned.rng, 30) * np.where(still, 0.01, 1)
    values, gains = read(tuned, truncated(tuned.copy, RANK) + drift)

    assert np.square(gains[:, still]).mean() > 10 * np.square(gains[:, ~still]).mean()
    share = RANK / ROWS  # of all weights, that are in the left subspace
    assert correlation(values * gains, tuned.mark) > 0.7 * np.sqrt(share * still.mean())


@pytest.mark.parametrize("lessened", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [0, 1, 10])
def test_claims_are_what_is_read(size, lessened):
    """Claims that are too high in some tensors outweigh all others. Directions at the edge show more than claimed."""
    found = []
    for seed in range(4):
        tuned = Tuned(seed)
        values, gains = read(tuned, truncated(tuned.copy, RANK, lessened) + colored_drift(tuned.rng, size))
        assert np.vdot(values * gains, values * gains) == pytest.approx(np.vdot(gains, gains), rel=0.25)
        found.append((np.vdot(values * gains, tuned.mark), np.vdot(gains, gains)))
    shown, claimed = np.sum(found, 0)

    assert 0.7 * shown < claimed < 1.1 * shown


@pytest.mark.parametrize("size", [0, 1, 10])
@pytest.mark.parametrize("factor", [0.3, 0.5, 1.0])
def test_a_delta_that_lacks_no_direction_is_not_taken_for_a_truncated_one(factor, size):
    tuned = Tuned()
    suspect = factor * tuned.copy + colored_drift(tuned.rng, size)

    assert not may_be_truncated(suspect.astype(np.float32), tuned.owner, tuned.inverse)
    assert read(tuned, suspect) is None


def test_directions_as_small_as_the_mark_are_not_the_owners_alone():
    """The copy has others than the owner there: the mark's. What was kept of the owner's says nothing of it."""
    tuned = Tuned(deltas=1.0)
    mark = AMPLITUDE * (np.sqrt(ROWS) + np.sqrt(COLUMNS))
    assert np.linalg.svd(tuned.owner, compute_uv=False)[1] < 2 * mark
    suspect = truncated(tuned.copy, 60) + colored_drift(tuned.rng, 10)
    found = read(tuned, suspect)

    claimed = 0.0 if found is None else float(np.square(found[1]).sum())
    assert claimed < 0.1 * ROWS * COLUMNS


def test_an_unmarked_base_shows_no_mark():
    tuned = Tuned()
    values, _ = read(tuned, truncated(tuned.owner, RANK) + colored_drift(tuned.rng, 10))

    assert abs(correlation(values, tuned.mark)) < 4 / np.sqrt(ROWS * COLUMNS)
