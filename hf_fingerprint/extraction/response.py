"""How the suspect's delta responds to the owner's, measured in bins of the owner's delta D.

A value v has the mean H(D), its response. What exceeds H is the mark times H'(D) plus noise. H' and the variance are
measured in windows from all bins down to one: a window half as wide corrects the slope as far as it is sure to differ
(W. James, C. Stein, "Estimation with quadratic loss", 1961). None of it looks at a codeword.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


BINS, CELLS, BIN_WEIGHTS = 512, 8192, 200
EDGE_WEIGHTS = 1 << 16
MIN_WINDOW = 0.25  # standard deviation of D in a window, in amplitudes: the mark itself blurs what is finer
MIN_SLOPE_WEIGHTS, MIN_MEAN_WEIGHTS, NOISE_WEIGHTS = 50, 100, 20
SURE_SQUARES = 12.0  # squared standard errors
MIN_VARIANCE = 0.2  # of what a whole mark does to the value
MIN_MARK_ENERGY = 0.005  # of a whole mark's: an average of 200 copies still has as much
MIN_OWN_NOISE = 0.01  # of the window's variance
CLIP_DEVIATIONS = 3.0
ROUNDING = 1e-5  # of the values' root mean square
_TINY = 1e-30


class Bins(NamedTuple):
    """Bins of about equally many deltas, found by a table of narrow cells."""

    low: float
    cells: float
    table: np.ndarray

    @classmethod
    def of(cls, deltas: np.ndarray) -> "Bins":
        """The bins of a sample."""
        count = int(np.clip(len(deltas) // BIN_WEIGHTS, 1, BINS))
        if len(deltas) > EDGE_WEIGHTS:
            deltas = np.random.default_rng(0).choice(deltas, EDGE_WEIGHTS)
        low, high = np.quantile(deltas, [0.001, 0.999])
        if not high > low:
            return cls(float(low), 0.0, np.zeros(1, np.int32))
        edges = np.quantile(deltas, np.linspace(0, 1, count + 1)[1:-1])
        table = np.searchsorted(edges, np.linspace(low, high, CELLS)).astype(np.int32)
        return cls(float(low), (CELLS - 1) / float(high - low), table)

    def find(self, deltas: np.ndarray) -> np.ndarray:
        """Each delta's bin."""
        cells = (deltas - self.low) * self.cells
        return self.table[np.clip(cells, 0, len(self.table) - 1, out=cells).astype(np.int32)]


