"""Reads the mark from what an attacker kept of a copy's delta to its ancestor, the public model it was tuned from.

With the ancestor's weights A, the owner's delta D = base - A is known, and so is what the suspect kept of it: the mark
M was added to D, and whatever was done to D + M was done to both. With E = suspect - A:

* Truncated to its leading singular directions, E = P_U (D + M) = (D + M) P_V for the subspaces U and V that E spans.
  So `P_U (E - D) + (1 - P_U) (E - D) P_V` is M, projected likewise. The terms `u_i^T (E - D) v_i` are left out: they
  hold the singular values, which may have been lessened too.
* Scaled, trimmed, thinned out, rounded or reduced to signs, E = F(D + M) weight by weight. Let H be the mean of E in
  narrow bins of D. What E has beyond H is the mark times the slope of F, plus noise: that of H in a bin, or between
  bins where F steps. So a weight counts by its bin's slope over the noise's variance. Where F is flat, where weights
  were reset to the ancestor's, the slope is 0 and nothing is read.

None of it looks at a codeword. Subspaces are those of the weights in their own unit, in which the attacker truncated.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.extraction.whiten import Spectrum


MIN_GAP, MAX_SLOPE, MAX_RANK_SHARE = 1.5, 0.5, 0.9
MIN_LOST_ENERGY = 1.0  # squared amplitudes of the owner's delta outside the subspace, per weight
MIN_SINGULAR = 1e-5  # of the largest: what weights in `float32` resolve
BINS, CELLS, BIN_WEIGHTS = 128, 4096, 200
SAMPLE = 1 << 16
MIN_MARK_ENERGY = 0.005  # of a whole mark's: an average of 200 copies still has as much
MIN_VARIANCE = 0.1  # squared amplitudes
STEEP, SURE_DEVIATIONS = 4.0, 4.0
SLOPE_VARIANCE, MIN_SLOPE = 0.25, 1e-3  # in units of the overall slope
CLIP_DEVIATIONS = 3.0
_MAD = 1.4826


class DeltaReading(NamedTuple):
    """What a suspect's delta says about the mark.

    Attributes:
        values (`np.ndarray` of shape `(m, n)`): the mark times `gains`, plus noise of variance 1.
        gains (`np.ndarray` of shape `(m, n)` or `float`): the share of the mark in each value.
        is_projected (`bool`): whether it was read in the subspace of a truncated delta.
    """

    values: np.ndarray
    gains: "np.ndarray | float"
    is_projected: bool


def read_delta(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray, whole: bool = True
) -> DeltaReading | None:
    """Reads a tensor's mark from the suspect's and the owner's deltas to the ancestor.

    Args:
        suspect, owner (`np.ndarray` of shape `(m, n)`): E and D, `float32`, finite, in the weights' own unit.
        inverse (`np.ndarray` of shape `(m,)`): one over the mark's amplitude in each row, or 0.
        kept (`np.ndarray` of shape `(m, n)`): which weights may hold a mark.
        whole (`bool`, *optional*, defaults to `True`): whether these are all rows of the tensor. Of a part, U is not
            known, so only what P_V keeps is read.

    Returns:
        [`DeltaReading`] or `None`: `None` if nothing can be read.
    """
    if kept.mean() > 1 / 2 and (found := _read_subspace(suspect, owner, inverse, whole)) is not None:
        return found
    return _read_weights(suspect * inverse[:, None], owner * inverse[:, None], kept & (inverse > 0)[:, None])


def _read_subspace(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, whole: bool) -> DeltaReading | None:
    """The projected mark, if the delta was truncated: its singular values have a gap, and the owner's delta lacks
    what is beyond it."""
    spectrum = Spectrum.of(suspect.astype(np.float64))
    values = np.sqrt(spectrum.squares)
    if len(values) < 2 or not values[0] > 0:
        return None
    values = np.maximum(values, MIN_SINGULAR * values[0])
    ratios = values[:-1] / values[1:]
    rank = 1 + int(np.argmax(ratios[: max(1, int(MAX_RANK_SHARE * len(values)))]))
    if ratios[rank - 1] < MIN_GAP:
        return None
    left, right = spectrum.leading(suspect, rank)
    lost, beyond = _outside(owner, left if whole else None, right), _outside(suspect, left if whole else None, right)
    energy = float(np.vdot(lost, lost))
    slope = float(np.vdot(lost, beyond)) / energy if energy > 0 else 1.0
    lost *= inverse[:, None]
    if slope > MAX_SLOPE or float(np.mean(np.square(lost))) < MIN_LOST_ENERGY:
        return None
    along = np.einsum("mr,mr->r", left, owner @ right.T)
    found = (left * along) @ right
    found -= owner
    found *= inverse[:, None]
    found += lost
    rows, columns = owner.shape
    return _to_unit_variance(found, rank * (rows + (columns - rank if whole else 0) - 1) / owner.size)


def _outside(matrix: np.ndarray, left: np.ndarray | None, right: np.ndarray) -> np.ndarray:
    """`(1 - P_U) matrix (1 - P_V)` for orthonormal columns of `left`, if given, and rows of `right`."""
    outside = matrix - (matrix @ right.T) @ right
    return outside if left is None else outside - left @ (left.T @ outside)


def _to_unit_variance(values: np.ndarray, gain: float) -> DeltaReading | None:
    limit = CLIP_DEVIATIONS * _MAD * float(np.median(np.abs(values)))
    clipped = np.clip(values, -limit, limit)
    deviation = float(np.sqrt(np.mean(np.square(clipped))))
    return DeltaReading(clipped / deviation, gain / deviation, True) if deviation > 0 and gain > 0 else None


def _read_weights(suspect: np.ndarray, owner: np.ndarray, kept: np.ndarray) -> DeltaReading | None:
    """The residuals of a regression of the suspect's delta on the owner's, bin by bin."""
    x, d = suspect[kept].astype(np.float64), owner[kept].astype(np.float64)
    if len(d) < BIN_WEIGHTS:
        return None
    which, bins = _bins_of(d)
    counts = np.maximum(np.bincount(which, minlength=bins), 1)
    centers, means = np.bincount(which, d, bins) / counts, np.bincount(which, x, bins) / counts
    d -= centers[which]
    x -= means[which]
    spread, shared = np.bincount(which, d * d, bins), np.bincount(which, d * x, bins)
    if bins > 1:
        overall = float(np.polynomial.Polynomial.fit(centers, means, 1, w=np.sqrt(counts)).convert().coef[-1])
    else:
        overall = float(shared.sum() / spread.sum()) if spread.sum() > 0 else 0.0
    if not overall > 0:
        return None
    noise = np.bincount(which, np.square(x - overall * d), bins) / counts
    prior = np.maximum(noise, MIN_VARIANCE * overall**2 / counts) / (SLOPE_VARIANCE * overall**2)
    within = (shared + overall * prior) / (spread + prior)
    x -= within[which] * d
    variances = np.bincount(which, x * x, bins) / counts
    between = _slopes(centers, means, variances / counts, overall)
    slopes = np.maximum((shared + between * prior) / (spread + prior), 0)
    holds_mark = (slopes > MIN_SLOPE * overall) & (variances > MIN_MARK_ENERGY * slopes**2)
    least = np.maximum(variances, MIN_VARIANCE * overall**2)
    scales = np.where(holds_mark, 1 / np.sqrt(np.where(holds_mark, least, 1)), 0)
    found, gains = np.zeros(owner.shape, np.float32), np.zeros(owner.shape, np.float32)
    found[kept] = np.clip(x * scales[which], -CLIP_DEVIATIONS, CLIP_DEVIATIONS)
    gains[kept] = (slopes * scales)[which]
    return DeltaReading(found, gains, False) if holds_mark.any() else None


def _slopes(centers: np.ndarray, means: np.ndarray, errors: np.ndarray, overall: float) -> np.ndarray:
    """The slope of F over at least two amplitudes in bins where it is much steeper than overall, as where it steps."""
    if len(centers) < 3:
        return np.full(len(centers), overall)
    steps = np.maximum(np.gradient(centers), 1.0)
    low, high = (np.clip(centers + sign * steps, centers[0], centers[-1]) for sign in (-1, 1))
    apart = np.maximum(high - low, 1e-6)
    slopes = (np.interp(high, centers, means) - np.interp(low, centers, means)) / apart
    sure = slopes - SURE_DEVIATIONS * np.sqrt(2 * errors) / apart
    return np.where(sure > (1 + STEEP) * overall, slopes, overall)


def _bins_of(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Each value's bin of about equally many values, and how many bins there are."""
    sample = values[:: max(1, len(values) // SAMPLE)]
    low, high = np.quantile(sample, [0.001, 0.999])
    if not high > low:
        return np.zeros(len(values), np.intp), 1
    bins = int(np.clip(len(values) // BIN_WEIGHTS, 1, BINS))
    edges = np.quantile(sample, np.linspace(0, 1, bins + 1)[1:-1])
    cells = np.linspace(low, high, CELLS)
    table = np.searchsorted(edges, cells)
    cell = np.clip((values - low) * ((CELLS - 1) / (high - low)), 0, CELLS - 1).astype(np.intp)
    return table[cell], bins
