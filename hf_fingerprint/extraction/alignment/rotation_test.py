"""Tests whether weights that are aligned but drifted were all rotated by the same small rotation.

A rotation R of a transformer's stream rotates every row of every weight that reads it: `s = b R`. To first order, the
changes `d = s - b` satisfy `d_i . b_j = -d_j . b_i` for any two rows of any two tensors, since a rotation preserves
products of rows. Drift from a mark, training or rounding has no such antisymmetry. Factors of whole columns, as from a
folded normalization, are removed first.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.alignment.aligned import load_rows
from hf_fingerprint.vault import Base, Carrier


ROWS, PARTS_PER_TENSOR = 32, 2
MIN_TENSORS = 4  # with rows of one length; fewer give too few pairs
PROBED_TENSORS = 3
MIN_DRIFT = 2.0  # in units of a mark's energy; weights that drifted less lost next to nothing
MIN_STATISTIC = 4.0  # standard deviations
_TINY = 1e-20
RowPair = tuple[np.ndarray, np.ndarray]


def has_common_rotation(
    base: Base, original: Checkpoint, suspect: TensorReader, matches: dict[str, TensorInfo]
) -> bool:
    """Whether a suspect's weights differ from the base's by one small common rotation.

    Reads some rows of a few tensors and, if these drifted by more than a mark, of all tensors that may read a stream.
    `matches` holds the counterparts of the carriers that are aligned.
    """
    widths: dict[int, list[Carrier]] = defaultdict(list)
    for carrier in base.carriers:
        info = matches.get(carrier.name)
        if info is not None and len(info.shape) == 2:
            widths[info.shape[1]].append(carrier)
    readers = max(widths.values(), key=len, default=[])
    if len(readers) < MIN_TENSORS:
        return False
    pairs = _row_pairs(original, suspect, readers, matches)
    probed = [next(pairs) for _ in range(PROBED_TENSORS)]
    if np.median([_drift(carrier, *pair) for carrier, pair in zip(readers, probed, strict=False)]) < MIN_DRIFT:
        return False
    return rotation_statistic([*probed, *pairs]) > MIN_STATISTIC


def rotation_statistic(pairs: list[RowPair]) -> float:
    """The test statistic for a common rotation of rows.

    Args:
        pairs (list of pairs of `np.ndarray` of shape `(rows, columns)`): each tensor's rows in the base and suspect.

    Returns:
        `float`: in standard deviations, estimated across parts of tensors; about normal without a rotation.
    """
    sides = [_unit_rows(ours, _row_changes(ours, theirs)) for ours, theirs in pairs]
    ours, changes = (np.concatenate(side) for side in zip(*sides, strict=True))
    products = changes @ ours.T
    products *= -products.T
    parts = [len(part) for side, _ in sides for part in np.array_split(side, PARTS_PER_TENSOR)]
    starts = np.cumsum([0, *parts])[:-1]
    by_parts = np.add.reduceat(np.add.reduceat(products, starts, 0), starts, 1).astype(np.float64)
    tensor = np.arange(len(parts)) // PARTS_PER_TENSOR
    found = by_parts[tensor[:, None] < tensor]
    spread = float(np.sqrt(np.square(found).sum()))
    return float(found.sum()) / spread if spread > _TINY else 0.0


def _row_pairs(
    original: Checkpoint, suspect: TensorReader, readers: list[Carrier], matches: dict[str, TensorInfo]
) -> Iterator[RowPair]:
    """Yields evenly spread rows of each tensor, since adjacent rows may drift together."""
    for carrier in readers:
        info = original.tensors[carrier.name]
        chosen = sample_row_indices(info.rows, ROWS)
        yield load_rows(original, info, chosen), load_rows(suspect, matches[carrier.name], chosen)


def _drift(carrier: Carrier, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The energy of the rows' changes, in units of a mark's energy."""
    amplitude = carrier.amplitude[sample_row_indices(len(carrier.amplitude), ROWS)]
    mark = float(np.square(amplitude, dtype=np.float64).sum()) * ours.shape[1]
    return float(np.square(np.where(theirs != 0, theirs - ours, 0)).sum()) / max(mark, _TINY)


def _row_changes(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The changes of rows, without factors of their columns; 0 for pruned weights."""
    changes = np.where(theirs != 0, theirs - ours, np.float32(0))
    power = np.einsum("rc,rc->c", ours, ours)
    factors = np.divide(np.einsum("rc,rc->c", ours, changes), power, out=np.zeros_like(power), where=power > _TINY)
    return changes - factors * ours


def _unit_rows(*sides: np.ndarray) -> tuple[np.ndarray, ...]:
    norms = [np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    return tuple(s / np.where(n > _TINY, n, 1) for s, n in zip(sides, norms, strict=True))
