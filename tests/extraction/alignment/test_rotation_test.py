import numpy as np
import pytest
from scipy.linalg import expm

from hf_fingerprint.extraction.alignment.rotation_test import MIN_STATISTIC, rotation_statistic


WIDTH, ROWS, TENSORS = 48, 32, 8


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((ROWS, WIDTH)) for _ in range(TENSORS)], rng


def sure(before, after):
    return rotation_statistic(
        [(a.astype(np.float32), b.astype(np.float32)) for a, b in zip(before, after, strict=True)]
    )


def small_rotation(rng, size):
    square = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(2 * WIDTH)
    return expm(size * (square - square.T))


@pytest.mark.parametrize("size", [0.01, 0.05])
@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_a_common_rotation_is_detected_within_a_larger_drift(size, drift):
    weights, rng = tensors()
    turn = small_rotation(rng, size)

    rotated = [w @ turn + size * drift * rng.standard_normal(w.shape) for w in weights]

    assert sure(weights, rotated) > MIN_STATISTIC


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["noise", "a turn each", "a stretch", "factors of columns", "shrunk", "nothing"])
def test_no_other_drift_looks_like_one(seed, kind):
    weights, rng = tensors(seed)
    stretch = 0.05 * rng.standard_normal((WIDTH, WIDTH))
    drifted = {
        "noise": lambda w: w + 0.05 * rng.standard_normal(w.shape),
        "a turn each": lambda w: w @ small_rotation(rng, 0.05),
        "a stretch": lambda w: w + w @ (stretch + stretch.T),
        "factors of columns": lambda w: w * np.exp(0.1 * rng.standard_normal(WIDTH)),
        "shrunk": lambda w: 0.9 * w,
        "nothing": lambda w: w,
    }[kind]

    assert sure(weights, [drifted(w) for w in weights]) < MIN_STATISTIC


def test_folded_normalizations_do_not_hide_a_rotation():
    weights, rng = tensors()
    turn = small_rotation(rng, 0.01)

    assert sure(weights, [w * np.exp(0.05 * rng.standard_normal(WIDTH)) @ turn for w in weights]) > MIN_STATISTIC


def test_pruned_weights_do_not_count():
    weights, rng = tensors()
    turn = small_rotation(rng, 0.02)
    kept = [rng.random(w.shape) > 0.3 for w in weights]

    assert sure(weights, [(w @ turn) * k for w, k in zip(weights, kept, strict=True)]) > MIN_STATISTIC
    assert sure(weights, [w * k for w, k in zip(weights, kept, strict=True)]) < MIN_STATISTIC
