"""Matches the rows and columns of the suspect's tensor to the base's, with the factors that they were multiplied by.

Activations give a first assignment, and the weights, of which there are many more, correct it: rows are compared once
the columns are known, and columns once the rows are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.extraction.alignment.activation_matching import Activations
from hf_fingerprint.extraction.alignment.duplicate_units import DuplicateUnits, cosines


PASSES = 2
MAX_FACTOR_STEPS = 20
TOLERANCE = 1e-5
MAX_UNRELATED_SIMILARITY = 0.3
SCREENED_ROWS = 64  # tell whether a known order fits at all
SIMPLER_RATIO = 1.1  # factors for each row and column must explain this much more
LARGE_TENSOR = 1 << 20  # weights; smaller tensors are assigned quickly, and chance similarity is larger in them
CHANCE_DEVIATIONS = 20.0  # unrelated models exceed chance, since activations chose what to compare
CHANCE_FACTOR = 1.5  # times the largest similarity of unrelated vectors by chance
_TINY, _TINY_CHANGE = 1e-20, 1e-8


@dataclass(frozen=True)
class ScaledPermutation:
    """The transform that puts a suspect's tensor into the base's order.

    Attributes:
        rows (`np.ndarray` of shape `(rows,)`): for each row of the base, the index of the suspect's row.
        columns (`np.ndarray` of shape `(channels in,)`): for each input channel of the base, the suspect's.
        row_factors, column_factors (`np.ndarray`): the factors that multiply rows and columns.
        duplicates ([`DuplicateUnits`], *optional*): duplicate input channels of the suspect.
    """

    rows: np.ndarray
    columns: np.ndarray
    row_factors: np.ndarray
    column_factors: np.ndarray
    duplicates: DuplicateUnits | None = None

    def __call__(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's tensor in the base's order, `(rows, channels in, kernel)`."""
        theirs = theirs if self.duplicates is None else self.duplicates(theirs)
        return theirs[self.rows][:, self.columns] * self.row_factors[:, None, None] * self.column_factors[:, None]


def match_weights(
    ours: np.ndarray,
    theirs: np.ndarray,
    activations: tuple[Activations, Activations] | None,
    duplicates: DuplicateUnits | None = None,
) -> ScaledPermutation:
    """Finds the scaled permutation that makes a suspect's tensor most similar to the base's.

    Args:
        ours (`np.ndarray` of shape `(rows, channels in, kernel)`): the base's weights, `float32`.
        theirs (`np.ndarray` of the same shape, or larger): the suspect's weights.
        activations (pair of [`Activations`], *optional*): without them, rows or columns must be in the base's order.
        duplicates ([`DuplicateUnits`], *optional*): duplicate input channels of the suspect.
    """
    channels = ours.shape[1]
    if activations is None:
        return match_weights_given_orders(ours, theirs, [np.arange(len(ours))], [np.arange(channels)])
    depthwise = len(activations[0].inputs) != channels
    outputs = _centered(activations[0].outputs, activations[1].outputs)
    inputs = None if depthwise else _centered(activations[0].inputs, activations[1].inputs)
    row_similarity, column_similarity = cosines(*outputs), None if inputs is None else cosines(*inputs)
    if column_similarity is not None and ours.shape == theirs.shape and ours.size >= LARGE_TENSOR:
        greedy = _match_greedily(row_similarity, column_similarity)
        if _cosine(ours, greedy(theirs)) < CHANCE_DEVIATIONS / np.sqrt(ours.size):
            return greedy
    rows, row_factors = _initial_order(row_similarity, *outputs)
    columns, factors = np.arange(channels), np.ones(channels)
    if inputs is not None and column_similarity is not None:
        columns, factors = _initial_order(column_similarity, *inputs)
        if duplicates is not None:
            columns, theirs = duplicates.representatives[columns], duplicates(theirs)
    found = _refine_by_weights(ours, theirs, ScaledPermutation(rows, columns, row_factors, 1 / factors), True)
    return replace(_simplify_factors(ours, theirs, found), duplicates=duplicates)


