"""Reads the mark from a delta that was scaled, trimmed, thinned out or rounded weight by weight.

The owner's delta D to the ancestor is known, and the suspect's is E = F(D + M) with a mark M that is small. What E
says about M is the derivative of log p(E | D) in D. It has two parts: whether the weight was reset to the ancestor's,
and the value it has then. Each has a mean H(D), its response, and what exceeds it counts by H' over the noise's
variance; see `response.py`. So at the threshold of a trimmed or rounded delta it is the reset itself that shows the
mark; where weights were reset by chance, it says nothing.

A weight that was reset has E = 0. If the suspect was trained or rounded after it, its E is far smaller than others.
None of it looks at a codeword.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np

from hf_fingerprint.extraction.response import BIN_WEIGHTS, MIN_WINDOW, Bins, Response


STATISTICS_WEIGHTS, CHANNEL_WEIGHTS, CHUNK_WEIGHTS = 1 << 19, 1 << 18, 1 << 16
MIN_CHANGED = 0.99  # of the weights: with more resets than that, other readings claim too much
ROW_PRIOR = 32.0  # weights
MAX_CHANNEL_ENERGY, USUAL_CHANNELS = 16.0, 0.75  # a channel's relative to the owner's, over that of this share
RESET_DEVIATIONS = 4.0
MAX_EXACT_RESETS = 0.1  # of the weights: with more, these alone were reset
_TINY, _MAD = 1e-30, 1.4826


class _DeltaResponse(NamedTuple):
    """The responses of whether a weight was reset, and of its value.

    Attributes:
        bins ([`Bins`]): the bins of the owner's delta.
        limit (`float`): the size up to which a weight was reset.
        of_values ([`Response`]): of the values of weights that were not reset.
        of_resets ([`Response`] or `None`): of the resets, if there are any.
        of_drift ([`Response`] or `None`): of the values of weights that were reset, if these are not all 0.
    """

    bins: Bins
    limit: float
    of_values: Response
    of_resets: Response | None
    of_drift: Response | None

    @classmethod
    def measure(cls, deltas: np.ndarray, values: np.ndarray, amplitude: float) -> Self:
        """Measures the responses on a sample of D and E, `float64` of shape `(count,)`."""
        bins, limit = Bins.of(deltas), _reset_limit(values)
        which, reset = bins.find(deltas), np.abs(values) <= limit
        return cls(
            bins,
            limit,
            Response.measure(which[~reset], deltas[~reset], values[~reset], amplitude),
            Response.measure(which, deltas, reset.astype(np.float64), amplitude) if reset.any() else None,
            Response.measure(which[reset], deltas[reset], values[reset], amplitude) if limit > 0 else None,
        )

    def read(self, deltas: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What D and E, of one shape, say about M: the derivative of log p in M, and its variance."""
        which = self.bins.find(deltas)
        excess, gain = self.of_values.read(which, deltas, values)
        score, information = excess * gain, np.square(gain)
        if self.of_resets is None:
            return score, information
        reset = np.abs(values) <= self.limit
        score[reset] = information[reset] = 0
        if self.of_drift is not None:
            excess, gain = self.of_drift.read(which[reset], deltas[reset], values[reset])
            score[reset], information[reset] = excess * gain, np.square(gain)
        excess, gain = self.of_resets.read(which, deltas, reset.astype(np.float32))
        score += excess * gain
        information += np.square(gain)
        return score, information


