"""Reads the mark from a copy's delta that was truncated to its leading singular directions, and then trained.

The owner's delta D is known, and the mark M was added to it, so E = F(D + M) + N with drift N. F takes M's part
outside both of the subspaces U and V that it keeps. To first order in M, what remains is `T(M)`, with

    T(M) = M - (1 - P_U) M (1 - P_V),

and so is that of D, whose own subspaces are known. Then `x = E - T(D)` is T(M) + N. N is divided by its size in each
column, whitened as in `whiten.py` and divided once more; T of that is the matched filter. How much of the mark it
keeps is measured by a probe: T of random signs is added to x, and the change compared with it (S. Ramani, T. Blu,
M. Unser, "Monte-Carlo SURE", IEEE Trans. Image Processing 17(9), 2008, eq. 12). None of it looks at a codeword.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.extraction.blas import scipy_linalg
from hf_fingerprint.extraction.whiten import gram_matrix, whiten


MIN_GAP, MIN_COSINE, MIN_CONTRAST, MAX_RANK_SHARE = 1.5, 0.5, 0.5, 0.9
MIN_LOST_ENERGY = 1.0  # squared amplitudes of the owner's delta outside the subspace, per weight
MAX_DRIFT_ENERGY = 1.0  # squared amplitudes per weight; with more, the drift turns a subspace by more than the mark
MIN_SINGULAR, MIN_SINGLE_SINGULAR = 1e-5, 1e-3  # of the largest: what a Gram matrix in `float64` or `float32` resolves
SAMPLE_ROWS = 64
SURE_DEVIATIONS = 4.0
PROBE = 0.25  # of the mark's amplitude
CLIP_DEVIATIONS = 3.0
_TINY = 1e-30


class _Subspace(NamedTuple):
    """The singular directions that a truncation kept.

    Attributes:
        left (`np.ndarray` of shape `(m, rank)` or `None`): orthonormal columns; `None` if they aren't known.
        right (`np.ndarray` of shape `(rank, n)`): orthonormal rows.
    """

    left: np.ndarray | None
    right: np.ndarray

    def part(self, matrix: np.ndarray) -> np.ndarray:
        """T of a matrix: what is inside one of the subspaces."""
        inside = (matrix @ self.right.T) @ self.right
        return inside if self.left is None else inside + self.left @ (self.left.T @ (matrix - inside))

    def shares(self) -> np.ndarray:
        """The share of each weight's own mark that T keeps in it, `(m, n)` or, of the right alone, `(1, n)`."""
        across = np.square(self.right)
        columns = across.sum(0)
        if self.left is None:
            return columns[None, :]
        down = np.square(self.left)
        rows = down.sum(1)[:, None]
        return rows + (1 - rows) * columns - down @ across


