"""Extracts the signal of one tensor, `y = X (w - w_ref) / a`; doubtful weights are dropped, clipped or weighted down.

The difference to the base is taken in units of the mark's amplitude, without weights that are exactly 0 (pruned) or
not finite, clipped at a few robust standard deviations, and weighted by its inverse variance: fine-tuning moves some
tensors a hundred times more than others. In a tensor that drifted by more than the mark, each weight's variance is
modeled as a row's times a column's: large changes that don't ruin the model are largest in idle channels. None of it
looks at a codeword.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.common_scale import common_scale
from hf_fingerprint.extraction.further_readings import MarkSums, read_further
from hf_fingerprint.extraction.pruning_mixture import PruningMixture, fit_pruning_mixture
from hf_fingerprint.extraction.tensor_place import MAX_DIFFERENCE, TensorPlace
from hf_fingerprint.extraction.tensor_sums import MIN_COUNT, TensorSums
from hf_fingerprint.extraction.whiten import MIN_DRIFT_ENERGY
from hf_fingerprint.vault import Base, Carrier


SAMPLE_ROWS, COLUMN_ROWS = 16, 256
SAMPLE_WEIGHTS = 1 << 18  # of the columns' sample, taken at a time
CLIP_DEVIATIONS = 3.0  # of a tensor's distribution
MIN_CLIP = 1.5
DRIFT_THRESHOLD = 2.0  # amplitudes
MIN_DRIFT = 1e-8
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
    place = TensorPlace(base, carrier, original, base_info, suspect, info, ancestor, slice(first, last))
    sample = _compare_sample(place)
    most = np.inf if sample.mixture is None else sample.mixture.variance
    if sample.drifted and (scale := common_scale(place, most)) != 1:
        place = replace(place, scale=scale)
        sample = replace(_compare_sample(place), products=sample.products)
    found = TensorSums(place, sample.clip, sample.columns, sample.mixture)
    if not found.add_files():
        found.add_blocks()
    whitened, by_ancestor = read_further(place, sample.mixture) if sample.drifted else (None, None)
    return TensorExtraction(
        found.sums,
        found.missing if found.masses is None else None,
        found.masses,
        found.offset,
        found.weight,
        found.evidence,
        found.coefficient,
        found.done,
        found.dropped,
        sample,
        whitened,
        by_ancestor,
        place.scale,
    )


def _compare_sample(place: TensorPlace) -> SampleStatistics:
    """Compares up to 16 of the rows; the clip is 3 robust standard deviations, and at least 1.5 amplitudes."""
    count = place.rows.stop - place.rows.start
    chosen = [place.rows.start + row for row in sample_row_indices(count, SAMPLE_ROWS)]
    ours, theirs, kept = place.load_sample(chosen)
    difference, unit = theirs - ours, place.inverse[chosen, None].astype(np.float64)
    pairs = (theirs, ours), (theirs, theirs), (ours, ours), (difference, difference)
    products = np.array([float(np.vdot(one, other)) for one, other in pairs])
    base, moved = ours * unit, np.clip(difference * unit, -MAX_DIFFERENCE, MAX_DIFFERENCE)
    base, moved = (each.reshape(-1) if kept.all() else each[kept] for each in (base, moved))
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
    chosen = [first + row for row in sample_row_indices(place.rows.stop - first, COLUMN_ROWS)]
    for rows in np.array_split(chosen, 1 + len(chosen) * place.base_info.columns // SAMPLE_WEIGHTS):
        ours, theirs, kept = place.load_sample(rows.tolist())
        unit = place.inverse[rows, None].astype(np.float64)
        difference = np.clip((theirs - ours) * unit, -MAX_DIFFERENCE, MAX_DIFFERENCE)
        counts = kept.astype(np.float64)
        if mixture is not None:
            counts *= mixture.probability_kept(ours * unit, difference)
        squares = counts * np.square(difference)
        energy = squares.sum(1) / np.maximum(counts.sum(1), MIN_COUNT)
        moved = energy > 0
        drift += (squares[moved] / energy[moved, None]).sum(0)
        compared += counts[moved].sum(0)
    raw = np.divide(drift, compared, out=np.ones_like(drift), where=compared > MIN_COUNT)
    # a mean of n squares of normal numbers has the variance 2 / n; in a pruned tensor n differs between columns
    uneven = float((compared * np.square(raw - 1)).mean())
    if mixture is None:
        uneven = float(raw.var()) * max(float(compared.mean()), 1.0)
    if uneven > 2 * 2:
        return np.maximum(raw, MIN_DRIFT).astype(np.float32)
    return None if mixture is None else np.ones(place.base_info.columns, np.float32)
