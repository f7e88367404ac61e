"""Which rows and columns of the suspect's tensor are which of the base's, and by what factors they were multiplied.

Activations give a first assignment; the weights themselves, of which there are many more, then correct it: rows are
compared once the columns are known, and columns once the rows are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.duplicate_units import Merged, cosines


PASSES = 2
ROUNDS = 20
SETTLED = 1e-5
UNLIKE = 0.3
SIMPLER = 1.1  # a factor for each row and column must explain so much more
LARGE = 1 << 20  # weights: with fewer an assignment takes no time, and chance looks like something
CHANCE = 20.0  # standard deviations; strangers have more in common than chance, as activations chose what to compare
BY_CHANCE = 1.5  # times the greatest likeness that strangers have by chance
_TINY = 1e-20


@dataclass(frozen=True)
class Rearrangement:
    """How a suspect's tensor is put in the base's order.

    Attributes:
        rows (`np.ndarray` of shape `(rows,)`): for each row of the base, the suspect's.
        columns (`np.ndarray` of shape `(channels in,)`): for each input channel of the base, the suspect's.
        row_factors, column_factors (`np.ndarray`): what they are multiplied with.
        merged ([`Merged`], *optional*): input channels of the suspect that are one.
    """

    rows: np.ndarray
    columns: np.ndarray
    row_factors: np.ndarray
    column_factors: np.ndarray
    merged: Merged | None = None

    def __call__(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's tensor in the base's order, `(rows, channels in, kernel)`."""
        theirs = theirs if self.merged is None else self.merged(theirs)
        return theirs[self.rows][:, self.columns] * self.row_factors[:, None, None] * self.column_factors[:, None]


def rearrange(
    ours: np.ndarray,
    theirs: np.ndarray,
    seen: tuple[Activations, Activations] | None,
    merged: Merged | None = None,
) -> Rearrangement:
    """Finds the rearrangement that makes a suspect's tensor most like the base's.

    Args:
        ours (`np.ndarray` of shape `(rows, channels in, kernel)`): the base's weights, `float32`.
        theirs (`np.ndarray` of the same shape, or larger): the suspect's.
        seen (pair of [`Activations`], *optional*): what the module does in both; without, rows or columns must have
            stayed.
        merged ([`Merged`], *optional*): input channels of the suspect's that are one.
    """
    channels = ours.shape[1]
    if seen is None:
        return rearrange_by(ours, theirs, [np.arange(len(ours))], [np.arange(channels)])
    outputs = _centred(seen[0].outputs, seen[1].outputs)
    inputs = _centred(seen[0].inputs, seen[1].inputs) if len(seen[0].inputs) == channels else None  # if not depthwise
    row_likeness, column_likeness = cosines(*outputs), None if inputs is None else cosines(*inputs)
    if column_likeness is not None and ours.shape == theirs.shape and ours.size >= LARGE:
        at_once = _at_once(row_likeness, column_likeness)
        if _likeness(ours, at_once(theirs)) < CHANCE / np.sqrt(ours.size):
            return at_once
    rows, row_factors = _first(row_likeness, *outputs)
    columns, factors = np.arange(channels), np.ones(channels)
    if inputs is not None and column_likeness is not None:
        columns, factors = _first(column_likeness, *inputs)
        if merged is not None:
            columns, theirs = merged.one[columns], merged(theirs)
    found = _by_weights(ours, theirs, Rearrangement(rows, columns, row_factors, 1 / factors), True)
    return replace(_simplest(ours, theirs, found), merged=merged)


def _at_once(*likeness: np.ndarray) -> Rearrangement:
    """Each channel by the one that does most alike, whether or not another took it: of what is one model's, enough are
    right to tell it from a stranger's, where an assignment takes longest."""
    rows, columns = (np.abs(each).argmax(1) for each in likeness)
    row_signs, column_signs = (
        np.where(each[np.arange(len(order)), order] < 0, np.float32(-1), np.float32(1))
        for each, order in zip(likeness, (rows, columns), strict=True)
    )
    return Rearrangement(rows, columns, row_signs, column_signs)


def rearrange_by(
    ours: np.ndarray,
    theirs: np.ndarray,
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    merged: Merged | None = None,
) -> Rearrangement:
    """Finds it by the weights alone, where the order of one side is among some that are known.

    Args:
        ours, theirs (`np.ndarray` of shape `(rows, channels in, kernel)`): see [`rearrange`].
        rows (sequence of `np.ndarray` of shape `(rows,)`): for each row of the base, perhaps, the suspect's.
        columns (sequence of `np.ndarray` of shape `(channels in,)`): the same of the input channels; at least one
            order of either.
        merged ([`Merged`], *optional*): input channels of the suspect's that are one.
    """
    count, channels, _ = ours.shape
    if merged is not None:
        columns, theirs = [merged.one[order] for order in columns], merged(theirs)
    ones = np.ones(count), np.ones(channels)
    starts = [(Rearrangement(order, np.arange(channels), *ones), True) for order in rows]
    starts += [(Rearrangement(np.arange(count), order, *ones), False) for order in columns]
    tried = [_by_weights(ours, theirs, start, columns_first, known=True) for start, columns_first in starts]
    best = max(tried, key=lambda one: _likeness(ours, one(theirs)))
    return replace(_simplest(ours, theirs, best), merged=merged)


