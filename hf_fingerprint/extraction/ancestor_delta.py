"""Reads the mark from what an attacker kept of a copy's delta to its ancestor, the public model it was tuned from.

With the ancestor's weights A, the owner's delta D = base - A is known, and so is what the suspect kept of it: the mark
M was added to D, and whatever was done to D + M was done to both. With E = suspect - A:

* Truncated to its leading singular directions, E = P_U (D + M) = (D + M) P_V for the subspaces U and V that E spans.
  So `P_U (E - D) + (1 - P_U) (E - D) P_V` is M, projected likewise. The terms `u_i^T (E - D) v_i` are left out: they
  hold the singular values, which may have been lessened too.
* Scaled, trimmed, thinned out, rounded or reduced to signs, E = F(D + M) weight by weight; see `delta_response.py`.

None of it looks at a codeword. Subspaces are those of the weights in their own unit, in which the attacker truncated.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.extraction.delta_response import read_response, tuned_channels, usual_channels
from hf_fingerprint.extraction.response import MIN_MARK_ENERGY, MIN_VARIANCE
from hf_fingerprint.extraction.whiten import gram_matrix


MIN_GAP, MIN_COSINE, MAX_SLOPE, MAX_RANK_SHARE = 1.5, 0.5, 0.5, 0.9
MIN_SHRINKAGE = 0.1  # squared amplitudes per weight
SAMPLE_ROWS = 64
MIN_LOST_ENERGY = 1.0  # squared amplitudes of the owner's delta outside the subspace, per weight
MIN_SINGULAR, MIN_SINGLE_SINGULAR = 1e-5, 1e-3  # of the largest: what a Gram matrix in `float64` or `float32` resolves
MIN_GAIN = 1.05  # in information, over a reading without the ancestor
CLIP_DEVIATIONS = 3.0
CHANNEL_PRIOR = 16.0  # directions
_TINY = 1e-30


class DeltaReading(NamedTuple):
    """What a suspect's delta says about the mark.

    Attributes:
        values (`np.ndarray` of shape `(m, n)`): the mark times `gains`, plus noise of variance 1.
        gains (`np.ndarray` of shape `(m, n)`): the share of the mark in each value.
        is_projected (`bool`): whether it was read in the subspace of a truncated delta.
    """

    values: np.ndarray
    gains: np.ndarray
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
    rows, columns = usual_channels(suspect, owner, kept)
    if not (rows.all() and columns.all()):
        usual = rows[:, None] & columns
        suspect, owner, kept = suspect * usual, owner * usual, kept & usual
    if np.mean(kept & (suspect != 0)) > 1 / 2 and _may_be_truncated(suspect, owner, inverse):
        projected = _read_subspace(suspect, owner, inverse, whole)
        if projected is not None:
            return projected._replace(gains=projected.gains * kept)
    found = _read_weights(suspect, owner, inverse, kept, MIN_GAIN if whole else 0.0)
    return None if found is None else DeltaReading(*found, False)


def _read_weights(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray, least_gain: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads weight by weight, with a response of its own for channels that the owner hardly tuned."""
    rows, columns = tuned_channels(owner, inverse, kept)
    if rows.all() and columns.all():
        return read_response(suspect, owner, inverse, kept, least_gain)
    tuned = rows[:, None] & columns
    one, other = (read_response(suspect, owner, inverse, kept & part, least_gain) for part in (tuned, ~tuned))
    if one is None or other is None:
        return other if one is None else one
    return one[0] + other[0], one[1] + other[1]


def _shrinkage(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray) -> float:
    """How much of the owner's delta is gone along itself, in squared amplitudes per weight. Truncated, it is what was
    lost, less the little that the mark adds along its leading directions."""
    shared, own = (np.einsum("mn,mn->m", each, owner) for each in (suspect, owner))
    return float((own - shared) @ np.square(inverse, dtype=np.float64)) / owner.size


def _read_subspace(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, whole: bool) -> DeltaReading | None:
    """The projected mark, if the delta was truncated: its singular values have a gap, and the owner's delta lacks
    what is beyond it."""
    found = _leading_vectors(suspect)
    if found is None:
        return None
    left, values, right = found
    within = owner @ right.T
    if _cosine(values, left, within) < MIN_COSINE:
        return None
    lost = _lost(suspect, owner, inverse, left if whole else None, right)
    if lost is None:
        return None
    mark = (left * np.einsum("mr,mr->r", left, within)) @ right
    mark -= owner
    mark *= inverse[:, None]
    mark += lost
    return _to_unit_variance(mark, _kept_shares(left if whole else None, right))


def _lost(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, left: np.ndarray | None, right: np.ndarray
) -> np.ndarray | None:
    """What the suspect lost of the owner's delta beyond a subspace, in amplitudes; `None` if it lost too little."""
    lost, beyond = _outside(owner, left, right), _outside(suspect, left, right)
    energy = float(np.vdot(lost, lost))
    slope = float(np.vdot(lost, beyond)) / energy if energy > 0 else 1.0
    lost *= inverse[:, None]
    return None if slope > MAX_SLOPE or float(np.mean(np.square(lost))) < MIN_LOST_ENERGY else lost


