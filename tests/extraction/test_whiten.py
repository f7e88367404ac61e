"""Whitening divides out drift that lies in few directions and keeps the mark, by the share that it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.extraction.whiten import Spectrum, is_colored, spectral_divergence, whiten


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


def test_the_divergence_is_the_sum_of_all_partial_derivatives():
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((7, 5)) * np.linspace(1, 4, 5)

    def mapped(x):
        left, values, right = np.linalg.svd(x, full_matrices=False)
        return (left * (values / (1 + values**2))) @ right

    step, total = 1e-5, 0.0
    for place in np.ndindex(matrix.shape):
        moved = np.zeros_like(matrix)
        moved[place] = step
        total += (mapped(matrix + moved)[place] - mapped(matrix - moved)[place]) / (2 * step)
    values = np.linalg.svd(matrix, compute_uv=False)
    # the slopes are taken between neighbors, so more singular values make them exact
    assert spectral_divergence(values**2, 1 / (1 + values**2), 7) == pytest.approx(total, rel=0.15)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(8, 60), columns=st.integers(8, 60))
@settings(max_examples=25, deadline=None)
def test_whitening_does_not_depend_on_which_side_is_longer(seed, rows, columns):
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    found, gain = whiten(matrix)
    other, other_gain = whiten(np.ascontiguousarray(matrix.T))

    assert np.allclose(found, other.T, atol=1e-5 * np.abs(found).max())
    assert gain == pytest.approx(other_gain, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_extreme_matrices_stay_finite(value):
    matrix = np.full((16, 24), value, np.float32)
    found, gain = whiten(matrix)

    assert np.isfinite(found).all() and np.isfinite(gain)


def test_the_leading_vectors_span_a_matrix_of_low_rank():
    matrix = low_rank(np.random.default_rng(4), 40, 30, 5, 1.0).astype(np.float64)
    for each in (matrix, np.ascontiguousarray(matrix.T)):
        left, right = Spectrum.of(each).leading(each, 5)
        assert np.allclose(left @ (left.T @ each), each, atol=1e-6)
        assert np.allclose((each @ right.T) @ right, each, atol=1e-6)


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
