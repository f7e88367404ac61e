import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_fingerprint.extraction.pruning_mixture import PruningMixture, fit_pruning_mixture


WEIGHTS, SIZE = 20_000, 50.0  # of them, and their root mean square in amplitudes


def base(seed: int = 0) -> np.ndarray:
    return SIZE * np.random.default_rng(seed).standard_normal(WEIGHTS)


def pruned_and_trained(ours: np.ndarray, share: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """What the suspect differs by, and which of its weights were pruned: the smallest."""
    gone = np.abs(ours) < np.quantile(np.abs(ours), share)
    return np.where(gone, 0, ours) + spread * np.random.default_rng(1).standard_normal(WEIGHTS) - ours, gone


@pytest.mark.parametrize(("share", "spread"), [(0.3, 0.5), (0.3, 3), (0.9, 0.5), (0.9, 3), (0.9, 8), (0.99, 3)])
def test_share_and_spread_are_found(share, spread):
    ours = base()

    found = fit_pruning_mixture(ours, pruned_and_trained(ours, share, spread)[0])

    # small weights are alike whether pruned or not
    assert found.share == pytest.approx(share, abs=0.1)
    assert np.sqrt(found.variance) == pytest.approx(spread, rel=0.15)


def test_large_weights_are_classified():
    ours = base()
    difference, gone = pruned_and_trained(ours, 0.7, 4.0)
    found = fit_pruning_mixture(ours, difference)

    kept = found.probability_kept(ours, difference)

    large = np.abs(ours) > 8 * 4
    assert gone[large].any()
    assert np.mean((kept > 0.5) == ~gone, where=large) > 0.999


@pytest.mark.parametrize(
    "moved",
    [
        lambda w, rng: w,
        lambda w, rng: w + 10 * rng.standard_normal(WEIGHTS),
        lambda w, rng: w + SIZE * rng.standard_normal(WEIGHTS),
        lambda w, rng: SIZE * rng.standard_normal(WEIGHTS),
        lambda w, rng: np.clip(w, -0.5 * SIZE, 0.5 * SIZE),
        lambda w, rng: np.round(w / (0.5 * SIZE)) * 0.5 * SIZE,
        lambda w, rng: 0.4 * w + 0.5 * SIZE * rng.standard_normal(WEIGHTS),
    ],
    ids=["nothing", "drift", "noise", "another model", "clipping", "rounding", "low rank"],
)
def test_what_was_not_pruned_is_not_taken_for_it(moved):
    ours = base()
    theirs = moved(ours, np.random.default_rng(2))

    assert fit_pruning_mixture(ours[theirs != 0], (theirs - ours)[theirs != 0]) is None


def test_a_few_weights_near_zero_are_none():
    ours = base()
    difference = np.where(np.arange(WEIGHTS) % 100 == 0, -ours, 1.0)

    assert fit_pruning_mixture(ours, difference) is None


numbers = hnp.arrays(np.float32, 8, elements=st.floats(-(2.0**40), 2.0**40, width=32))


@given(numbers, numbers, st.floats(1e-6, 1 - 1e-6), st.floats(1e-6, 1e12))
def test_probabilities_are_probabilities_whatever_the_weights(ours, difference, share, variance):
    kept = PruningMixture(share, variance).probability_kept(ours, difference)

    assert kept.dtype == np.float32
    assert ((kept >= 0) & (kept <= 1)).all()


def test_halfway_between_the_share_decides():
    assert PruningMixture(0.3, 1.0).probability_kept(np.array([4.0]), np.array([-2.0])) == pytest.approx(0.7)