def _match_greedily(*similarity: np.ndarray) -> ScaledPermutation:
    """Matches each channel to the most similar one, unassigned: enough to tell related models, and quick for
    others."""
    rows, columns = (np.abs(each).argmax(1) for each in similarity)
    row_signs, column_signs = (
        np.where(each[np.arange(len(order)), order] < 0, np.float32(-1), np.float32(1))
        for each, order in zip(similarity, (rows, columns), strict=True)
    )
    return ScaledPermutation(rows, columns, row_signs, column_signs)


def match_weights_given_orders(
    ours: np.ndarray,
    theirs: np.ndarray,
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    duplicates: DuplicateUnits | None = None,
) -> ScaledPermutation:
    """Finds the scaled permutation by the weights alone, given candidate orders of the rows or of the columns.

    Args:
        ours, theirs (`np.ndarray` of shape `(rows, channels in, kernel)`): see [`match_weights`].
        rows (sequence of `np.ndarray` of shape `(rows,)`): candidate orders of the rows.
        columns (sequence of `np.ndarray` of shape `(channels in,)`): those of the input channels; one or more in all.
        duplicates ([`DuplicateUnits`], *optional*): duplicate input channels of the suspect.
    """
    count, channels, _ = ours.shape
    if duplicates is not None:
        columns, theirs = [duplicates.representatives[order] for order in columns], duplicates(theirs)
    ones = np.ones(count), np.ones(channels)
    starts = [(ScaledPermutation(order, np.arange(channels), *ones), True) for order in rows]
    starts += [(ScaledPermutation(np.arange(count), order, *ones), False) for order in columns]
    tried = [_refine_by_weights(ours, theirs, start, columns_first, known=True) for start, columns_first in starts]
    best = max(tried, key=lambda one: _cosine(ours, one(theirs)))
    return replace(_simplify_factors(ours, theirs, best), duplicates=duplicates)


def fit_scaled_permutation(
    ours: np.ndarray,
    theirs: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    duplicates: DuplicateUnits | None = None,
) -> ScaledPermutation:
    """The scaled permutation with these orders and the factors that fit them best."""
    theirs = theirs if duplicates is None else duplicates(theirs)
    found = ScaledPermutation(rows, columns, np.ones(len(rows)), np.ones(len(columns)))
    return replace(_simplify_factors(ours, theirs, _fit_factors(ours, theirs, found, False)), duplicates=duplicates)


def _simplify_factors(ours: np.ndarray, theirs: np.ndarray, found: ScaledPermutation) -> ScaledPermutation:
    """Drops factors of rows or columns that explain next to nothing, since they would absorb a part of the mark."""
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
    scaled = (placed * rows[:, None, None] * columns[:, None] for rows, columns in choices)
    left = [_unexplained(np.square(each - reference).sum(2), power) for each in scaled]
    rows, columns = next(c for c, each in zip(choices, left, strict=True) if each <= SIMPLER_RATIO * min(left))
    return replace(found, row_factors=rows.astype(np.float32), column_factors=columns.astype(np.float32))


def _unexplained(left: np.ndarray, power: np.ndarray) -> float:
    """The sum of the residual energy, where an unrelated row or column counts at most as its own energy."""
    return min(float(np.minimum(left.sum(axis), power.sum(axis)).sum()) for axis in (0, 1))