def read_response(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray, least_gain: float = 0.0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads the mark from what became of each of the owner's deltas.

    Args:
        suspect, owner (`np.ndarray` of shape `(m, n)`): E and D, `float32`, finite, in the weights' own unit.
        inverse (`np.ndarray` of shape `(m,)`): one over the mark's amplitude in each row, or 0.
        kept (`np.ndarray` of shape `(m, n)`): which weights may hold a mark.
        least_gain (`float`, *optional*, defaults to 0): the least information to read of a delta that has no weights
            reset, relative to that of E - D.

    Returns:
        `(values, gains)`, `float32` of shape `(m, n)`: the mark times `gains` plus noise of variance 1, and `gains`,
        which are 0 where nothing is read. `None` if nothing can be read, or less than `least_gain`.
    """
    amplitude = np.divide(1, inverse, out=np.zeros(len(inverse), np.float32), where=inverse > 0)
    chosen = _sample(kept)
    deltas, values = (each.reshape(-1)[chosen].astype(np.float64) for each in (owner, suspect))
    if len(deltas) < BIN_WEIGHTS or not amplitude.any():
        return None
    response = _DeltaResponse.measure(deltas, values, float(np.sqrt(np.mean(np.square(amplitude[amplitude > 0])))))
    information = response.read(deltas, values)[1]
    mean = float(information.mean())
    if not response.of_values.overall > 0 or not mean > 0:
        return None
    are_changed = np.mean(np.abs(values) > response.limit) > MIN_CHANGED
    plain = response.of_values.overall**2 / max(float(np.mean(np.square(values - deltas))), _TINY)
    if are_changed and mean < least_gain * plain:
        return None
    prior = ROW_PRIOR * float(np.mean(np.square(information))) / mean  # as many weights that say most
    found, gains = np.zeros(owner.shape, np.float32), np.zeros(owner.shape, np.float32)
    for rows in _chunks(owner):
        score, information = (each * kept[rows] for each in response.read(owner[rows], suspect[rows]))
        power = (np.square(score).sum(1) + prior) / (information.sum(1) + prior)
        scale = 1 / np.sqrt(np.maximum(power, 1))[:, None]  # of rows that drifted more than others
        np.sqrt(information, out=gains[rows])
        np.divide(score * scale, gains[rows], out=found[rows], where=information > 0)
        gains[rows] *= scale * amplitude[rows, None]
    return found, gains


def usual_channels(suspect: np.ndarray, owner: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Which rows, and then which columns, moved by no more than others did for their part in the owner's delta.

    Channels that nothing uses can be moved at will, and one could outweigh all others in the statistics. They have
    little of the owner's delta. Where most weights were reset, a channel with few others is compared with those that
    have any.

    Args:
        suspect, owner, kept: see [`read_response`].
    """
    chosen = _sample(kept, CHANNEL_WEIGHTS)
    values, deltas = (each.reshape(-1)[chosen].astype(np.float64) for each in (suspect, owner))
    there = np.abs(values) > _reset_limit(values)
    squares = np.square(values) * there, np.square(deltas), there
    for which, count in zip(np.divmod(chosen, owner.shape[1]), owner.shape, strict=True):
        energy, own, changed = (np.bincount(which, each, count) for each in squares)
        ratios = energy / np.maximum(own + own.mean(), _TINY)
        of_all, of_changed = _most(ratios, own), _most(ratios, own * (ratios > 0))
        is_changed = 2 * changed > np.bincount(which, minlength=count)
        yield ratios <= MAX_CHANNEL_ENERGY * np.where(is_changed, of_all, of_changed)


def tuned_channels(owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
    """In which rows, and then in which columns, the owner's delta is larger than the mark's blur.

    In the others, such as taps of a kernel that only ever see padding, the copy's delta is the mark. What became of
    it is no part of the response to a delta that is larger.

    Args:
        owner, inverse, kept: see [`read_response`].
    """
    chosen = _sample(kept, CHANNEL_WEIGHTS)
    places = np.divmod(chosen, owner.shape[1])
    energy = np.square(owner.reshape(-1)[chosen] * inverse[places[0]], dtype=np.float64)
    for which, count in zip(places, owner.shape, strict=True):
        yield np.bincount(which, energy, count) > MIN_WINDOW**2 * np.bincount(which, minlength=count)


def _most(values: np.ndarray, weights: np.ndarray) -> float:
    """What values that have most of the weight are up to."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, USUAL_CHANNELS * total[-1])]])


def _reset_limit(values: np.ndarray) -> float:
    """The size up to which a weight was reset. If most are small and few have most of the energy, most were."""
    size = np.abs(values)
    if not size.any() or np.mean(size == 0) > MAX_EXACT_RESETS:
        return 0.0
    limit = RESET_DEVIATIONS * _MAD * float(np.median(size))
    squares = np.square(values)
    return limit if 2 * squares[size > limit].sum() > squares.sum() else 0.0


def _sample(kept: np.ndarray, count: int = STATISTICS_WEIGHTS) -> np.ndarray:
    """Flat indices of kept weights: of all, or of `count` by chance, since steps could miss whole taps of a kernel."""
    if kept.size <= count:
        return np.flatnonzero(kept)
    chosen = np.random.default_rng(0).integers(0, kept.size, count)
    return chosen[kept.reshape(-1)[chosen]]


def _chunks(matrix: np.ndarray) -> Iterator[slice]:
    rows = max(1, CHUNK_WEIGHTS // max(1, matrix.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))
