"""What the suspect's weights say: `y = X (w - w_ref) / a`, with doubtful weights dropped, clipped and down-weighted.

Per tensor: the difference to the base in units of the mark's amplitude, without weights that are exactly 0 (pruned) or
not finite, clipped at a few robust standard deviations, and weighted by the inverse of its variance: fine-tuning moves
some tensors a hundred times more than others, and a tensor that drifted far should say little. None of it looks at a
codeword.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold, position_counts
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.reading.matching import sample_rows
from hf_fingerprint.vault import Base, Carrier


SAMPLE_ROWS = 16
CLIP_DEVIATIONS = 3.0
LEAST_CLIP = 1.5
LEAST_VARIANCE = 0.1
_MAD = 1.4826


@dataclass(frozen=True)
class TensorReading:
    """One tensor's part of the reading.

    Attributes:
        sums (`np.ndarray` of shape `(V,)`): X times the normalised difference.
        counts (`np.ndarray` of shape `(V,)`): weights read at each position.
        weight (`float`): the inverse of the differences' variance, in units of the mark's amplitude.
        kept (`int`): weights read.
        dropped (`int`): weights dropped.
        products (`tuple[float, float, float]`): `<suspect, base>`, `<suspect, suspect>`, `<base, base>`.
        distance (`float`): squared norm of the difference.
        digest (`str`): SHA-256 of the base's tensor, as it was read.
    """

    sums: np.ndarray
    counts: np.ndarray
    weight: float
    kept: int
    dropped: int
    products: tuple[float, float, float]
    distance: float
    digest: str


def read_tensor(
    base: Base,
    carrier: Carrier,
    original: Checkpoint,
    suspect: Checkpoint,
    info: TensorInfo,
    pool: ThreadPoolExecutor,
) -> TensorReading:
    """Reads one carrier of the suspect, block by block.

    Args:
        base ([`Base`]): the registered base.
        carrier ([`Carrier`]): the carrier.
        original ([`Checkpoint`]): the base's open files.
        suspect ([`Checkpoint`]): the open suspect.
        info ([`TensorInfo`]): the suspect's tensor, of the carrier's shape.
        pool (`ThreadPoolExecutor`): where the base is hashed meanwhile.
    """
    own = original.tensors[carrier.name]
    inverse = np.divide(1, carrier.amplitude, out=np.zeros_like(carrier.amplitude), where=carrier.amplitude > 0)
    clip = _clip(original, own, suspect, info, inverse)
    projection = TensorProjection(base.secret, carrier.name, base.length)
    sums, counts = np.zeros(base.length), position_counts(own.rows * own.columns, projection.offset, base.length)
    digest, energy, distance, products, dropped, done = hashlib.sha256(), 0.0, 0.0, np.zeros(3), 0, 0
    buffer = np.empty(0, np.uint8)
    for rows, raw in original.blocks(own):
        hashed = pool.submit(digest.update, raw)
        count = (rows.stop - rows.start) * info.row_bytes
        buffer = buffer if len(buffer) >= count else np.empty(count, np.uint8)
        theirs = to_float32(
            suspect.read(info, rows.start * info.row_bytes, rows.start * info.row_bytes + count, buffer), info.dtype
        )
        ours = to_float32(raw, own.dtype)
        lost = _lost(theirs)
        if lost is not None:
            theirs, ours = np.where(lost, 0, theirs), np.where(lost, 0, ours)
            fold(lost.astype(np.float32), (projection.offset + done) % base.length, missing := np.zeros(base.length))
            counts -= missing
            dropped += int(lost.sum())
        products += (float(theirs @ ours), float(theirs @ theirs), float(ours @ ours))
        difference = theirs - ours
        distance += float(difference @ difference)
        hashed.result()
        difference = difference.reshape(-1, own.columns)
        difference *= inverse[rows, None]
        np.clip(difference, -clip, clip, out=difference)
        energy += float(np.vdot(difference, difference))
        projection.read(difference, sums)
        done += difference.size
    kept = done - dropped
    weight = 1 / max(energy / max(kept, 1), LEAST_VARIANCE)
    return TensorReading(
        sums, counts, weight, kept, dropped, (products[0], products[1], products[2]), distance, digest.hexdigest()
    )


def _lost(values: np.ndarray) -> np.ndarray | None:
    """Which weights say nothing: pruned to exactly 0, or not finite; `None` if all speak."""
    if np.count_nonzero(values) == values.size and np.isfinite(values @ values):
        return None
    lost = (values == 0) | ~(np.abs(values) < np.float32(1e18))
    return lost if lost.any() else None


def _clip(
    original: Checkpoint, own: TensorInfo, suspect: Checkpoint, info: TensorInfo, inverse: np.ndarray
) -> np.float32:
    """Where to clip: 3 robust standard deviations, from a sample of rows, and at least 1.5 amplitudes."""
    sample = []
    for row in sample_rows(own.rows, SAMPLE_ROWS):
        ours = to_float32(original.read(own, row * own.row_bytes, (row + 1) * own.row_bytes), own.dtype)
        theirs = to_float32(suspect.read(info, row * info.row_bytes, (row + 1) * info.row_bytes), info.dtype)
        lost = _lost(theirs)
        difference = (theirs - ours) * inverse[row]
        sample.append(np.abs(difference if lost is None else difference[~lost]))
    spread = _MAD * float(np.median(np.concatenate(sample))) if sum(map(len, sample)) else 0.0
    return np.float32(max(CLIP_DEVIATIONS * spread, LEAST_CLIP))
