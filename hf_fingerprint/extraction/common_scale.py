"""Finds the factor that all of a tensor's weights share, such as weight decay's or a merge's.

A suspect's tensor is about `c (W + M) + N` for the base's weights W, the mark M and drift N. What c takes from W can
be hundreds of times the mark, so the tensor is divided by c first. It is the coefficient of a regression on a sample
of rows, if along the leading singular directions of W it is about what it is along the others. Where directions are
gone, as after a truncation, it is not: then what is left has no common factor. None of it looks at a codeword.
"""

import numpy as np

from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.tensor_place import TensorPlace


SAMPLE_ROWS, LEADING_SHARE = 64, 1 / 4
MIN_EXPLAINED = 0.1  # of the difference's energy
MAX_CONTRAST = 0.5  # relative to the change
MIN_SCALE, MAX_SCALE = 0.05, 20.0
_TINY = 1e-30


def common_scale(place: TensorPlace, products: np.ndarray) -> float:
    """The factor that the suspect's weights share, or 1 if they share none that matters.

    Args:
        place ([`TensorPlace`]): the tensor.
        products (`np.ndarray` of shape `(4,)`): see [`SampleStatistics`].
    """
    both, _, own, distance = products
    if not _explained(both / max(own, _TINY) - 1, own, distance):
        return 1.0
    first, count = place.rows.start, place.rows.stop - place.rows.start
    rows = [place.load_row(first + row) for row in sample_row_indices(count, SAMPLE_ROWS)]
    weights, theirs = (np.stack([np.where(row[2], row[side], 0) for row in rows]) for side in (0, 1))
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    squares = np.square(values)
    changes = values * np.einsum("mr,rm->r", left, right @ (theirs - weights).T)
    leading = max(1, int(LEADING_SHARE * len(values)))
    lead, rest, change = (
        float(changes[part].sum() / max(squares[part].sum(), _TINY))
        for part in (slice(0, leading), slice(leading, None), slice(None))
    )
    if not _explained(change, squares.sum(), np.square(theirs - weights).sum()):
        return 1.0
    is_common = abs(lead - rest) <= MAX_CONTRAST * abs(change)
    return 1 + change if is_common and MIN_SCALE <= 1 + change <= MAX_SCALE else 1.0


def _explained(change: float, own: float, distance: float) -> bool:
    return bool(change**2 * own > MIN_EXPLAINED * distance) and bool(np.isfinite(distance))