def _may_be_truncated(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray) -> bool:
    """Whether the owner's delta shrank, or some rows of the suspect's lack what is beyond a few directions.

    Where the suspect was trained after it, what its drift adds along the owner's delta can outweigh what is gone.
    """
    if _shrinkage(suspect, owner, inverse) > MIN_SHRINKAGE:
        return True
    rows = slice(None, None, max(1, len(suspect) // SAMPLE_ROWS))
    found = _leading_vectors(suspect[rows])
    return found is not None and _lost(suspect[rows], owner[rows], inverse[rows], None, found[2]) is not None


def _cosine(values: np.ndarray, left: np.ndarray, within: np.ndarray) -> float:
    """The cosine of the suspect's delta and the owner's in the subspace: that of unrelated drift is about 0."""
    owners = left.T @ within
    length = float(np.linalg.norm(values)) * float(np.linalg.norm(owners))
    return float(values @ np.diagonal(owners)) / length if length > 0 else 0.0


def _leading_vectors(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The singular vectors and values above the largest gap in the singular values of a delta, if it has one: vectors
    of the left in columns, `(m, rank)`, values `(rank,)`, and vectors of the right in rows, `(rank, n)`."""
    from scipy.linalg import eigh

    largest = float(np.abs(delta).max())
    if not largest > 0:
        return None
    for dtype, least in ((np.float32, MIN_SINGLE_SINGULAR), (np.float64, MIN_SINGULAR)):
        gram, wide = gram_matrix((delta / largest).astype(dtype, copy=False))
        squares = eigh(gram, eigvals_only=True, check_finite=False)[::-1]
        if squares[int(MAX_RANK_SHARE * len(squares))] > least**2 * squares[0]:
            break
    rank = _rank(squares, least)
    if rank is None:
        return None
    sides = len(squares) - rank, len(squares) - 1
    squares, vectors = eigh(gram, subset_by_index=sides, check_finite=False, overwrite_a=True)
    vectors = vectors.astype(delta.dtype, copy=False)
    values = (largest * np.sqrt(squares)).astype(delta.dtype)
    other = (delta.T if wide else delta) @ (vectors / values)
    return (vectors, values, other.T) if wide else (other, values, vectors.T)


def _rank(squares: np.ndarray, least: float) -> int | None:
    """How many squared singular values are above their largest gap; `None` if it is small."""
    values = np.sqrt(np.maximum(squares, least**2 * squares[0]))
    ratios = (values[:-1] / values[1:])[: max(1, int(MAX_RANK_SHARE * len(values)))]
    return 1 + int(np.argmax(ratios)) if len(ratios) and ratios.max() >= MIN_GAP else None


def _outside(matrix: np.ndarray, left: np.ndarray | None, right: np.ndarray) -> np.ndarray:
    """`(1 - P_U) matrix (1 - P_V)` for orthonormal columns of `left`, if given, and rows of `right`."""
    outside = matrix - (matrix @ right.T) @ right
    return outside if left is None else outside - left @ (left.T @ outside)


def _kept_shares(left: np.ndarray | None, right: np.ndarray) -> np.ndarray:
    """The share of each weight's own mark that is in its projected value, `(m, n)` or, without `left`, `(1, n)`."""
    across = np.square(right)
    columns = across.sum(0)
    if left is None:
        return columns[None, :]
    down = np.square(left)
    rows = down.sum(1)[:, None]
    return rows + (1 - rows) * columns - down @ across


def _to_unit_variance(values: np.ndarray, shares: np.ndarray) -> DeltaReading | None:
    """Divides each value by its deviation. A projected mark alone has the variance `shares`; columns and rows in which
    the suspect drifted have more, by a factor each. Columns with far less hold no mark."""
    if not values.any():
        return None
    shares = np.broadcast_to(shares, values.shape)
    squares = np.square(values)
    columns = _excess(squares, shares, 0)
    rows = _excess(squares / np.maximum(columns, MIN_VARIANCE), shares, 1)[:, None]
    drift = np.maximum(columns, MIN_VARIANCE) * np.maximum(rows, MIN_VARIANCE)
    values /= np.sqrt(np.maximum(shares * drift, _TINY))
    gains = np.sqrt(np.maximum(shares, 0) / drift) * (columns > MIN_MARK_ENERGY)
    return DeltaReading(np.clip(values, -CLIP_DEVIATIONS, CLIP_DEVIATIONS, out=values), gains, True)


def _excess(squares: np.ndarray, shares: np.ndarray, axis: int) -> np.ndarray:
    """The ratio of squares to shares along an axis, after some more directions with the median ratio. A channel's
    shares add up to its number of directions."""
    found, expected = squares.sum(axis), np.maximum(shares.sum(axis), _TINY)
    return (found + CHANNEL_PRIOR * np.median(found / expected)) / (expected + CHANNEL_PRIOR)
