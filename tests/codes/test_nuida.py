import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_legendre

from hf_fingerprint.codes import Nuida, make_codebook
from hf_fingerprint.codes.nuida import MAX_COALITION, nuida_biases
from hf_fingerprint.errors import CodeError


SECRET = bytes(range(32))


def test_thresholds_are_golden():
    thresholds = Nuida(1024, 10, SECRET).thresholds
    assert thresholds.dtype == np.uint16
    assert thresholds[:8].tolist() == [32768, 3074, 50413, 32768, 32768, 3074, 3074, 32768]
    assert (
        hashlib.sha256(thresholds.astype("<u2").tobytes()).hexdigest()
        == "a1bf1245fae0ef3f5a8b96d14edcc1efd11f1930837b596573f2c0566cbe807e"
    )


@pytest.mark.parametrize(
    ("coalition", "points", "weights"),
    [
        (2, [0.5], [1]),
        (4, [0.21132, 0.78868], [0.5, 0.5]),
        (6, [0.1127, 0.5, 0.8873], [0.33201, 0.33597, 0.33201]),
        (8, [0.06943, 0.33001, 0.66999, 0.93057], [0.24833, 0.25167, 0.25167, 0.24833]),
    ],
)
def test_the_biases_are_those_published_for_small_coalitions(coalition, points, weights):
    for size in (coalition - 1, coalition):
        found = nuida_biases(size)
        np.testing.assert_allclose(found[0], points, atol=1e-5)
        np.testing.assert_allclose(found[1], weights, atol=1e-5)


@given(st.integers(1, 60))
def test_points_are_zeros_of_the_legendre_polynomial_and_symmetric(coalition):
    points, weights = nuida_biases(coalition)
    assert len(points) == (coalition + 1) // 2
    np.testing.assert_allclose(eval_legendre(len(points), 2 * points - 1), 0, atol=1e-9)
    np.testing.assert_allclose(points, 1 - points[::-1], atol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-12)
    assert weights.sum() == pytest.approx(1)


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_no_strategy_tells_the_points_from_the_continuous_biases(coalition, seed):
    """What makes them a code: `sum_p w_p sqrt(p (1 - p)) q(p)` is the integral of q, for degrees up to c - 1."""
    points, weights = nuida_biases(coalition)
    coefficients = np.random.default_rng(seed).standard_normal(coalition)
    q = np.polynomial.Polynomial(coefficients)
    drawn = weights * np.sqrt(points * (1 - points))
    integral = q.integ()(1.0) - q.integ()(0.0)
    assert (drawn @ q(points)) / drawn.sum() == pytest.approx(integral, abs=1e-9)


def test_every_position_has_one_of_the_points_as_often_as_the_weights_say():
    points, weights = nuida_biases(10)
    codebook = Nuida(1 << 15, 10, SECRET)
    found, counts = np.unique(codebook.probability, return_counts=True)
    np.testing.assert_allclose(found, points, atol=2.0**-17)
    np.testing.assert_allclose(counts / (1 << 15), weights, atol=0.015)


def test_biases_depend_on_the_secret_and_are_a_prefix_for_a_shorter_code():
    first = Nuida(256, 10, SECRET).thresholds
    np.testing.assert_array_equal(first[:128], Nuida(128, 10, SECRET).thresholds)
    assert (first != Nuida(256, 10, bytes(32)).thresholds).mean() > 0.5


def test_the_largest_coalition_leaves_every_position_uncertain():
    codebook = Nuida(1024, MAX_COALITION, SECRET)
    assert codebook.probability.min() >= 2.0**-16
    assert codebook.probability.max() <= 1 - 2.0**-16


@pytest.mark.parametrize("coalition", [0, MAX_COALITION + 1])
def test_a_coalition_without_biases_is_refused(coalition):
    with pytest.raises(CodeError, match=f"got {coalition}|coalition of {coalition}"):
        make_codebook("nuida", 256, coalition, SECRET)
