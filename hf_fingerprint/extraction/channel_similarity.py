"""How similar the channels of two layers are, how similar chance makes them, and which of them are the same.

Rows are compared by their directions, without what the base's have in common.
"""

from typing import NamedTuple

import numpy as np


SAMPLED_WEIGHTS = 1 << 10  # of a row that are compared
SCREENED_ROWS = 16
MIN_SIMILARITY, CLEAR_SIMILARITY = 0.3, 0.9
MAX_CHANCE = 0.8
MIN_EXCESS = 0.2  # of what chance leaves: the similarity of assigned rows beyond chance
MAX_CONTESTED = 1 << 11  # channels that are most similar to the same one, and assigned
_TINY = 1e-20


class KeptChannels(NamedTuple):
    """Where the channels of a suspect's layer are in the base's.

    Attributes:
        rows (`np.ndarray` of shape `(rows,)`): the base's row of each of the suspect's.
        columns (`np.ndarray` of shape `(columns,)` or `(rows, columns)`): the base's column of each of the suspect's;
            in a grouped convolution for each row, within its group.
        similarity (`float`): the mean cosine of the rows.
    """

    rows: np.ndarray
    columns: np.ndarray
    similarity: float


def compare_rows(ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> KeptChannels:
    """The similarity of rows that are paired, with columns that are paired."""
    step = 1 + (theirs.shape[1] - 1) // max(1, SAMPLED_WEIGHTS // theirs.shape[2])
    one = ours[rows[:, None], columns[..., ::step]].reshape(len(rows), -1)
    two = theirs[:, ::step].reshape(len(rows), -1)
    one, two = _directions(one, two)
    return KeptChannels(rows, columns, float(np.einsum("rc,rc->r", one, two).mean()))


def sample_directions(ours: np.ndarray, theirs: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The directions of all rows, in a sample of the suspect's columns and their counterparts."""
    step = 1 + (theirs.shape[1] - 1) // max(1, SAMPLED_WEIGHTS // theirs.shape[2])
    one, two = ours[:, columns[::step]], theirs[:, ::step]
    return _directions(one.reshape(len(one), -1), two.reshape(len(two), -1))


def assign_channels(similarity: np.ndarray) -> tuple[np.ndarray, int]:
    """For each row, its most similar column, none twice.

    Only the rows that are most similar to the same column are assigned jointly, and only if these are few.

    Args:
        similarity (`np.ndarray` of shape `(rows, columns)`): at least as many columns as rows.

    Returns:
        `(columns, steps)`: the columns, `(rows,)`, and the most steps that the joint assignment takes.
    """
    from scipy.optimize import linear_sum_assignment

    best = similarity.argmax(1)
    counts = np.bincount(best, minlength=similarity.shape[1])
    contested, free = np.flatnonzero(counts[best] > 1), np.flatnonzero(counts != 1)
    if not 0 < len(contested) <= MAX_CONTESTED:
        return best, 0
    rows, columns = linear_sum_assignment(-similarity[np.ix_(contested, free)])
    best[contested[rows]] = free[columns]
    return best, len(contested) ** 2 * len(free)


def chance_cosine(candidates: int, length: int) -> float:
    """About the largest cosine of a vector of this length with so many unrelated ones."""
    length = min(length, SAMPLED_WEIGHTS)
    return float(np.sqrt(1 - max(candidates, 2) ** (-2 / (length - 1)))) if length > 1 else 1.0


def least_assigned_similarity(ours: np.ndarray) -> float:
    """The least mean similarity of assigned rows: more than chance gives, and than the base's rows have with others.

    Args:
        ours (`np.ndarray` of shape `(rows, sample)`): the directions of the base's rows.
    """
    places = np.arange(0, len(ours), 1 + (len(ours) - 1) // SCREENED_ROWS)
    similarity = ours[places] @ ours.T
    similarity[np.arange(len(places)), places] = -1
    chance = min(1.0, max(chance_cosine(*ours.shape), float(similarity.max(1).mean())))
    return max(MIN_SIMILARITY, chance + MIN_EXCESS * (1 - chance))


def least_known_similarity(rows: int, clear: bool = False) -> float:
    """The least mean similarity of rows in a known order; of few rows, more."""
    return max(CLEAR_SIMILARITY if clear else MIN_SIMILARITY, min(0.6, 4 / np.sqrt(max(rows, 1))))


def is_decidable(shape: tuple[int, int, int]) -> bool:
    """Whether a layer's rows are long enough to be recognized without a known order."""
    return chance_cosine(shape[0], shape[1] * shape[2]) <= MAX_CHANCE


def _directions(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of norm 1, without what the base's have in common, which says nothing about which row it is."""
    mean = ours.mean(0) if len(ours) > 1 else np.zeros(1, np.float32)
    one, two = (values - mean for values in (ours, theirs))
    norms = [np.linalg.norm(values, axis=1, keepdims=True) for values in (one, two)]
    one, two = (values / np.where(norm > _TINY, norm, 1) for values, norm in zip((one, two), norms, strict=True))
    return one, two
