"""Divides out the color of a tensor's drift: the mark is white, while drift lies in few directions.

The difference to the base in units of the mark's amplitude, `x` of m rows and n columns, is the mark plus drift.
Fine-tuning, the truncation of low ranks and merging with other models move few combinations of rows and of columns.
These stand out in the singular values s of x. With N = max(m, n) and k = min(m, n),

    x' = U f(S) V^T,   f(s) = s / ((s^2 / N + 3) (s^2 / k + 300)),

which is two-sided whitening: `s^2 / N` and `s^2 / k` are the variances along the shorter and the longer side, in units
of the squared amplitude, and the constants are ridges. The longer side has fewer samples of each direction, so its
ridge is higher. With the Gram matrix G of the shorter side, x' is `N k (G + 3 N)^-1 (G + 300 k)^-1 x`. The share of a
whole mark that it keeps is the divergence of this spectral map over m n (E. Candes, C. Sing-Long, J. Trzasko,
"Unbiased risk estimates for singular value thresholding", IEEE Trans. Signal Processing 61(19), 2013, eq. 9). None of
it looks at a codeword.
"""

import numpy as np

from hf_fingerprint.extraction.blas import scipy_linalg


GROUPS, GROUP_ROWS = 8, 8  # of a sample that shows whether drift has a color
MIN_COLOR, COLOR_DEVIATIONS, MIN_DRIFT_ENERGY = 1.1, 6.0, 1.2
MIN_SIDE = 8  # of a matrix with directions to compare
SHORT_RIDGE, LONG_RIDGE = 3.0, 300.0  # squared amplitudes
CLIP_DEVIATIONS = 5.0
_MAD = 1.4826
MAX_SINGLE_CONDITION, MAX_CONDITION = 1e4, 1e14  # of a Gram matrix plus a ridge, for `float32` and `float64`
_TINY = 1e-12


def whiten(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Whitens a matrix.

    Args:
        matrix (`np.ndarray` of shape `(m, n)`): differences in units of the mark's amplitude, `float32`, finite.

    Returns:
        `(whitened, gain)`: a matrix of the same shape, and the share of a whole mark that it keeps.
    """
    gram, wide = gram_matrix(matrix)
    longer, shorter = max(matrix.shape), min(matrix.shape)
    ridges = SHORT_RIDGE * longer, LONG_RIDGE * shorter
    if not float(np.trace(gram)) < MAX_SINGLE_CONDITION * min(ridges):
        gram, _ = gram_matrix(matrix.astype(np.float64))
        least = float(np.trace(gram)) / MAX_CONDITION  # less is lost in rounding, and no Cholesky factor is found
        ridges = max(ridges[0], least), max(ridges[1], least)
    first, second = (_resolvent(gram, ridge) for ridge in ridges)
    both = first @ second
    gain = _divergence(first, second, both, ridges[0], longer - shorter)
    both *= longer * shorter
    middle = both.astype(matrix.dtype, copy=False)
    return middle @ matrix if wide else matrix @ middle, gain


def gram_matrix(matrix: np.ndarray) -> tuple[np.ndarray, bool]:
    """The Gram matrix of the shorter side, and whether that is the side of the rows."""
    wide = matrix.shape[0] <= matrix.shape[1]
    return matrix @ matrix.T if wide else matrix.T @ matrix, wide


def _resolvent(gram: np.ndarray, ridge: float) -> np.ndarray:
    """The inverse of a Gram matrix plus a ridge."""
    factorize, invert = scipy_linalg().get_lapack_funcs(("potrf", "potri"), (gram,))
    shifted = gram.T.copy(order="F")
    shifted[np.diag_indices(len(gram))] += ridge
    factor, _ = factorize(shifted, lower=True, overwrite_a=True)
    half, _ = invert(factor, lower=True, overwrite_c=True)
    found = np.tril(half)
    return found + np.tril(half, -1).T


def _divergence(first: np.ndarray, second: np.ndarray, both: np.ndarray, ridge: float, further: int) -> float:
    """The mean derivative of what whitening makes of each entry in that entry.

    With the eigenvalues l of G and the resolvents' a = 1 / (l + c) and b = 1 / (l + d), the map is s -> m n s a b. All
    difference quotients of l a b = b - c a b are sums of products of a and b, so their sums are traces.

    Args:
        first, second, both (`np.ndarray` of shape `(k, k)`): the resolvents A and B, and A B.
        ridge (`float`): c, that of A.
        further (`int`): by how much the longer side is longer.
    """
    one, other, product = (float(np.trace(each, dtype=np.float64)) for each in (first, second, both))
    slopes = ridge * (np.vdot(first, both) + np.vdot(second, both)) - np.vdot(second, second)
    pairs = ridge * product * (one + other) - other**2
    return float(slopes + pairs + (further - 1) * product)


def is_colored(sample: np.ndarray) -> bool:
    """Whether a sample of rows has more in common than chance explains.

    For white rows of n columns, n times the squared cosine of two rows has mean 1 and variance 2.

    Args:
        sample (`np.ndarray` of shape `(rows, n)`): differences in units of the mark's amplitude; 0 where dropped.
    """
    used = sample[np.any(sample, axis=1)]
    count, columns = used.shape
    if count < MIN_SIDE or columns < MIN_SIDE or float(np.mean(np.square(used))) < MIN_DRIFT_ENERGY:
        return False
    limit = CLIP_DEVIATIONS * _MAD * float(np.median(np.abs(used)))
    clipped = np.clip(used, -limit, limit) if limit > 0 else used
    cosines = clipped / np.maximum(np.linalg.norm(clipped, axis=1, keepdims=True), _TINY)
    squares = np.square(cosines @ cosines.T)
    pairs = count * (count - 1)
    ratio = columns * float(squares.sum() - np.trace(squares)) / pairs
    return ratio > max(MIN_COLOR, 1 + COLOR_DEVIATIONS * 2 / np.sqrt(pairs))
