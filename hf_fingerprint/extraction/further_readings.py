"""Further readings of a tensor that drifted: whitened, and with the ancestor. Each is fixed beforehand.

The plain reading of `weigh.py` is best where the drift is white, or where most weights were replaced. Tensors whose
drift has a color are whitened too, and tensors that moved by more than the mark are read with the ancestor, if it is
known. A large tensor is read in pieces of whole rows, each by itself. None of it looks at a codeword.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints.reader import ROW_MULTIPLE
from hf_fingerprint.extraction.ancestor_delta import read_delta
from hf_fingerprint.extraction.pruning_mixture import PruningMixture
from hf_fingerprint.extraction.tensor_place import MAX_DIFFERENCE, MIN_VARIANCE, TensorPlace
from hf_fingerprint.extraction.whiten import GROUP_ROWS, GROUPS, MIN_SIDE, is_colored, whiten


MAX_PIECE_WEIGHTS, MAX_GRAM_SIDE = 1 << 22, 1024
MIN_PROBABILITY, MIN_SPREAD = 0.5, 0.25


class MarkSums(NamedTuple):
    """The signal of one tensor in one reading.

    Attributes:
        sums (`np.ndarray` of shape `(V,)`): weighted sums; a whole mark gives `masses * b`.
        masses (`np.ndarray` of shape `(V,)`): the weight of each position.
        evidence (`float`): the share of the masses that a copy would have; see [`marked_mass`].
    """

    sums: np.ndarray
    masses: np.ndarray
    evidence: float


def marked_mass(masses: np.ndarray) -> np.ndarray:
    """The masses that weights of an unmarked suspect would have in a copy that drifted as much.

    A mass is the inverse of a difference's variance, in squared amplitudes. A mark of its own adds 1 to the variance.
    """
    return masses / (1 + masses)


def read_further(place: TensorPlace, mixture: PruningMixture | None) -> tuple[MarkSums | None, MarkSums | None]:
    """The whitened reading of a tensor that drifted, and the reading with the ancestor.

    Args:
        place ([`TensorPlace`]): the tensor.
        mixture ([`PruningMixture`] or `None`): the mixture, if it was pruned and then trained.

    Returns:
        `(whitened, by_ancestor)`: `None` where a reading can't be made of it.
    """
    whitened = _Sums(place) if _has_color(place) else None
    by_ancestor = None if place.ancestor is None else _Sums(place)
    if whitened is by_ancestor is None:
        return None, None
    for rows in _pieces(place):
        piece = _load_piece(place, rows, mixture)
        if whitened is not None:
            whitened.add(piece, piece.difference, 1.0)
        if by_ancestor is not None:
            _add_delta(by_ancestor, place, piece)
    return (
        None if whitened is None else whitened.found(),
        None if by_ancestor is None else by_ancestor.found(),
    )


def _has_color(place: TensorPlace) -> bool:
    """Whether rows from all over the tensor drifted in common directions; see [`is_colored`]."""
    first, last = place.rows.start, place.rows.stop
    parts = [place.rows]
    if last - first > GROUPS * GROUP_ROWS:
        starts = np.linspace(first, last - GROUP_ROWS, GROUPS).astype(int)
        parts = [slice(at, at + GROUP_ROWS) for at in starts.tolist()]
    return is_colored(np.concatenate([_load_piece(place, rows, None).difference for rows in parts]))


class _Piece(NamedTuple):
    """Some rows of a tensor: the base's weights, the suspect's, their difference in amplitudes, which are kept."""

    rows: slice
    ours: np.ndarray
    theirs: np.ndarray
    difference: np.ndarray
    kept: np.ndarray
    inverse: np.ndarray


def _pieces(place: TensorPlace) -> Iterator[slice]:
    """The rows in pieces whose shorter side is at most 1,024 where they are large."""
    columns, start = place.base_info.columns, place.rows.start
    most = max(1, MAX_PIECE_WEIGHTS // columns)
    if columns > MAX_GRAM_SIDE:
        most = min(most, MAX_GRAM_SIDE)
    step = max(ROW_MULTIPLE, most // ROW_MULTIPLE * ROW_MULTIPLE)
    while start < place.rows.stop:
        yield slice(start, min(place.rows.stop, start + step))
        start += step


def _load_piece(place: TensorPlace, rows: slice, mixture: PruningMixture | None) -> _Piece:
    ours, theirs = place.load_pair(rows)
    inverse = place.inverse[rows]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (theirs - ours) * inverse[:, None]
    kept = np.isfinite(difference) & (theirs != 0) & (inverse > 0)[:, None]
    difference[~kept] = 0
    np.clip(difference, -MAX_DIFFERENCE, MAX_DIFFERENCE, out=difference)
    if mixture is not None:
        kept &= mixture.probability_kept(ours * inverse[:, None], difference) >= MIN_PROBABILITY
        difference *= kept
    return _Piece(rows, ours, theirs, difference, kept, inverse)


def _add_delta(sums: "_Sums", place: TensorPlace, piece: _Piece) -> None:
    """Adds the reading of one piece with the ancestor. Its difference to the base is overwritten."""
    ancestor = place.load_ancestor(piece.rows)
    assert ancestor is not None
    usable = piece.kept & np.isfinite(ancestor)
    with np.errstate(invalid="ignore", over="ignore"):
        suspect, owner = np.subtract(piece.theirs, ancestor, out=piece.difference), piece.ours - ancestor
    del ancestor
    limit = MAX_DIFFERENCE * place.carrier.amplitude[piece.rows, None]
    for delta in (suspect, owner):
        delta[~usable] = 0
        np.clip(delta, -limit, limit, out=delta)
    whole = piece.rows.stop - piece.rows.start == place.base_info.rows
    found = read_delta(suspect, owner, piece.inverse, usable, whole)
    if found is not None:
        sums.add(piece._replace(kept=usable & (found.gains > 0)), found.values, found.gains, found.is_projected)


def _are_spread(weights: np.ndarray, power: float, count: int) -> bool:
    """Whether many of the weights count. Whitening's gain is a mean over all, and not that of a few large values."""
    squares = np.square(weights).reshape(-1)
    return power**2 > MIN_SPREAD * count * float(np.vdot(squares, squares))


