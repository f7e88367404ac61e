"""What the suspect's weights say: `y = X (w - w_ref) / a`, with doubtful weights dropped, clipped and down-weighted.

Per tensor: the difference to the base in units of the mark's amplitude, without weights that are exactly 0 (pruned) or
not finite, clipped at a few robust standard deviations, and weighted by the inverse of its variance: fine-tuning moves
some tensors a hundred times more than others, and a tensor that drifted far should say little. In a tensor that
drifted by more than the mark the variance is taken to be a row's times a column's: whoever moves weights far without
ruining the model moves those of idle channels farthest. None of it looks at a codeword.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, Weights
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.extraction.match import sample_rows
from hf_fingerprint.extraction.pruning_mixture import Zeroing, find_zeroing
from hf_fingerprint.vault import Base, Carrier


SAMPLE_ROWS, COLUMN_ROWS = 16, 256
CLIP_DEVIATIONS, CLIP_KNOWN = 3.0, 1.5  # a tensor's, and a weight's own
LEAST_CLIP, MOST_CLIP = 1.5, 1e6
LEAST_VARIANCE = 0.1
DRIFTED = 2.0  # amplitudes
LEAST_DRIFT, LEAST_KEPT = 1e-8, 1e-3
ROW_PRIOR = 4.0  # weights
_MAD = 1.4826


@dataclass(frozen=True)
class TensorReading:
    """The part of the reading that is one tensor's, or some of its rows'.

    Attributes:
        sums (`np.ndarray` of shape `(V,)`): X times the normalised difference.
        missing (`np.ndarray` of shape `(V,)` or `None`): weights dropped at each position, if any.
        masses (`np.ndarray` of shape `(V,)` or `None`): what counts at each position, if not all weights count alike;
            `missing` is none then, and `weight` 1.
        offset (`int`): position of the first weight.
        weight (`float`): the inverse of the differences' variance, in units of the mark's amplitude.
        weights (`int`): how many weights were compared.
        dropped (`int`): how many were dropped.
        sample ([`Sample`]): how a sample of its rows compares with the base's.
    """

    sums: np.ndarray
    missing: np.ndarray | None
    masses: np.ndarray | None
    offset: int
    weight: float
    weights: int
    dropped: int
    sample: "Sample"


@dataclass(frozen=True)
class Sample:
    """A sample of rows of the suspect's tensor beside the base's.

    Attributes:
        products (`np.ndarray` of shape `(4,)`): `<suspect, base>`, `<suspect, suspect>`, `<base, base>` and the
            squared norm of the difference, scaled up to all the rows read.
        clip (`np.float32`): where to clip the normalised difference.
        columns (`np.ndarray` of shape `(columns,)` or `None`): how far each column drifted beside others, squared and
            about 1, if the tensor drifted by more than the mark, and unevenly, or was pruned and trained on.
        zeroing ([`Zeroing`] or `None`): how it was pruned and trained on, if it was.
    """

    products: np.ndarray
    clip: np.float32
    columns: np.ndarray | None
    zeroing: Zeroing | None


def read_tensor(
    base: Base,
    carrier: Carrier,
    original: Checkpoint,
    suspect: Weights,
    info: TensorInfo,
    rows: slice | None = None,
) -> TensorReading:
    """Reads one carrier of the suspect, or some of its rows, block by block.

    Args:
        base ([`Base`]): the registered base.
        carrier ([`Carrier`]): the carrier.
        original ([`Checkpoint`]): the base's open files.
        suspect ([`Weights`]): the open suspect.
        info ([`TensorInfo`]): the suspect's tensor, of the carrier's shape.
        rows (`slice`, *optional*): from a row that is a multiple of 8 to another or the last; all by default.
    """
    own = original.tensors[carrier.name]
    first, last = (0, own.rows) if rows is None else (rows.start, rows.stop)
    part = replace(own, shape=(last - first, *own.shape[1:]), nbytes=(last - first) * own.row_bytes)
    inverse = np.divide(1, carrier.amplitude, out=np.zeros_like(carrier.amplitude), where=carrier.amplitude > 0)
    sample = _sample(original, own, suspect, info, inverse, slice(first, last))
    projection = TensorProjection(base.secret, carrier.name, base.length, first * own.columns)
    sums, missing = np.zeros(base.length, np.float32), None
    masses = None if sample.columns is None else np.zeros(base.length, np.float32)
    energy, done, dropped = 0.0, 0, 0
    most = max((rows.stop - rows.start for rows in block_rows(part)), default=0)
    one, two = np.empty(most * own.row_bytes, np.uint8), np.empty(most * info.row_bytes, np.uint8)
    scratch = np.empty(most * own.columns, np.float32)  # fresh pages for each block would cost more
    for block in block_rows(part):
        start, stop = first + block.start, first + block.stop
        raw = original.read(own, start * own.row_bytes, stop * own.row_bytes, one)
        theirs = to_float32(suspect.read(info, start * info.row_bytes, stop * info.row_bytes, two), info.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            ours = to_float32(raw, own.dtype)
            difference = np.subtract(theirs, ours, out=scratch[: len(ours)]).reshape(-1, own.columns)
            difference *= inverse[start:stop, None]
            weights, clip = None, sample.clip
            if sample.columns is not None:
                lost = _lost(theirs).reshape(difference.shape)
                difference[lost] = 0
                np.clip(difference, -MOST_CLIP, MOST_CLIP, out=difference)
                kept = 1 - lost.astype(np.float32)
                if sample.zeroing is not None:
                    kept *= sample.zeroing.kept(ours.reshape(difference.shape) * inverse[start:stop, None], difference)
                weights = _weights(difference, kept, sample.columns, sample.zeroing)
                clip = CLIP_KNOWN / np.sqrt(weights)
                weights *= kept
            np.clip(difference, -clip, clip, out=difference)
        power = float(np.vdot(difference, difference))
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(power) and np.isfinite(theirs @ theirs)
        if not finite or _any_zero(theirs):
            lost = _lost(theirs)
            difference.reshape(-1)[lost] = 0
            missing = np.zeros(base.length, np.float32) if missing is None else missing
            fold(lost.astype(np.float32), (projection.offset + done) % base.length, missing)
            dropped += int(lost.sum())
            power = float(np.vdot(difference, difference))
        energy += power
        if weights is not None and masses is not None:
            difference *= weights
            fold(weights.reshape(-1), (projection.offset + done) % base.length, masses)
        projection.read(difference, sums)
        done += difference.size
    if masses is not None:
        return TensorReading(sums, None, masses, projection.offset, 1.0, done, dropped, sample)
    weight = 1 / max(energy / max(done - dropped, 1), LEAST_VARIANCE)
    return TensorReading(sums, missing, None, projection.offset, weight, done, dropped, sample)


def _weights(difference: np.ndarray, kept: np.ndarray, columns: np.ndarray, zeroing: Zeroing | None) -> np.ndarray:
    """The inverse of each weight's variance, `float32` of the block's shape: its row's times its column's. Where rows
    were pruned, a row's few weights left are taken together with as many of the tensor's."""
    squares = (kept * np.square(difference) / columns).sum(1, dtype=np.float64)
    counts = kept.sum(1, dtype=np.float64)
    if zeroing is not None:
        squares, counts = squares + ROW_PRIOR * zeroing.variance, counts + ROW_PRIOR
    rows = squares / np.maximum(counts, LEAST_KEPT)
    return (1 / np.maximum(rows[:, None] * columns, LEAST_VARIANCE)).astype(np.float32)


def _any_zero(values: np.ndarray) -> bool:
    """Whether a value is exactly 0."""
    return any((part == 0).any() for part in np.array_split(values, 1 + len(values) // 65536))


def _lost(values: np.ndarray) -> np.ndarray:
    """Which weights say nothing: pruned to exactly 0, or not finite."""
    return (values == 0) | ~np.isfinite(values)


def _sample(
    original: Checkpoint, own: TensorInfo, suspect: Weights, info: TensorInfo, inverse: np.ndarray, rows: slice
) -> Sample:
    """Compares up to 16 of some rows, and clips at 3 robust standard deviations of their difference, at least 1.5
    amplitudes."""
    count = rows.stop - rows.start
    bases, moves, products, chosen = [], [], np.zeros(4), [rows.start + r for r in sample_rows(count, SAMPLE_ROWS)]
    for row in chosen:
        ours, theirs, kept = _compared(original, own, suspect, info, row)
        difference = (theirs - ours)[kept]
        ours, theirs = ours[kept], theirs[kept]
        products += (theirs @ ours, theirs @ theirs, ours @ ours, difference @ difference)
        bases.append(ours * inverse[row])
        moves.append(difference * inverse[row])
    base, moved = np.concatenate(bases), np.clip(np.concatenate(moves), -MOST_CLIP, MOST_CLIP)
    spread = _MAD * float(np.median(np.abs(moved))) if len(moved) else 0.0
    zeroing = find_zeroing(base, moved) if len(moved) else None
    return Sample(
        products * (count / len(chosen)),
        np.float32(np.clip(CLIP_DEVIATIONS * spread, LEAST_CLIP, MOST_CLIP)),
        _column_drift(original, own, suspect, info, inverse, rows, zeroing) if spread > DRIFTED or zeroing else None,
        zeroing,
    )


def _column_drift(
    original: Checkpoint,
    own: TensorInfo,
    suspect: Weights,
    info: TensorInfo,
    inverse: np.ndarray,
    rows: slice,
    zeroing: Zeroing | None,
) -> np.ndarray | None:
    """How far each column of some rows drifted beside others, squared and about 1, from up to 256 rows. If half of
    what they differ by is what chance makes of columns that drifted alike: `None`, or ones if weights were zeroed."""
    drift, compared = np.zeros(own.columns), np.zeros(own.columns)
    for row in sample_rows(rows.stop - rows.start, COLUMN_ROWS):
        ours, theirs, kept = _compared(original, own, suspect, info, rows.start + row)
        unit = float(inverse[rows.start + row])
        difference = np.clip((theirs - ours) * unit, -MOST_CLIP, MOST_CLIP)
        counts = kept.astype(np.float64)
        if zeroing is not None:
            counts *= zeroing.kept(ours * unit, difference)
        squares = counts * np.square(difference)
        if energy := float(squares.sum() / max(float(counts.sum()), LEAST_KEPT)):
            drift += squares / energy
            compared += counts
    raw = np.divide(drift, compared, out=np.ones_like(drift), where=compared > LEAST_KEPT)
    # a mean of n squares of normal numbers varies by 2 / n; where some were zeroed, n differs between columns
    if zeroing is None:
        uneven = float(raw.var()) * max(float(compared.mean()), 1.0)
    else:
        uneven = float((compared * np.square(raw - 1)).mean())
    if uneven > 2 * 2:
        return np.maximum(raw, LEAST_DRIFT).astype(np.float32)
    return None if zeroing is None else np.ones(own.columns, np.float32)


def _compared(
    original: Checkpoint, own: TensorInfo, suspect: Weights, info: TensorInfo, row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of the base's tensor and of the suspect's, `float64`, and which of its weights say something."""
    ours = to_float32(original.read(own, row * own.row_bytes, (row + 1) * own.row_bytes), own.dtype)
    theirs = to_float32(suspect.read(info, row * info.row_bytes, (row + 1) * info.row_bytes), info.dtype)
    kept = ~_lost(theirs)
    return ours.astype(np.float64), np.where(kept, theirs, 0).astype(np.float64), kept