def _refine_by_weights(
    ours: np.ndarray, theirs: np.ndarray, found: ScaledPermutation, columns_first: bool, known: bool = False
) -> ScaledPermutation:
    """Corrects columns by rows and rows by columns until neither changes; with `known`, not if they fit by chance."""
    for half in range(2 * PASSES):
        columns = columns_first == (half % 2 == 0)
        if columns:
            placed = theirs[found.rows] * found.row_factors.astype(np.float32)[:, None, None]
            one, two = ours.swapaxes(0, 1), placed.swapaxes(0, 1)
        else:
            one, two = ours, theirs[:, found.columns] * found.column_factors.astype(np.float32)[:, None]
        if known and not half:
            some = np.abs(cosines(one[:: 1 + (len(one) - 1) // SCREENED_ROWS], two))
            if np.median(some.max(1)) < _chance_similarity(one.size // len(one), len(two)):
                return found
        order = assign(np.abs(cosines(one, two)))
        is_converged = half > 0 and np.array_equal(order, found.columns if columns else found.rows)
        if columns:
            found = replace(found, columns=order, column_factors=np.ones(len(order)))
        else:
            found = replace(found, rows=order, row_factors=np.ones(len(order)))
        found = _fit_factors(ours, theirs, found, columns)
        if is_converged:
            break
    return found


def _chance_similarity(length: int, candidates: int) -> float:
    """The largest similarity of so many unrelated vectors of this length that chance may produce."""
    return min(MAX_UNRELATED_SIMILARITY, CHANCE_FACTOR * float(np.sqrt(2 * np.log(max(candidates, 2)) / length)))


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    scale = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
    return float(np.vdot(ours, theirs)) / scale if scale > 0 else 0.0


def _centered(*activations: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(values - values.mean(1, keepdims=True) for values in activations)


def _initial_order(similarity: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order and the factors that turn the suspect's activations into the base's."""
    order = assign(np.abs(similarity))
    products, power = np.einsum("cs,cs->c", ours, theirs[order]), np.einsum("cs,cs->c", ours, ours)
    return order, np.divide(power, products, out=np.ones(len(order)), where=np.abs(products) > _TINY)


def assign(similarity: np.ndarray) -> np.ndarray:
    """For each row, its most similar column: `(rows,)` for `(rows, columns >= rows)`.

    No column is used twice, unless rows and columns are unrelated.
    """
    from scipy.optimize import linear_sum_assignment

    best = similarity.argmax(1)
    if len(np.unique(best)) == len(best) or np.median(similarity.max(1)) < MAX_UNRELATED_SIMILARITY:
        return best
    return linear_sum_assignment(-similarity)[1]


def _fit_factors(
    ours: np.ndarray, theirs: np.ndarray, found: ScaledPermutation, columns_first: bool
) -> ScaledPermutation:
    """Fits the factors of rows and columns in turn; weights that are exactly 0 don't count.

    The model is `theirs = ours / factor + noise`, since noise in a regressor would bias the factors toward 0.
    """
    placed = theirs[found.rows][:, found.columns].astype(np.float64)
    kept = placed != 0
    reference = np.where(kept, ours, 0.0)
    power, products = (reference**2).sum(2), (placed * reference).sum(2)
    row_power, column_power = power.sum(1), power.sum(0)
    rows, columns = found.row_factors.astype(np.float64), found.column_factors.astype(np.float64)
    for _ in range(MAX_FACTOR_STEPS):
        before = rows, columns
        if columns_first:
            columns = _ratio(column_power, rows @ products, columns)
        rows = _ratio(row_power, products @ columns, rows)
        columns = _ratio(column_power, rows @ products, columns)
        if all(_are_close(a, b) for a, b in zip(before, (rows, columns), strict=True)):
            break
    return replace(found, row_factors=rows.astype(np.float32), column_factors=columns.astype(np.float32))


def _are_close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """As `np.allclose`, for finite values; most of the time of small layers would be spent in it."""
    return bool((np.abs(ours - theirs) <= _TINY_CHANGE + TOLERANCE * np.abs(theirs)).all())


def _ratio(power: np.ndarray, products: np.ndarray, default: np.ndarray) -> np.ndarray:
    return np.divide(power, products, out=default.copy(), where=np.abs(products) > _TINY)
