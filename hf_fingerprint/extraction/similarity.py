"""Estimates each base's share in a suspect from a sample of rows.

A suspect made from base t is `B_t + drift`, and a mixture of copies of several bases is a mixture of these. So the
sampled weights are regressed on those of all bases, with coefficients that sum to 1: a base's share in the suspect.
The drift is nearly orthogonal to the differences between bases, so this separates even fine-tunes of one backbone that
differ by less than the drift. A base whose share is surely below `MIN_SHARE` is skipped.

Nothing here sees a codeword or a mark's key, so selecting bases costs the bound no more than their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.match import MIN_SIMILAR_COSINE


MIN_SHARE, STANDARD_ERRORS = 0.05, 3.0
_CLIP = 4 * 1.4826  # robust standard deviations
_MAX_ABS = np.float32(1e15)  # sums of larger squares overflow
SampledWeights = dict[str, np.ndarray]  # by tensor


@dataclass(frozen=True)
class BaseShares:
    """The shares of several bases in a suspect.

    Attributes:
        share (`np.ndarray` of shape `(bases,)`): coefficients, which sum to 1 if no two bases are equal.
        error (`np.ndarray` of shape `(bases,)`): their standard errors.
    """

    share: np.ndarray
    error: np.ndarray

    @property
    def is_relevant(self) -> np.ndarray:
        """Whether each base may have a share of at least `MIN_SHARE`, `bool` of shape `(bases,)`."""
        return self.share + STANDARD_ERRORS * self.error >= MIN_SHARE


def sample_weights(
    checkpoint: TensorReader, infos: dict[str, TensorInfo], rows: dict[str, Sequence[int]], columns: int
) -> SampledWeights:
    """Samples up to `columns` evenly spread weights from some rows of some tensors, as `float32`.

    Values that are not finite, or above 1e15 in magnitude, become 0.
    """
    found = {}
    for name, chosen in rows.items():
        info = infos[name]
        size, step = info.row_bytes, max(1, info.columns // columns)
        raw = np.concatenate([checkpoint.read(info, row * size, (row + 1) * size) for row in chosen])
        drawn = to_float32(raw, info.dtype).reshape(len(chosen), -1)[:, ::step].reshape(-1)
        found[name] = np.where(np.abs(drawn) < _MAX_ABS, drawn, np.float32(0))
    return found


def mean_cosine(one: SampledWeights, other: SampledWeights) -> float:
    """The mean cosine of the similar tensors in both samples, or of all if none is similar; -1 if there are none."""
    cosines = []
    for name in one.keys() & other.keys():
        a, b = one[name].astype(np.float64), other[name].astype(np.float64)
        scale = float((a @ a) * (b @ b)) ** 0.5
        cosines.append(float(a @ b) / scale if scale > 0 else 0.0)
    similar = [each for each in cosines if each >= MIN_SIMILAR_COSINE] or cosines
    return sum(similar) / len(similar) if similar else -1.0


def estimate_shares(suspect: SampledWeights, bases: Sequence[SampledWeights]) -> BaseShares:
    """Estimates how much of a suspect comes from each base.

    Weights of the suspect that are exactly 0 are left out. Each tensor is weighted by the inverse of its deviation
    from the nearest base, so one that was trained far or permuted counts little. Equal bases get their common share.

    Args:
        suspect (`dict[str, np.ndarray]`): its sampled weights by tensor.
        bases (sequence of `dict[str, np.ndarray]`): each base's weights, from the same tensors and rows.
    """
    names = sorted(suspect)
    ends = np.cumsum([len(suspect[name]) for name in names])[:-1]
    theirs = np.concatenate([suspect[name] for name in names])
    ours, index = _deduplicate([np.concatenate([base[name] for name in names]) for base in bases])
    kept = np.split(theirs != 0, ends)
    off = np.array([[_mean_square(d, k) for d, k in zip(np.split(theirs - b, ends), kept, strict=True)] for b in ours])
    nearest = int(np.log(off + np.finfo(float).tiny).sum(axis=1).argmin())
    scale = np.array([1 / np.sqrt(each) if each > 0 else 0.0 for each in off[nearest]])
    scale = scale if scale.any() else np.ones(len(scale))  # else the suspect is that base
    target = theirs.astype(np.float64) - ours[nearest]
    for part, factor, mask in zip(np.split(target, ends), scale, kept, strict=True):
        part *= factor * mask
        most = _CLIP * float(np.median(np.abs(part[mask]))) if mask.any() else 0.0
        if most:
            np.clip(part, -most, most, out=part)
    weight = np.repeat(scale, np.diff([0, *ends, len(theirs)])) * np.concatenate(kept)
    others = [i for i in range(len(ours)) if i != nearest]
    share, error = np.zeros(len(ours)), np.zeros(len(ours))
    if others:
        differences = (np.stack([ours[i] for i in others]).astype(np.float64) - ours[nearest]) * weight
        share[others], error[others] = _least_squares(differences, target)
    share[nearest] = 1 - share.sum()
    return BaseShares(share[index], error[index])


def _deduplicate(samples: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The distinct samples, and the index among them of each sample."""
    known: dict[bytes, int] = {}
    index = [known.setdefault(each.tobytes(), len(known)) for each in samples]
    return [samples[index.index(i)] for i in range(len(known))], index


def _mean_square(difference: np.ndarray, kept: np.ndarray) -> float:
    return float(np.square(difference[kept], dtype=np.float64).mean()) if kept.any() else 0.0


def _least_squares(differences: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors, which are infinite if a coefficient can't be determined."""
    count, gram = len(differences), differences @ differences.T
    size = np.sqrt(np.diag(gram))
    size[size == 0] = 1
    try:
        inverse = np.linalg.inv(gram / np.outer(size, size))
        share = inverse @ (differences @ target / size) / size
        left = target - share @ differences
        variance = float(left @ left) / max(len(target) - count, 1)
        error = np.sqrt(np.maximum(np.diag(inverse), 0) * variance) / size
    except np.linalg.LinAlgError:
        return np.zeros(count), np.full(count, np.inf)
    known = np.isfinite(share) & np.isfinite(error)
    return np.where(known, share, 0), np.where(known, error, np.inf)
