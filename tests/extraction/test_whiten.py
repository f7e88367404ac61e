"""Whitening divides out drift that lies in few directions and keeps the mark, by the share that it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.extraction.whiten import is_colored, whiten


def white(rng, rows, columns):
    """A mark: signs."""
    return np.where(rng.random((rows, columns)) < 0.5, -1, 1).astype(np.float32)


def low_rank(rng, rows, columns, rank, energy):
    found = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) * np.sqrt(energy / rank)
    return found.astype(np.float32)


def correlation(one, other):
    return float(np.vdot(one, other) / np.sqrt(np.vdot(one, one) * np.vdot(other, other)))


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (64, 96), (80, 80), (300, 9)])
def test_a_mark_alone_stays_and_the_gain_says_how_much_is_kept(rows, columns):
    mark = white(np.random.default_rng(0), rows, columns)

    found, gain = whiten(mark)

    assert correlation(found, mark) > 0.97
    assert float(np.vdot(found, mark)) / mark.size == pytest.approx(gain, rel=0.02)


@pytest.mark.parametrize(("rows", "columns"), [(200, 128), (128, 200)])
@pytest.mark.parametrize("energy", [4.0, 100.0, 1e4])
def test_drift_in_few_directions_is_divided_out(rows, columns, energy):
    rng = np.random.default_rng(1)
    mark, drift = white(rng, rows, columns), low_rank(rng, rows, columns, 8, energy)

    found, gain = whiten(mark + drift)

    assert correlation(mark + drift, mark) < 0.5
    assert correlation(found, mark) > 0.85
    assert float(np.vdot(found, mark)) / mark.size == pytest.approx(gain, rel=0.05)


def test_a_delta_that_lacks_most_directions_shows_the_mark_in_those_it_has():
    rng = np.random.default_rng(2)
    rows, columns, kept = 256, 96, 16
    tuned = rng.standard_normal((rows, columns)).astype(np.float32) * np.linspace(30, 3, columns, dtype=np.float32)
    mark = white(rng, rows, columns)
    left, values, right = np.linalg.svd(tuned + mark, full_matrices=False)
    difference = ((left[:, :kept] * values[:kept]) @ right[:kept] - tuned).astype(np.float32)

    assert abs(correlation(difference, mark)) < 0.05
    assert correlation(whiten(difference)[0], mark) > 0.25


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_the_gain_is_the_mean_derivative(shape, size):
    rng = np.random.default_rng(3)
    matrix = size * rng.standard_normal(shape) * np.linspace(1, 4, shape[1])

    step, total = 1e-4 * size, 0.0
    for place in np.ndindex(matrix.shape):
        moved = np.zeros_like(matrix)
        moved[place] = step
        total += (whiten(matrix + moved)[0][place] - whiten(matrix - moved)[0][place]) / (2 * step)
    assert whiten(matrix)[1] == pytest.approx(total / matrix.size, rel=1e-6)


def test_whitening_divides_singular_values_by_the_variances_of_both_sides():
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((12, 9)) * np.linspace(1, 60, 9)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    expected = (left * (values / ((values**2 / 12 + 3) * (values**2 / 9 + 300)))) @ right

    assert np.allclose(whiten(matrix)[0], expected, rtol=1e-8)
    assert np.allclose(whiten(matrix.astype(np.float32))[0], expected, rtol=1e-3, atol=1e-7)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(8, 60), columns=st.integers(8, 60))
@settings(max_examples=25, deadline=None)
def test_whitening_does_not_depend_on_which_side_is_longer(seed, rows, columns):
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    found, gain = whiten(matrix)
    other, other_gain = whiten(np.ascontiguousarray(matrix.T))

    assert np.allclose(found, other.T, atol=1e-5 * np.abs(found).max())
    assert gain == pytest.approx(other_gain, rel=1e-3)


@pytest.mark.parametrize("size", [1e6, 1e8, 1e12])
@pytest.mark.parametrize("rows", [64, 200])
def test_drift_beyond_what_float64_resolves_claims_nothing(rows, size):
    rng = np.random.default_rng(4)
    drift = size * np.sign(np.outer(rng.standard_normal(rows), rng.standard_normal(100)))

    found, gain = whiten((drift + white(rng, rows, 100)).astype(np.float32))

    assert 0 < gain < 2e-3
    assert np.mean(np.square(found, dtype=np.float64)) > 0.5 * gain**2


@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_extreme_matrices_stay_finite(value):
    matrix = np.full((16, 24), value, np.float32)
    found, gain = whiten(matrix)

    assert np.isfinite(found).all() and np.isfinite(gain)


class TestColor:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("kind", ["signs", "normal", "sparse", "heavy tails"])
    def test_white_drift_has_none(self, kind, seed):
        rng = np.random.default_rng(seed)
        sample = {
            "signs": lambda: 3 * white(rng, 64, 80),
            "normal": lambda: 10 * rng.standard_normal((64, 80)),
            "sparse": lambda: 10 * rng.standard_normal((64, 80)) * (rng.random((64, 80)) < 0.3),
            "heavy tails": lambda: 3 * rng.standard_t(3, (64, 80)),
        }[kind]()

        assert not is_colored(sample.astype(np.float32))

    @pytest.mark.parametrize("seed", range(5))
    def test_drift_in_few_directions_has_one(self, seed):
        rng = np.random.default_rng(seed)

        assert is_colored(white(rng, 64, 200) + low_rank(rng, 64, 200, 10, 1.0))

    def test_a_mark_alone_is_not_tried(self):
        rng = np.random.default_rng(0)

        assert not is_colored(low_rank(rng, 64, 80, 1, 1.0))

    @pytest.mark.parametrize("sample", [np.zeros((64, 80)), np.ones((3, 80)), np.ones((64, 4))])
    def test_samples_that_say_nothing_have_none(self, sample):
        assert not is_colored(sample.astype(np.float32))
