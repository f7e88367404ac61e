"""Which of several bases a suspect was made from, told from a few of their rows.

A suspect that was made from base t and drifted is `B_t + drift`; a mixture of copies of several bases is a mixture of
these. So the sampled weights are regressed on those of all bases, with coefficients that sum to 1: the coefficient of
a base is the share of the suspect that comes from it. Fine-tunes of one backbone are told apart by less than they
differ, since the drift of a suspect has next to nothing in common with what tells one base from another. A base whose
share is surely below `MIN_SHARE` need not be read.

Nothing here sees a codeword or a mark's key, so which bases are read costs the bound no more than their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.match import MIN_SIMILAR_COSINE


MIN_SHARE, STANDARD_ERRORS = 0.05, 3.0
MOST_SAMPLES = 1 << 17
_CLIP = 4 * 1.4826  # robust standard deviations
_MAX_ABS = np.float32(1e15)  # squares of larger ones are infinite
SampledWeights = dict[str, np.ndarray]  # by tensor


@dataclass(frozen=True)
class BaseShares:
    """How much of a suspect comes from each of several bases.

    Attributes:
        share (`np.ndarray` of shape `(bases,)`): their coefficients, which sum to 1 but for bases that are alike.
        error (`np.ndarray` of shape `(bases,)`): standard errors.
    """

    share: np.ndarray
    error: np.ndarray

    @property
    def is_relevant(self) -> np.ndarray:
        """Which bases may have a share that matters, `bool` of shape `(bases,)`."""
        return self.share + STANDARD_ERRORS * self.error >= MIN_SHARE


def sample_weights(
    checkpoint: TensorReader, infos: dict[str, TensorInfo], rows: dict[str, Sequence[int]], columns: int
) -> SampledWeights:
    """Some rows of some tensors, `float32`, at most so many weights of each row, evenly spread; 0 for what is not
    finite, or absurd."""
    found = {}
    for name, chosen in rows.items():
        info = infos[name]
        size, step = info.row_bytes, max(1, info.columns // columns)
        raw = np.concatenate([checkpoint.read(info, row * size, (row + 1) * size) for row in chosen])
        drawn = to_float32(raw, info.dtype).reshape(len(chosen), -1)[:, ::step].reshape(-1)
        found[name] = np.where(np.abs(drawn) < _MAX_ABS, drawn, np.float32(0))
    return found


def mean_cosine(one: SampledWeights, other: SampledWeights) -> float:
    """The mean cosine of the tensors sampled of both; of those that are alike, if any is, since others may have been
    replaced; -1 if there is none."""
    cosines = []
    for name in one.keys() & other.keys():
        a, b = one[name].astype(np.float64), other[name].astype(np.float64)
        scale = float((a @ a) * (b @ b)) ** 0.5
        cosines.append(float(a @ b) / scale if scale > 0 else 0.0)
    similar = [each for each in cosines if each >= MIN_SIMILAR_COSINE] or cosines
    return sum(similar) / len(similar) if similar else -1.0


def estimate_shares(suspect: SampledWeights, bases: Sequence[SampledWeights]) -> BaseShares:
    """How much of a suspect comes from each base.

    Weights of the suspect that are exactly 0 say nothing. Each tensor counts by the inverse of what it is off by, so
    that one that was trained far or rearranged says little. Bases whose samples are equal get the share of one.

    Args:
        suspect (`dict[str, np.ndarray]`): its sampled weights by tensor.
        bases (sequence of the same): each base's, of the same tensors and rows.
    """
    names = sorted(suspect)
    ends = np.cumsum([len(suspect[name]) for name in names])[:-1]
    theirs = np.concatenate([suspect[name] for name in names])
    ours, place = _deduplicate([np.concatenate([base[name] for name in names]) for base in bases])
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
    share[nearest] = 1 - share.sum()  # the nearest has coefficient 1 less the others'
    return BaseShares(share[place], error[place])


def _deduplicate(samples: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """Samples without those that are equal, and which of these each one is."""
    known: dict[bytes, int] = {}
    place = [known.setdefault(each.tobytes(), len(known)) for each in samples]
    return [samples[place.index(i)] for i in range(len(known))], place


def _mean_square(difference: np.ndarray, kept: np.ndarray) -> float:
    return float(np.square(difference[kept], dtype=np.float64).mean()) if kept.any() else 0.0


def _least_squares(differences: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors; those that can't be told have an infinite one."""
    count = len(differences)
    gram = differences @ differences.T
    size = np.sqrt(np.diag(gram))
    size[size == 0] = 1
    gram = gram / np.outer(size, size)
    try:
        inverse = np.linalg.inv(gram)
        share = inverse @ (differences @ target / size) / size
        left = target - share @ differences
        variance = float(left @ left) / max(len(target) - count, 1)
        error = np.sqrt(np.maximum(np.diag(inverse), 0) * variance) / size
    except np.linalg.LinAlgError:
        return np.zeros(count), np.full(count, np.inf)
    known = np.isfinite(share) & np.isfinite(error)
    return np.where(known, share, 0), np.where(known, error, np.inf)
