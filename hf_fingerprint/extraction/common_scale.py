"""Finds the factor that all of a tensor's weights share, such as weight decay's or a merge's.

A suspect's tensor is about `c (W + M) + N` for the base's weights W, the mark M and drift N. What c takes from W can
be hundreds of times the mark, so the tensor is divided by c first. It is the coefficient of a regression on a sample
of rows, if along the leading singular directions of W it is about what it is along the others, and none is gone: what
is left after a truncation has no common factor. None of it looks at a codeword.
"""

import numpy as np

from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.tensor_place import TensorPlace


SAMPLE_ROWS, LEADING_SHARE = 64, 1 / 4
MIN_EXPLAINED = 0.1  # of the difference's energy
MAX_CONTRAST = 0.5  # relative to the change
MIN_LAST = 0.25  # what is left of the singular values before the last quarter, relative to the factor
MAX_CHANNEL_ENERGY = 16.0  # of the median
LEAST_CHANNELS, MAX_SPOILED = 0.05, 1.1  # the share of the channels that moved least, and how much more they may have
MIN_SCALE, MAX_SCALE = 0.05, 20.0
_TINY = 1e-30


def common_scale(place: TensorPlace, most: float = np.inf) -> float:
    """The factor that the suspect's weights share, or 1 if they share none that matters.

    Rows and columns that moved by far more than most are left out: idle channels can be moved at will.

    Args:
        place ([`TensorPlace`]): the tensor.
        most (`float`, *optional*): the variance that another model leaves, such as that of pruned weights, in squared
            amplitudes. A factor that leaves more is none.
    """
    first, count = place.rows.start, place.rows.stop - place.rows.start
    chosen = [first + row for row in sample_row_indices(count, SAMPLE_ROWS)]
    units = place.inverse[chosen, None].astype(np.float64)
    ours, theirs = (units * each for each in place.load_sample(chosen)[:2])
    moved = theirs - ours
    for axis in (1, 0):
        usual = _usual(np.square(moved).sum(axis), np.square(ours).sum(axis))
        ours, moved = (each[usual] if axis else each[:, usual] for each in (ours, moved))
    distance, own = (float(np.square(each).sum()) for each in (moved, ours))
    change = float(np.vdot(moved, ours)) / max(own, _TINY)
    is_large = change**2 * own > MIN_EXPLAINED * distance and MIN_SCALE <= 1 + change <= MAX_SCALE
    left_over = moved - change * ours
    if not (is_large and float(np.mean(np.square(left_over))) < most * (1 + change) ** 2):
        return 1.0
    is_common = not _spoils_channels(moved, left_over) and _holds_in_all_directions(change, ours, moved)
    return 1 + change if is_common else 1.0


def _holds_in_all_directions(change: float, ours: np.ndarray, moved: np.ndarray) -> bool:
    """Whether the base's leading directions changed as much as the others, and none is gone."""
    left, values, right = np.linalg.svd(ours, full_matrices=False)
    changes, squares = values * np.einsum("mr,rm->r", left, right @ moved.T), np.square(values)
    leading = max(1, int(LEADING_SHARE * len(values)))
    lead, rest = (
        float(changes[part].sum() / max(squares[part].sum(), _TINY))
        for part in (slice(0, leading), slice(leading, None))
    )
    last = -1 - len(values) // 4
    is_full = np.linalg.svd(ours + moved, compute_uv=False)[last] > MIN_LAST * (1 + change) * values[last]
    return bool(is_full) and abs(lead - rest) <= MAX_CONTRAST * abs(change)


def _spoils_channels(moved: np.ndarray, left_over: np.ndarray) -> bool:
    """Whether the channels that moved least would have moved more, as where only some channels shrank."""
    before, after = (
        [float(np.quantile(np.square(each).mean(axis), LEAST_CHANNELS)) for axis in (0, 1)]
        for each in (moved, left_over)
    )
    return any(new > MAX_SPOILED * old for old, new in zip(before, after, strict=True))


def _usual(moved: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which channels moved by no more than most, for their size."""
    ratios = np.divide(moved, own, out=np.zeros_like(own), where=own > 0)
    return (own > 0) & (ratios <= MAX_CHANNEL_ENERGY * np.median(ratios[own > 0] if own.any() else 0))