class _Sums:
    """The sums of one reading, piece by piece."""

    def __init__(self, place: TensorPlace):
        self._base, self._name = place.base, place.carrier.name
        self._columns = place.base_info.columns
        self._sums, self._masses = np.zeros(place.base.length, np.float32), np.zeros(place.base.length, np.float32)
        self._marked = 0.0

    def add(self, piece: _Piece, values: np.ndarray, gains: "np.ndarray | float", is_white: bool = False) -> None:
        """Adds a piece whose `values` are the mark times `gains`, plus drift.

        Args:
            values (`np.ndarray` of shape `(rows, columns)`): may be changed.
            gains (`np.ndarray` of that shape, or `float`): at least 0; may be changed.
            is_white (`bool`, *optional*, defaults to `False`): whether there is no drift to be divided out.
        """
        own = gains if isinstance(gains, np.ndarray) else None
        weights = np.multiply(gains, piece.kept, out=own, dtype=np.float32)
        power = float(np.vdot(weights, weights))
        if not 0 < power < np.inf:
            return
        gain, values, count = 1.0, np.multiply(values, piece.kept, out=values), int(piece.kept.sum())
        if not is_white and min(values.shape) >= MIN_SIDE and _are_spread(weights, power, count):
            level = np.float32(np.sqrt(power / count))  # whitening is in units of the mark
            weights /= level
            values /= level
            values, gain = whiten(values)
            power = float(np.vdot(weights, weights))
        values *= weights
        energy = float(np.vdot(values, values)) / power
        if not 0 < energy < np.inf or gain <= 0:
            return
        # whitening leaves nothing of drift in few directions; without a mark in it, that would outweigh all tensors
        energy = max(energy, MIN_VARIANCE * gain**2 * power / count)
        projection = TensorProjection(
            self._base.secret, self._name, self._base.length, piece.rows.start * self._columns
        )
        values *= gain / energy
        projection.read(values, self._sums)
        masses = np.square(weights, out=weights)
        masses *= gain**2 / energy
        fold(masses.reshape(-1), projection.offset, self._masses)
        self._marked += float(marked_mass(masses).sum(dtype=np.float64))

    def found(self) -> MarkSums | None:
        """The sums, or `None` if nothing was added."""
        whole = float(self._masses.sum(dtype=np.float64))
        return MarkSums(self._sums, self._masses, self._marked / whole) if whole else None
