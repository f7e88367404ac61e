"""Divides out the color of a tensor's drift: the mark is white, while drift lies in few directions.

The difference to the base in units of the mark's amplitude, `x` of m rows and n columns, is the mark plus drift.
Fine-tuning, the truncation of low ranks and merging with other models move few combinations of rows and of columns.
These stand out in the singular values s of x. With N = max(m, n) and k = min(m, n),

    x' = U f(S) V^T,   f(s) = s / ((s^2 / N + 3) (s^2 / k + 300)),

which is two-sided whitening: `s^2 / N` and `s^2 / k` are the variances along the shorter and the longer side, in units
of the squared amplitude, and the constants are ridges. The longer side has fewer samples of each direction, so its
ridge is higher. The share of a whole mark that x' keeps is the divergence of this spectral map over m n (E. Candes,
C. Sing-Long, J. Trzasko, "Unbiased risk estimates for singular value thresholding", IEEE Trans. Signal Processing
61(19), 2013, eq. 9). None of it looks at a codeword.
"""

from typing import NamedTuple

import numpy as np


GROUPS, GROUP_ROWS = 8, 8  # of a sample that shows whether drift has a color
MIN_COLOR, COLOR_DEVIATIONS, MIN_DRIFT_ENERGY = 1.1, 6.0, 1.2
MIN_SIDE = 8  # of a matrix with directions to compare
SHORT_RIDGE, LONG_RIDGE = 3.0, 300.0  # squared amplitudes
CLIP_DEVIATIONS = 5.0
_MAD = 1.4826
_TINY = 1e-12


class Spectrum(NamedTuple):
    """The singular values of a matrix, and the singular vectors of its shorter side.

    Attributes:
        squares (`np.ndarray` of shape `(k,)`): the squared singular values, largest first, `float64`.
        vectors (`np.ndarray` of shape `(k, k)`): the singular vectors in its columns.
        wide (`bool`): whether the shorter side is that of the rows.
    """

    squares: np.ndarray
    vectors: np.ndarray
    wide: bool

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Spectrum":
        """The spectrum of a matrix, from the Gram matrix of its shorter side."""
        from scipy.linalg import eigh

        wide = matrix.shape[0] <= matrix.shape[1]
        gram = matrix @ matrix.T if wide else matrix.T @ matrix
        squares, vectors = eigh(gram, driver="evd", check_finite=False, overwrite_a=True)
        return cls(np.maximum(squares[::-1].astype(np.float64), 0), vectors[:, ::-1], wide)

    def multiply(self, matrix: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """The matrix with each singular value times its factor, `factors` of shape `(k,)`."""
        middle = (self.vectors * factors.astype(self.vectors.dtype)) @ self.vectors.T
        return middle @ matrix if self.wide else matrix @ middle

    def leading(self, matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The leading singular vectors of the matrix: those of the left in columns, `(m, rank)`, and those of the
        right in rows, `(rank, n)`."""
        vectors = self.vectors[:, :rank]
        values = np.sqrt(self.squares[:rank])
        other = (matrix.T if self.wide else matrix) @ (vectors / values)
        left, right = (vectors, other.T) if self.wide else (other, vectors.T)
        return left.astype(matrix.dtype), right.astype(matrix.dtype)


def whiten(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Whitens a matrix.

    Args:
        matrix (`np.ndarray` of shape `(m, n)`): differences in units of the mark's amplitude, `float32`, finite.

    Returns:
        `(whitened, gain)`: a matrix of the same shape, and the share of a whole mark that it keeps.
    """
    longer, shorter = max(matrix.shape), min(matrix.shape)
    spectrum = Spectrum.of(matrix)
    squares = spectrum.squares
    factors = 1 / ((squares / longer + SHORT_RIDGE) * (squares / shorter + LONG_RIDGE))
    return spectrum.multiply(matrix, factors), spectral_divergence(squares, factors, longer) / matrix.size


def spectral_divergence(squares: np.ndarray, factors: np.ndarray, longer: int) -> float:
    """The divergence of the spectral map that multiplies the singular values by factors, at a matrix.

    Args:
        squares (`np.ndarray` of shape `(k,)`): the squared singular values, largest first.
        factors (`np.ndarray` of shape `(k,)`): the factors, a smooth function of the singular values.
        longer (`int`): the longer side of the matrix.
    """
    values = np.sqrt(squares)
    mapped = values * factors
    slopes = np.gradient(mapped, values) if _all_apart(values) else factors.copy()
    weighted = squares * factors
    apart = squares[:, None] - squares[None, :]
    close = np.abs(apart) <= 1e-9 * max(float(squares[0]), _TINY)
    pairs = np.where(close, factors[:, None], (weighted[:, None] - weighted) / np.where(close, 1.0, apart))
    np.fill_diagonal(pairs, 0)
    return float(slopes.sum() + (longer - len(squares)) * factors.sum() + pairs.sum())


def _all_apart(values: np.ndarray) -> bool:
    return len(values) > 1 and float(np.min(-np.diff(values))) > 1e-9 * max(float(values[0]), _TINY)


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
