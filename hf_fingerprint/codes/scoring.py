"""Scores of packed codewords: the sum of a function's weights where a codeword is +1."""

import numpy as np

from hf_fingerprint.native import passes


SINGLE_PRECISION_CHUNK = 4096  # positions whose weights are added up in single precision
ROWS = 16
_MAX_VECTOR_FUNCTIONS = 6


def weigh_codewords(packed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`sum of w_i over the positions i where b_i is +1`, for each codeword and each function.

    Args:
        packed (`np.ndarray` of shape `(n, V / 8)`): codewords; see [`Codebook.packed`].
        weights (`np.ndarray` of shape `(H, V)`): `float32`, contiguous.

    Returns:
        `np.ndarray` of shape `(n, H)`: up to the roundings of [`error_bound`].
    """
    out = np.zeros((len(packed), len(weights)))
    if passes is not None:
        passes.score_packed(packed, weights, out, weights.shape[1])
        return out
    buffer = np.empty((min(ROWS, len(packed)), weights.shape[1]), np.float32)
    for start in range(0, len(packed), ROWS):
        bits = np.unpackbits(packed[start : start + ROWS], axis=1)
        _add_weights(bits, weights, buffer[: len(bits)], out[start : start + ROWS])
    return out


def _add_weights(bits: np.ndarray, weights: np.ndarray, buffer: np.ndarray, out: np.ndarray) -> None:
    np.copyto(buffer, bits)
    for start in range(0, weights.shape[1], SINGLE_PRECISION_CHUNK):
        chunk = slice(start, start + SINGLE_PRECISION_CHUNK)
        if len(weights) > _MAX_VECTOR_FUNCTIONS:
            out += buffer[:, chunk] @ weights[:, chunk].T
        else:  # matrix-vector products are 7 times as fast as a thin matrix product
            for column, weight in enumerate(weights):
                out[:, column] += buffer[:, chunk] @ weight[chunk]


def error_bound(weights: np.ndarray) -> np.ndarray:
    """The largest error of [`weigh_codewords`] for weights that are rounded to single precision, shape `(H,)`.

    Weights are rounded once. Up to `SINGLE_PRECISION_CHUNK` of them are added with one rounding each, in any order;
    these sums are added in double precision. Higham, "Accuracy and Stability of Numerical Algorithms", 4.2.

    Args:
        weights (`np.ndarray` of shape `(H, V)`): before they are rounded.
    """
    length = weights.shape[1]
    roundings = min(SINGLE_PRECISION_CHUNK, length) + 1
    unit, slack, smallest = 2.0**-24, 1.01, length * 2.0**-126
    bound: np.ndarray = slack * roundings * unit * np.abs(weights).sum(axis=1) + smallest
    return bound