def in_order(
    ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray, columns: np.ndarray, merged: Merged | None = None
) -> Rearrangement:
    """The rearrangement with these orders, and the factors that go with them."""
    theirs = theirs if merged is None else merged(theirs)
    found = Rearrangement(rows, columns, np.ones(len(rows)), np.ones(len(columns)))
    return replace(_simplest(ours, theirs, _with_factors(ours, theirs, found, False)), merged=merged)


def _simplest(ours: np.ndarray, theirs: np.ndarray, found: Rearrangement) -> Rearrangement:
    """The same without factors of rows or columns that explain next to nothing: of weights that drifted, they would
    take along what the mark is."""
    placed = theirs[found.rows][:, found.columns].astype(np.float64)
    reference = np.where(placed != 0, ours, 0.0)
    power, products = (reference**2).sum(2), (placed * reference).sum(2)
    no_rows, no_columns = np.ones(len(found.rows)), np.ones(len(found.columns))
    choices = [
        (no_rows, no_columns),
        (_ratio(power.sum(1), products.sum(1), no_rows), no_columns),
        (no_rows, _ratio(power.sum(0), products.sum(0), no_columns)),
        (found.row_factors, found.column_factors),
    ]
    left = [
        _unexplained(np.square(placed * r[:, None, None] * c[:, None] - reference).sum(2), power) for r, c in choices
    ]
    rows, columns = next(choice for choice, each in zip(choices, left, strict=True) if each <= SIMPLER * min(left))
    return replace(found, row_factors=rows.astype(np.float32), column_factors=columns.astype(np.float32))


def _unexplained(left: np.ndarray, power: np.ndarray) -> float:
    """The sum of what is left, where rows, or columns, that are others altogether count as their own energy."""
    return min(float(np.minimum(left.sum(axis), power.sum(axis)).sum()) for axis in (0, 1))


def _by_weights(
    ours: np.ndarray, theirs: np.ndarray, found: Rearrangement, columns_first: bool, known: bool = False
) -> Rearrangement:
    """Corrects columns by rows and rows by columns until neither changes; `known` gives up at once if the side that is
    said to be right makes the other no more alike than chance does."""
    for half in range(2 * PASSES):
        columns = columns_first == (half % 2 == 0)
        if columns:
            placed = theirs[found.rows] * found.row_factors.astype(np.float32)[:, None, None]
            one, two = ours.swapaxes(0, 1), placed.swapaxes(0, 1)
        else:
            one, two = ours, theirs[:, found.columns] * found.column_factors.astype(np.float32)[:, None]
        likeness = np.abs(cosines(one, two))
        if known and not half and np.median(likeness.max(1)) < _by_chance(one.size // len(one), len(two)):
            return found
        order = assign(likeness)
        settled = half > 0 and np.array_equal(order, found.columns if columns else found.rows)
        if columns:
            found = replace(found, columns=order, column_factors=np.ones(len(order)))
        else:
            found = replace(found, rows=order, row_factors=np.ones(len(order)))
        found = _with_factors(ours, theirs, found, columns)
        if settled:
            break
    return found


def _by_chance(length: int, candidates: int) -> float:
    """What the likeliest of so many vectors of this length may be like by chance."""
    return min(UNLIKE, BY_CHANCE * float(np.sqrt(2 * np.log(max(candidates, 2)) / length)))


def _likeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    scale = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
    return float(np.vdot(ours, theirs)) / scale if scale > 0 else 0.0


def _centred(*activations: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(values - values.mean(1, keepdims=True) for values in activations)


def _first(likeness: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of their activations that is ours, and what they are to be multiplied with to give ours."""
    order = assign(np.abs(likeness))
    products, power = np.einsum("cs,cs->c", ours, theirs[order]), np.einsum("cs,cs->c", ours, ours)
    return order, np.divide(power, products, out=np.ones(len(order)), where=np.abs(products) > _TINY)


def assign(likeness: np.ndarray) -> np.ndarray:
    """For each row the column that it is most like, no column twice, unless nothing is like anything: `(rows,)` for
    `(rows, columns >= rows)`."""
    best = likeness.argmax(1)
    if len(np.unique(best)) == len(best) or np.median(likeness.max(1)) < UNLIKE:
        return best
    return linear_sum_assignment(-likeness)[1]


def _with_factors(ours: np.ndarray, theirs: np.ndarray, found: Rearrangement, columns_first: bool) -> Rearrangement:
    """The factors of rows and columns, each in turn, that fit the weights; weights that are exactly 0 don't count.

    `theirs = ours / factor + noise` is fitted, and not the other way round: noise in what is fitted does no harm,
    noise in what it is fitted with would make the factors smaller.
    """
    placed = theirs[found.rows][:, found.columns].astype(np.float64)
    kept = placed != 0
    reference = np.where(kept, ours, 0.0)
    power, products = (reference**2).sum(2), (placed * reference).sum(2)
    row_power, column_power = power.sum(1), power.sum(0)
    rows, columns = found.row_factors.astype(np.float64), found.column_factors.astype(np.float64)
    for _ in range(ROUNDS):
        before = rows, columns
        if columns_first:
            columns = _ratio(column_power, rows @ products, columns)
        rows = _ratio(row_power, products @ columns, rows)
        columns = _ratio(column_power, rows @ products, columns)
        if all(np.allclose(a, b, rtol=SETTLED) for a, b in zip(before, (rows, columns), strict=True)):
            break
    return replace(found, row_factors=rows.astype(np.float32), column_factors=columns.astype(np.float32))


def _ratio(power: np.ndarray, products: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.divide(power, products, out=otherwise.copy(), where=np.abs(products) > _TINY)
