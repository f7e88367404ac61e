"""Which of several bases a suspect was made from, told from a few of their rows.

A suspect that was made from base t and drifted is `B_t + drift`; a mixture of copies of several bases is a mixture of
these. So the sampled weights are regressed on those of all bases, with coefficients that sum to 1: the coefficient of
a base is the share of the suspect that comes from it. Fine-tunes of one backbone are told apart by less than they
differ, since the drift of a suspect has next to nothing in common with what tells one base from another. A base whose
share is surely below `LEAST_SHARE` need not be read.

Nothing here sees a codeword or a mark's key, so which bases are read costs the bound no more than their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, Weights
from hf_fingerprint.checkpoints.dtypes import to_float32


LEAST_SHARE, DEVIATIONS = 0.05, 3.0
MOST_SAMPLES = 1 << 17
_CLIP = 4 * 1.4826  # robust standard deviations
_MOST = np.float32(1e15)  # squares of larger ones are infinite
Sampled = dict[str, np.ndarray]  # by tensor


@dataclass(frozen=True)
class Shares:
    """How much of a suspect comes from each of several bases.

    Attributes:
        share (`np.ndarray` of shape `(bases,)`): their coefficients, which sum to 1 but for bases that are alike.
        error (`np.ndarray` of shape `(bases,)`): standard errors.
    """

    share: np.ndarray
    error: np.ndarray

    @property
    def needed(self) -> np.ndarray:
        """Which bases may have a share that matters, `bool` of shape `(bases,)`."""
        return self.share + DEVIATIONS * self.error >= LEAST_SHARE


def sample(checkpoint: Weights, infos: dict[str, TensorInfo], rows: dict[str, Sequence[int]], columns: int) -> Sampled:
    """Some rows of some tensors, `float32`, at most so many weights of each row, evenly spread; 0 for what is not
    finite, or absurd."""
    found = {}
    for name, chosen in rows.items():
        info, values = infos[name], []
        for row in chosen:
            raw = checkpoint.read(info, row * info.row_bytes, (row + 1) * info.row_bytes)
            values.append(to_float32(raw, info.dtype)[:: max(1, info.columns // columns)])
        drawn = np.concatenate(values)
        found[name] = np.where(np.abs(drawn) < _MOST, drawn, np.float32(0))
    return found


def cosine(one: Sampled, other: Sampled) -> float:
    """The mean cosine of the tensors sampled of both; -1 if there is none."""
    cosines = []
    for name in one.keys() & other.keys():
        a, b = one[name].astype(np.float64), other[name].astype(np.float64)
        scale = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosines.append(float(a @ b) / scale if scale > 0 else 0.0)
    return float(np.mean(cosines)) if cosines else -1.0


def shares_of(suspect: Sampled, bases: Sequence[Sampled]) -> Shares:
    """How much of a suspect comes from each base.

    Weights of the suspect that are exactly 0 say nothing. Each tensor counts by the inverse of what it is off by, so
    that one that was trained far or rearranged says little. Bases whose samples are equal get the share of one.

    Args:
        suspect (`dict[str, np.ndarray]`): its sampled weights by tensor.
        bases (sequence of the same): each base's, of the same tensors and rows.
    """
    kept = {name: theirs != 0 for name, theirs in suspect.items()}
    off = np.array([[_mean_square(suspect[n] - base[n], kept[n]) for n in suspect] for base in bases])
    nearest = int(np.log(off + np.finfo(float).tiny).sum(axis=1).argmin())
    scale = [1 / np.sqrt(each) if each > 0 else 0.0 for each in off[nearest]]
    if not any(scale):  # the suspect is that base
        scale = [1.0] * len(scale)

    def difference(of: Sampled, clipped: bool = False) -> np.ndarray:
        parts = []
        for factor, (name, mask) in zip(scale, kept.items(), strict=True):
            values = (of[name] - bases[nearest][name])[mask].astype(np.float64) * factor
            most = _CLIP * float(np.median(np.abs(values))) if clipped and len(values) else 0.0
            parts.append(np.clip(values, -most, most) if most else values)
        return np.concatenate(parts)

    target = difference(suspect, clipped=True)
    place, distinct = [], [np.zeros_like(target)]  # the nearest has coefficient 1 less the others'
    for base in bases:
        apart = difference(base)
        equal = next((i for i, each in enumerate(distinct) if np.array_equal(each, apart)), len(distinct))
        distinct += [apart] if equal == len(distinct) else []
        place.append(equal)
    share, error = _least_squares(np.stack(distinct)[1:], target)
    share, error = np.append(1 - share.sum(), share), np.append(0.0, error)
    return Shares(share[place], error[place])


def _mean_square(difference: np.ndarray, kept: np.ndarray) -> float:
    return float(np.square(difference[kept], dtype=np.float64).mean()) if kept.any() else 0.0


def _least_squares(apart: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors; those that can't be told have an infinite one."""
    count = len(apart)
    gram = apart @ apart.T
    size = np.sqrt(np.diag(gram))
    size[size == 0] = 1
    gram = gram / np.outer(size, size)
    try:
        inverse = np.linalg.inv(gram)
        share = inverse @ (apart @ target / size) / size
        left = target - share @ apart
        variance = float(left @ left) / max(len(target) - count, 1)
        error = np.sqrt(np.maximum(np.diag(inverse), 0) * variance) / size
    except np.linalg.LinAlgError:
        return np.zeros(count), np.full(count, np.inf)
    known = np.isfinite(share) & np.isfinite(error)
    return np.where(known, share, 0), np.where(known, error, np.inf)
