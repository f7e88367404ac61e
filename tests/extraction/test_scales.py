"""Scales that a file doesn't tell are fitted to the base, and the mark stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.extraction.scales import fit_scales


RNG = np.random.default_rng(0)
BASE = (RNG.uniform(0.5, 2, (256, 1)) * 0.02 * RNG.standard_normal((256, 384))).astype(np.float32)
MARK = (0.004 * BASE.std() * RNG.choice([-1, 1], BASE.shape)).astype(np.float32)
Quantized = tuple[np.ndarray, np.ndarray]  # codes, and the weights that they stand for


def in_blocks(bits: int, rows: int, columns: int, zeros: bool = False) -> Quantized:
    """The marked weights in blocks with a scale each, and a zero point."""
    blocks = (BASE + MARK).reshape(256 // rows, rows, 384 // columns, columns)
    low, high = (edge((1, 3), keepdims=True) if zeros else None for edge in (blocks.min, blocks.max))
    if zeros:
        scales = (high - low) / (2**bits - 1)
        offsets = np.round(-low / scales)
    else:
        scales, offsets = np.abs(blocks).max((1, 3), keepdims=True) / (2 ** (bits - 1) - 1), 0
    codes = np.round(blocks / scales) + offsets
    return codes.reshape(BASE.shape), ((codes - offsets) * scales).reshape(BASE.shape)


def in_table(levels: int, scramble: bool) -> Quantized:
    values = np.sort(RNG.choice((BASE + MARK).reshape(-1), levels, replace=False))
    codes = np.abs((BASE + MARK)[..., None] - values).argmin(-1)
    return (RNG.permutation(levels)[codes] if scramble else codes).astype(np.float64), values[codes]


SCHEMES = {
    f"{name}, {bits} bits{', zero points' if zeros else ''}": in_blocks(bits, *block, zeros)
    for name, block in {
        "tensor": (256, 384),
        "rows": (1, 384),
        "columns": (256, 1),
        "groups of 32": (1, 32),
        "groups of 64": (1, 64),
        "groups of 128": (1, 128),
        "groups of 64 rows": (64, 1),
    }.items()
    for bits in (8, 4)
    for zeros in (False, True)
} | {"a table": in_table(16, False), "a scrambled table": in_table(16, True)}


def mark_share(weights: np.ndarray) -> float:
    """The correlation of what remains of weights without the base's with the mark."""
    difference = weights.astype(np.float64) - BASE
    return float(np.vdot(difference, MARK)) / float(np.linalg.norm(difference) * np.linalg.norm(MARK))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mark_is_as_clear_as_with_the_schemes_own_scales(scheme):
    codes, weights = SCHEMES[scheme]

    fitted = fit_scales(codes.astype(np.float32), BASE)(codes.astype(np.float32))

    assert mark_share(fitted) >= 0.9 * mark_share(weights)
    assert np.linalg.norm(fitted - weights) < (0.3 if "table" in scheme else 0.1) * np.linalg.norm(weights)


def test_codes_of_one_value_give_finite_weights():
    codes = np.full((32, 64), 7, np.float32)
    assert np.isfinite(fit_scales(codes, BASE[:32, :64])(codes)).all()


@given(st.integers(0, 99), st.sampled_from([(8, 3), (3, 32, 3, 3), (64, 1, 3, 3), (1, 5), (5, 1)]))
def test_any_shape_is_fitted(seed, shape):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape).astype(np.float32)
    codes = np.round(weights * 40 + 3).astype(np.float32)

    fitted = fit_scales(codes, weights)(codes)

    assert fitted.shape == shape
    assert np.abs(fitted - weights).max() < 0.2