def read_truncated(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, whole: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads the mark in the subspace of a truncated delta.

    Args:
        suspect, owner, inverse, whole: see [`read_delta`].

    Returns:
        `(values, gains)`, `float32` of shape `(m, n)`: the mark times `gains` plus noise of variance 1, and `gains`.
        `None` if the delta was not truncated.
    """
    subspace = _find_subspace(suspect, owner, inverse, whole)
    if subspace is None:
        return None
    difference = suspect - subspace.part(owner)
    if subspace.left is not None:  # singular values may have been lessened too, or grown in training
        own = np.einsum("mr,mr->r", subspace.left, difference @ subspace.right.T)
        difference -= (subspace.left * own) @ subspace.right
    difference *= inverse[:, None]
    level = 1 / np.sqrt(1 + np.mean(np.square(difference), axis=0))  # the mark's in each column, over mark and drift
    level /= np.sqrt(np.mean(np.square(level)))
    values, kept = _matched_filter(difference, subspace, inverse, level)
    shares = subspace.shares() * np.square(level)
    energy, total = float(np.vdot(values, values)), float(np.broadcast_to(shares, values.shape).sum())
    if not (energy > 0 and kept > 0):
        return None
    values /= np.sqrt(np.maximum(shares * (energy / total), _TINY))
    gains = np.sqrt(np.maximum(shares, 0)) * np.float32(kept / np.sqrt(energy * total))
    return np.clip(values, -CLIP_DEVIATIONS, CLIP_DEVIATIONS, out=values), gains


def _matched_filter(
    difference: np.ndarray, subspace: _Subspace, inverse: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, float]:
    """The filtered difference, and its mean product with the mark, times the number of weights.

    Args:
        difference (`np.ndarray` of shape `(m, n)`): in amplitudes; it is overwritten.
        level (`np.ndarray` of shape `(n,)`): what columns are multiplied by, before whitening and after it.
    """
    scale = inverse[:, None] * level
    amplitude = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)[:, None]
    difference *= level
    signs = np.random.default_rng(0).integers(0, 2, difference.shape, np.int8) * np.float32(2) - 1
    signs *= amplitude
    probe = subspace.part(signs)
    del signs
    probe *= PROBE * scale
    white, _ = whiten(difference)
    difference += probe
    change, _ = whiten(difference)
    change -= white
    kept = float(np.vdot(probe, change)) / PROBE**2
    del change, probe
    white *= scale
    values = subspace.part(white)
    values *= amplitude
    return values, kept


def may_be_truncated(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray) -> bool:
    """Whether some rows of the suspect's delta lack what the owner's has beyond its leading directions."""
    rows = slice(None, None, max(1, len(suspect) // SAMPLE_ROWS))
    return _leading_owners(suspect[rows], owner[rows], inverse[rows]) is not None


def _find_subspace(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, whole: bool) -> _Subspace | None:
    """The suspect's subspace, or the owner's if drift turned the suspect's by more than the mark did the owner's.

    Of a part of the rows, only the suspect's right directions are those of the whole.
    """
    found = _leading_suspects(suspect, owner, inverse, whole)
    if found is not None:
        beyond = (suspect - found.part(suspect)) * inverse[:, None]
        if not whole or float(np.mean(np.square(beyond))) < MAX_DRIFT_ENERGY:
            return found
    return _leading_owners(suspect, owner, inverse) if whole else None


def _leading_owners(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray) -> _Subspace | None:
    """The owner's leading directions, up to the rank at which their part in the suspect ends; `None` if none does.

    Only directions whose singular value is above the mark's norm are also the copy's.
    """
    left, values, right = _singular_vectors(owner)
    seen = suspect @ right.T
    kept = np.einsum("mr,mr->r", left, seen)
    doubt = np.sqrt(np.maximum(np.square(seen).sum(0) - np.square(kept), 0) / len(seen))  # what drift adds to each
    amplitude = float(np.sqrt(np.mean(1 / np.square(inverse[inverse > 0])))) if inverse.any() else 0.0
    most = int(np.sum(values > amplitude * np.sqrt(owner.shape).sum()))
    rank = int(np.argmin(np.cumsum(np.concatenate([[0.0], values * (values - 2 * kept)]))[: most + 1]))
    if not 0 < rank < MAX_RANK_SHARE * len(values):
        return None
    shares, variance = [], 0.0
    for part in (slice(0, rank), slice(rank, None)):
        energy = max(_TINY, float(np.vdot(values[part], values[part])))
        shares.append(float(np.vdot(kept[part], values[part])) / energy)
        variance += float(np.square(values[part] * doubt[part]).sum()) / energy**2
    if not shares[0] - shares[1] > max(MIN_CONTRAST, SURE_DEVIATIONS * np.sqrt(variance)):
        return None
    subspace = _Subspace(left[:, :rank], right[:rank])
    return subspace if _matters(owner - subspace.part(owner), inverse) else None


def _matters(lost: np.ndarray, inverse: np.ndarray) -> bool:
    """Whether what was lost of the owner's delta is as large as a mark."""
    return float(np.mean(np.square(lost * inverse[:, None]))) >= MIN_LOST_ENERGY


def _leading_suspects(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, whole: bool) -> _Subspace | None:
    """The suspect's directions above the largest gap in its singular values, if the owner's delta lacks the others."""
    found = _vectors_above_gap(suspect)
    if found is None:
        return None
    left, values, right = found
    owners = left.T @ (owner @ right.T)
    length = float(np.linalg.norm(values)) * float(np.linalg.norm(owners))
    if not float(values @ np.diagonal(owners)) >= MIN_COSINE * length > 0:  # that of other changes is far less
        return None
    subspace = _Subspace(left if whole else None, right)
    lost = owner - subspace.part(owner)
    energy = float(np.vdot(lost, lost))
    left_of_it = float(np.vdot(lost, suspect)) / energy if energy > 0 else 1.0
    return subspace if left_of_it < MIN_CONTRAST and _matters(lost, inverse) else None


def _singular_vectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All singular vectors and values, the largest first: vectors of the left in columns, `(m, k)`, values `(k,)`, and
    vectors of the right in rows, `(k, n)`. Those of the least values are inexact."""
    gram, wide = gram_matrix(matrix)
    squares, vectors = scipy_linalg().eigh(gram, check_finite=False, overwrite_a=True, driver="evd")
    squares, vectors = squares[::-1], vectors[:, ::-1]
    values = np.sqrt(np.maximum(squares, _TINY + MIN_SINGLE_SINGULAR**2 * squares[0]))
    return _with_other_side(matrix, vectors, values, wide)


def _vectors_above_gap(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The singular vectors and values above the largest gap in the singular values of a delta, if it has one: vectors
    of the left in columns, `(m, rank)`, values `(rank,)`, and vectors of the right in rows, `(rank, n)`."""
    largest = float(np.abs(delta).max())
    if not largest > 0:
        return None
    for dtype, least in ((np.float32, MIN_SINGLE_SINGULAR), (np.float64, MIN_SINGULAR)):
        gram, wide = gram_matrix((delta / largest).astype(dtype, copy=False))
        squares = scipy_linalg().eigh(gram, eigvals_only=True, check_finite=False)[::-1]
        if squares[int(MAX_RANK_SHARE * len(squares))] > least**2 * squares[0]:
            break
    rank = _rank(squares, least)
    if rank is None:
        return None
    sides = len(squares) - rank, len(squares) - 1
    squares, vectors = scipy_linalg().eigh(gram, subset_by_index=sides, check_finite=False, overwrite_a=True)
    vectors = vectors.astype(delta.dtype, copy=False)
    values = (largest * np.sqrt(squares)).astype(delta.dtype)
    return _with_other_side(delta, vectors, values, wide)


def _with_other_side(
    matrix: np.ndarray, vectors: np.ndarray, values: np.ndarray, wide: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors of both sides from those of the shorter one, and the values between them."""
    other = (matrix.T if wide else matrix) @ (vectors / values)
    return (vectors, values, other.T) if wide else (other, values, vectors.T)


def _rank(squares: np.ndarray, least: float) -> int | None:
    """How many squared singular values are above their largest gap; `None` if it is small."""
    values = np.sqrt(np.maximum(squares, least**2 * squares[0]))
    ratios = (values[:-1] / values[1:])[: max(1, int(MAX_RANK_SHARE * len(values)))]
    return 1 + int(np.argmax(ratios)) if len(ratios) and ratios.max() >= MIN_GAP else None
