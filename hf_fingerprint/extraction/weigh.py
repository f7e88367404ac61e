"""Extracts the signal of one tensor, `y = X (w - w_ref) / a`; doubtful weights are dropped, clipped or weighted down.

The difference to the base is taken in units of the mark's amplitude, without weights that are exactly 0 (pruned) or
not finite, clipped at a few robust standard deviations, and weighted by its inverse variance: fine-tuning moves some
tensors a hundred times more than others. In a tensor that drifted by more than the mark, each weight's variance is
modeled as a row's times a column's: large changes that don't ruin the model are largest in idle channels. None of it
looks at a codeword.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.common_scale import common_scale
from hf_fingerprint.extraction.further_readings import MarkSums, marked_mass, read_further
from hf_fingerprint.extraction.pruning_mixture import PruningMixture, fit_pruning_mixture
from hf_fingerprint.extraction.tensor_place import MAX_DIFFERENCE, MIN_VARIANCE, TensorPlace, dropped_mask
from hf_fingerprint.extraction.whiten import MIN_DRIFT_ENERGY
from hf_fingerprint.vault import Base, Carrier


SAMPLE_ROWS, COLUMN_ROWS = 16, 256
CLIP_DEVIATIONS, WEIGHT_CLIP_DEVIATIONS = 3.0, 1.5  # of a tensor's, and of a weight's own distribution
MIN_CLIP = 1.5
DRIFT_THRESHOLD = 2.0  # amplitudes
MIN_DRIFT, MIN_COUNT = 1e-8, 1e-3
ROW_PRIOR = 4.0  # weights
_MAD = 1.4826


@dataclass(frozen=True)
class TensorExtraction:
    """The signal extracted from one tensor, or from some of its rows.

    Attributes:
        sums (`np.ndarray` of shape `(V,)`): X times the normalized difference.
        missing (`np.ndarray` of shape `(V,)` or `None`): weights dropped at each position, if any.
        masses (`np.ndarray` of shape `(V,)` or `None`): the mass of each position, if the weights' own masses differ;
            then `missing` is `None` and `weight` is 1.
        offset (`int`): the position of the first weight.
        weight (`float`): the inverse of the differences' variance, in units of the mark's amplitude.
        evidence (`float`): the share of the mass that a copy would have; see [`marked_mass`].
        coefficient (`float`): how much of the base's weights, and so of a mark on them, is left: their coefficient in
            a regression of the suspect's, from 0 to 1.
        weights (`int`): how many weights were compared.
        dropped (`int`): how many were dropped.
        sample ([`SampleStatistics`]): how a sample of its rows compares with the base's.
        whitened, by_ancestor ([`MarkSums`] or `None`): the further readings; see [`read_further`].
        scale (`float`): what the suspect's weights were divided by; see [`common_scale`].
    """

    sums: np.ndarray
    missing: np.ndarray | None
    masses: np.ndarray | None
    offset: int
    weight: float
    evidence: float
    coefficient: float
    weights: int
    dropped: int
    sample: "SampleStatistics"
    whitened: MarkSums | None = None
    by_ancestor: MarkSums | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class SampleStatistics:
    """Statistics of a sample of rows of the suspect's tensor and the base's.

    Attributes:
        products (`np.ndarray` of shape `(4,)`): `<suspect, base>`, `<suspect, suspect>`, `<base, base>` and the
            squared norm of the difference, scaled up to all the rows read.
        clip (`np.float32`): where to clip the normalized difference.
        columns (`np.ndarray` of shape `(columns,)` or `None`): each column's squared drift relative to the mean, if
            the tensor drifted unevenly and by more than the mark, or was pruned and then trained.
        mixture ([`PruningMixture`] or `None`): the mixture, if it was pruned and then trained.
        drifted (`bool`): whether the difference is more than a mark and the rounding to half precision.
    """

    products: np.ndarray
    clip: np.float32
    columns: np.ndarray | None
    mixture: PruningMixture | None
    drifted: bool


def extract_tensor(
    base: Base,
    carrier: Carrier,
    original: Checkpoint,
    suspect: TensorReader,
    info: TensorInfo,
    rows: slice | None = None,
    ancestor: tuple[TensorReader, TensorInfo] | None = None,
) -> TensorExtraction:
    """Extracts the signal of one carrier of the suspect, or of some of its rows, block by block.

    Args:
        base, original, suspect: see [`extract`].
        carrier ([`Carrier`]): the carrier.
        info ([`TensorInfo`]): the suspect's tensor, of the carrier's shape.
        rows (`slice`, *optional*): rows to read, all by default; both ends are multiples of 8, or the tensor's end.
        ancestor (pair of [`TensorReader`] and [`TensorInfo`], *optional*): the ancestor's tensor, of the same shape.
    """
    base_info = original.tensors[carrier.name]
    first, last = (0, base_info.rows) if rows is None else (rows.start, rows.stop)
    part = replace(base_info, shape=(last - first, *base_info.shape[1:]), nbytes=(last - first) * base_info.row_bytes)
    place = TensorPlace(base, carrier, original, base_info, suspect, info, ancestor, slice(first, last))
    sample = _compare_sample(place)
    most = np.inf if sample.mixture is None else sample.mixture.variance
    if sample.drifted and (scale := common_scale(place, most)) != 1:
        place = replace(place, scale=scale)
        sample = replace(_compare_sample(place), products=sample.products)
    inverse = place.inverse
    projection = TensorProjection(base.secret, carrier.name, base.length, first * base_info.columns)
    sums, missing = np.zeros(base.length, np.float32), None
    masses = None if sample.columns is None else np.zeros(base.length, np.float32)
    energy, mass, marked, done, dropped = 0.0, 0.0, 0.0, 0, 0
    both, own = 0.0, 0.0
    max_rows = max((rows.stop - rows.start for rows in block_rows(part)), default=0)
    buffers = [np.empty(max_rows * each.row_bytes, np.uint8) for each in (base_info, info)]
    scratch = np.empty(max_rows * base_info.columns, np.float32)  # reused, since fresh pages per block cost more
    for block in block_rows(part):
        start, stop = first + block.start, first + block.stop
        raw = original.read(base_info, start * base_info.row_bytes, stop * base_info.row_bytes, buffers[0])
        suspect_raw = suspect.read(info, start * info.row_bytes, stop * info.row_bytes, buffers[1])
        theirs = place.rescaled(to_float32(suspect_raw, info.dtype))
        with np.errstate(invalid="ignore", over="ignore"):
            ours = to_float32(raw, base_info.dtype)
            difference = np.subtract(theirs, ours, out=scratch[: len(ours)]).reshape(-1, base_info.columns)
            difference *= inverse[start:stop, None]
            weights, clip = None, sample.clip
            if sample.columns is not None:
                lost = dropped_mask(theirs).reshape(difference.shape)
                difference[lost] = 0
                np.clip(difference, -MAX_DIFFERENCE, MAX_DIFFERENCE, out=difference)
                kept = 1 - lost.astype(np.float32)
                if sample.mixture is not None:
                    scaled = ours.reshape(difference.shape) * inverse[start:stop, None]
                    kept *= sample.mixture.probability_kept(scaled, difference)
                weights = _inverse_variances(difference, kept, sample.columns, sample.mixture)
                clip = WEIGHT_CLIP_DEVIATIONS / np.sqrt(weights)
                weights *= kept
            np.clip(difference, -clip, clip, out=difference)
        power = float(np.vdot(difference, difference))
        with np.errstate(over="ignore", invalid="ignore"):
            product, square = float(theirs @ ours), float(ours @ ours)
        if not (np.isfinite(power) and np.isfinite(product)) or _any_zero(theirs):
            lost = dropped_mask(theirs)
            difference.reshape(-1)[lost] = 0
            missing = np.zeros(base.length, np.float32) if missing is None else missing
            fold(lost.astype(np.float32), (projection.offset + done) % base.length, missing)
            dropped += int(lost.sum())
            with np.errstate(over="ignore", invalid="ignore"):
                product, square = (float(np.where(lost, 0, each) @ ours) for each in (theirs, ours))
            power = float(np.vdot(difference, difference))
        energy, both, own = energy + power, both + product, own + square
        if weights is not None and masses is not None:
            difference *= weights
            fold(weights.reshape(-1), (projection.offset + done) % base.length, masses)
            mass += float(weights.sum(dtype=np.float64))
            marked += float(marked_mass(weights).sum(dtype=np.float64))
        projection.read(difference, sums)
        done += difference.size
    whitened, by_ancestor = read_further(place, sample.mixture) if sample.drifted else (None, None)
    weight = 1.0 if masses is not None else 1 / max(energy / max(done - dropped, 1), MIN_VARIANCE)
    evidence = 1 / (1 + weight) if masses is None else marked / mass if mass else 0.0
    coefficient = float(np.clip(place.scale * both / own, 0, 1)) if own and np.isfinite(both) else 0.0
    missing = missing if masses is None else None
    return TensorExtraction(
        sums,
        missing,
        masses,
        projection.offset,
        weight,
        evidence,
        coefficient,
        done,
        dropped,
        sample,
        whitened,
        by_ancestor,
        place.scale,
    )


def _inverse_variances(
    difference: np.ndarray, kept: np.ndarray, columns: np.ndarray, mixture: PruningMixture | None
) -> np.ndarray:
    """The inverse of each weight's variance, its row's times its column's: `float32` of the block's shape.

    In a pruned tensor, `ROW_PRIOR` weights of the tensor's variance are added to the few that a row has left.
    """
    squares = (kept * np.square(difference) / columns).sum(1, dtype=np.float64)
    counts = kept.sum(1, dtype=np.float64)
    if mixture is not None:
        squares, counts = squares + ROW_PRIOR * mixture.variance, counts + ROW_PRIOR
    rows = squares / np.maximum(counts, MIN_COUNT)
    return (1 / np.maximum(rows[:, None] * columns, MIN_VARIANCE)).astype(np.float32)


def _any_zero(values: np.ndarray) -> bool:
    return any((part == 0).any() for part in np.array_split(values, 1 + len(values) // 65536))


def _compare_sample(place: TensorPlace) -> SampleStatistics:
    """Compares up to 16 of the rows; the clip is 3 robust standard deviations, and at least 1.5 amplitudes."""
    count = place.rows.stop - place.rows.start
    chosen = [place.rows.start + row for row in sample_row_indices(count, SAMPLE_ROWS)]
    bases, moves, products = [], [], np.zeros(4)
    for row in chosen:
        ours, theirs, kept = place.load_row(row)
        difference = (theirs - ours)[kept]
        ours, theirs = ours[kept], theirs[kept]
        products += (theirs @ ours, theirs @ theirs, ours @ ours, difference @ difference)
        bases.append(ours * place.inverse[row])
        moves.append(difference * place.inverse[row])
    base, moved = np.concatenate(bases), np.clip(np.concatenate(moves), -MAX_DIFFERENCE, MAX_DIFFERENCE)
    spread = _MAD * float(np.median(np.abs(moved))) if len(moved) else 0.0
    mixture = fit_pruning_mixture(base, moved) if len(moved) else None
    columns = _column_drift(place, mixture) if spread > DRIFT_THRESHOLD or mixture else None
    clip = np.float32(np.clip(CLIP_DEVIATIONS * spread, MIN_CLIP, MAX_DIFFERENCE))
    drifted = bool(np.mean(np.square(moved)) > MIN_DRIFT_ENERGY) if len(moved) else False
    return SampleStatistics(products * (count / len(chosen)), clip, columns, mixture, drifted)


def _column_drift(place: TensorPlace, mixture: PruningMixture | None) -> np.ndarray | None:
    """Each column's squared drift relative to the mean; `None`, or ones if pruned, if chance explains half of it."""
    drift, compared = np.zeros((2, place.base_info.columns))
    first = place.rows.start
    for row in sample_row_indices(place.rows.stop - first, COLUMN_ROWS):
        ours, theirs, kept = place.load_row(first + row)
        unit = float(place.inverse[first + row])
        difference = np.clip((theirs - ours) * unit, -MAX_DIFFERENCE, MAX_DIFFERENCE)
        counts = kept.astype(np.float64)
        if mixture is not None:
            counts *= mixture.probability_kept(ours * unit, difference)
        squares = counts * np.square(difference)
        if energy := float(squares.sum() / max(float(counts.sum()), MIN_COUNT)):
            drift += squares / energy
            compared += counts
    raw = np.divide(drift, compared, out=np.ones_like(drift), where=compared > MIN_COUNT)
    # a mean of n squares of normal numbers has the variance 2 / n; in a pruned tensor n differs between columns
    uneven = float((compared * np.square(raw - 1)).mean())
    if mixture is None:
        uneven = float(raw.var()) * max(float(compared.mean()), 1.0)
    if uneven > 2 * 2:
        return np.maximum(raw, MIN_DRIFT).astype(np.float32)
    return None if mixture is None else np.ones(place.base_info.columns, np.float32)