class Response(NamedTuple):
    """What a value says about the mark, in each bin of the owner's delta.

    Attributes:
        intercepts, slopes (`np.ndarray` of shape `(bins,)`): H(D) is about `intercepts + slopes D`.
        factors (`np.ndarray` of shape `(bins,)`): of what exceeds H, for noise of variance 1; they have the slope's
            sign, and are 0 where nothing is read.
        gains (`np.ndarray` of shape `(bins,)`): the share of M that is in it then, in units of 1 / M.
        overall (`float`): the slope over all bins.
    """

    intercepts: np.ndarray
    slopes: np.ndarray
    factors: np.ndarray
    gains: np.ndarray
    overall: float

    @classmethod
    def measure(cls, which: np.ndarray, deltas: np.ndarray, values: np.ndarray, amplitude: float) -> "Response":
        """Measures the response of values to the owner's deltas.

        Args:
            which (`np.ndarray` of shape `(count,)`): each delta's bin.
            deltas, values (`np.ndarray` of shape `(count,)`): `float64`.
            amplitude (`float`): the mark's.
        """
        sums = np.stack([np.bincount(which, each, BINS) for each in _products(deltas, values)])
        noise = _noise(sums)
        slopes, variances, means, centers = _narrow_down(sums, noise, MIN_WINDOW * amplitude)
        mark = np.square(slopes * amplitude)
        # Where a bin varies less than its window does, H is as much flatter there, as on both sides of a threshold.
        own = np.minimum(1, noise / np.maximum(variances, _TINY))
        read = (variances > MIN_MARK_ENERGY * mark) & (own > MIN_OWN_NOISE) & (sums[0] > 0)
        deviations = np.sqrt(own * np.maximum(variances, np.maximum(MIN_VARIANCE * mark, _TINY)))
        factors = np.where(read, np.sign(slopes) / np.maximum(deviations, _TINY), 0)
        overall, *_ = _fit(sums.sum(1, keepdims=True))
        intercepts, gains = means - slopes * centers, factors * own * slopes
        intercepts, slopes, factors, gains = (each.astype(np.float32) for each in (intercepts, slopes, factors, gains))
        return cls(intercepts, slopes, factors, gains, float(overall[0]))

    def read(self, which: np.ndarray, deltas: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What values say about M: `(excess, gains)`, M times `gains` plus noise of variance 1, and `gains`."""
        excess = values - self.slopes[which] * deltas
        excess -= self.intercepts[which]
        excess *= self.factors[which]
        return np.clip(excess, -CLIP_DEVIATIONS, CLIP_DEVIATIONS, out=excess), self.gains[which]


def _products(deltas: np.ndarray, values: np.ndarray) -> Iterator[np.ndarray | None]:
    yield None
    yield deltas
    yield np.square(deltas)
    yield values
    yield deltas * values
    yield np.square(values)


def _fit(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slopes of lines through the values, the deltas' squared deviations, and what the lines leave of the values'.

    Args:
        sums (`np.ndarray` of shape `(6, bins)`): of 1, D, D^2, E, D E, and E^2.
    """
    counts = np.maximum(sums[0], 1)
    spread = np.maximum(sums[2] - np.square(sums[1]) / counts, 0)
    shared = sums[4] - sums[1] * sums[3] / counts
    slopes = np.divide(shared, spread, out=np.zeros_like(spread), where=spread > _TINY)
    return slopes, spread, np.maximum(sums[5] - np.square(sums[3]) / counts - slopes * shared, 0)


def _noise(sums: np.ndarray) -> np.ndarray:
    """Each bin's variance about its own line, after one more weight with the variance of all; more than rounding's.

    Few weights lie on their line, so bins that hold few are taken with their neighbors.
    """
    total = max(sums[0].sum(), 1)
    window = _windows(sums, int(len(sums[0]) * NOISE_WEIGHTS / (2 * total)))
    left, freedom = _fit(window)[2], np.maximum(window[0] - 2, 0)
    common = left.sum() / max(freedom.sum(), 1)
    return (left + common) / (freedom + 1) + ROUNDING**2 * sums[5].sum() / total


def _narrow_down(
    sums: np.ndarray, noise: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Measures each bin in windows around it, each half as wide as the one before.

    Args:
        sums (`np.ndarray` of shape `(6, bins)`): see [`_fit`].
        noise (`np.ndarray` of shape `(bins,)`): the variance of each bin's values.
        least (`float`): the least standard deviation of the deltas in a window.

    Returns:
        `(slopes, variances, means, centers)`: of shape `(bins,)`.
    """
    sums = np.vstack([sums, sums[0] * noise])
    slopes, spread, variances, means, centers = _of_windows(sums.sum(1, keepdims=True)).repeat(len(noise), 1)
    slopes = _as_far_as_sure(slopes, spread, variances)
    for half in (len(noise) >> shift for shift in range(2, len(noise).bit_length() + 1)):
        window = _windows(sums, half)
        fitted, spread, variance, mean, center = _of_windows(window)
        wide = (spread > least**2 * window[0]) & (window[0] > MIN_SLOPE_WEIGHTS)
        slopes = slopes + _as_far_as_sure(np.where(wide, fitted - slopes, 0), spread, variance)
        variances = np.where(wide, variance, variances)
        enough = window[0] >= MIN_MEAN_WEIGHTS
        means, centers = np.where(enough, mean, means), np.where(enough, center, centers)
    return slopes, variances, means, centers


def _as_far_as_sure(changes: np.ndarray, spread: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Changes of slopes, lessened by the square of their standard errors."""
    doubt = SURE_SQUARES * variances / np.maximum(spread, _TINY)
    return changes * np.maximum(0, 1 - doubt / np.maximum(np.square(changes), _TINY))


def _of_windows(sums: np.ndarray) -> np.ndarray:
    """Slopes, the deltas' squared deviations, variances, means and centers."""
    counts, (slopes, spread, _) = np.maximum(sums[0], 1), _fit(sums)
    return np.stack([slopes, spread, sums[6] / counts, sums[3] / counts, sums[1] / counts])


def _windows(sums: np.ndarray, half: int) -> np.ndarray:
    """The sums over each bin and `half` of its neighbors on either side."""
    ends = np.concatenate([np.zeros((len(sums), 1)), np.cumsum(sums, 1)], 1)
    bins = np.arange(sums.shape[1])
    return ends[:, np.minimum(bins + half + 1, len(bins))] - ends[:, np.maximum(bins - half, 0)]
