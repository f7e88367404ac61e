import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_fingerprint.carriers.filter_mean import FilterMeanMap, gaussian_projection, orthonormal


KEY = bytes(range(32))
# Frozen: a model marked today must be read in ten years.
GAUSSIAN = [
    0.32071450335295426,
    0.14299839500719555,
    0.10723897569211392,
    -0.24657547047144882,
    -0.4376160647454787,
    0.12789832462821757,
]
ORTHONORMAL = [
    -0.3797399585872334,
    0.31574503511835394,
    -0.4416991439277797,
    0.47327631257586456,
    0.030242391648608046,
    -0.5495261681494902,
    -0.1847171435591348,
]


def test_the_projection_is_golden():
    np.testing.assert_allclose(gaussian_projection(KEY, "conv.weight", 2, 3).ravel(), GAUSSIAN, rtol=1e-12)


def test_the_orthonormal_matrix_is_golden():
    np.testing.assert_allclose(orthonormal(KEY, 7)[0], ORTHONORMAL, rtol=1e-10)


def test_the_projection_is_standard_normal_and_differs_by_key_and_name():
    found = gaussian_projection(KEY, "conv.weight", 31, 1000)

    assert stats.kstest(found.ravel(), "norm").pvalue > 1e-3
    assert abs(found.mean()) < 0.03
    assert not np.allclose(found, gaussian_projection(KEY, "other.weight", 31, 1000))
    assert not np.allclose(found, gaussian_projection(bytes(32), "conv.weight", 31, 1000))


@pytest.mark.parametrize("points", [7, 31, 133])
def test_the_orthonormal_matrix_is_one_and_has_no_preferred_sign(points):
    u = orthonormal(KEY, points)

    np.testing.assert_allclose(u @ u.T, np.eye(points), atol=1e-12)
    traces = [np.trace(orthonormal(bytes([i]) * 32, 7)) for i in range(200)]
    assert abs(np.mean(traces)) < 0.3  # Haar: mean 0, variance 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 20))
def test_it_reads_the_mean_of_the_filters_shard_by_shard(rows, columns, cut):
    rng = np.random.default_rng(rows)
    matrix, weights = rng.standard_normal((7, columns)), rng.standard_normal((rows, columns)).astype(np.float32)
    part, out, cut = FilterMeanMap(matrix, rows), torch.zeros(7), min(cut, rows)

    part.read(torch.from_numpy(weights[:cut]), 0, out)
    part.read(torch.from_numpy(weights[cut:]), cut, out)

    np.testing.assert_allclose(out.numpy(), matrix @ weights.mean(0), rtol=1e-3, atol=1e-4)


def test_the_gradient_is_the_adjoint_and_the_gram_their_product():
    rng = np.random.default_rng(0)
    part = FilterMeanMap(rng.standard_normal((7, 12)), 5)
    direction, gradient, out = torch.randn(7), torch.zeros(5, 12), torch.zeros(7)

    part.adjoint(direction, 0, gradient)
    part.read(gradient, 0, out)

    torch.testing.assert_close(out, part.gram() @ direction, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_round_the_signal():
    part, weights = FilterMeanMap(np.full((7, 3), 1 / 3), 2), torch.full((2, 3), 1 + 1e-4)
    out = torch.zeros(7)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        part.read(weights, 0, out)

    assert float(out[0]) == pytest.approx(1 + 1e-4, abs=1e-6)
