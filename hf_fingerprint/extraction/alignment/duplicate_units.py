"""Finds duplicate input channels of a suspect: parts of a split unit, whose activations the next layer adds up.

Channels that vary are recognized by their activations. Those that are constant, or vary in only a few samples,
resemble others by chance; they are recognized by the rows of the layer that writes them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


MIN_SAME_COSINE, MIN_SAME_ROW_COSINE = 0.9999, 0.999999
SAMPLES, MIN_VARIATION = 8, 1e-4  # in how many samples a channel varies, and by what share of its energy
MIN_WRITER_SHARE = 0.5  # share of the pairs found by activations that a writer's rows confirm
_TINY = 1e-20


class DuplicateUnits(NamedTuple):
    """Input channels with equal activations, up to a factor.

    Attributes:
        representatives (`np.ndarray` of shape `(channels in,)`): for each channel, the first one with its activation.
        factors (`np.ndarray` of shape `(channels in,)`): each channel's activation in units of its representative's.
    """

    representatives: np.ndarray
    factors: np.ndarray

    def __call__(self, theirs: np.ndarray) -> np.ndarray:
        """The tensor with each group of duplicates summed in its representative, and 0 in the others."""
        sums = np.zeros_like(theirs)
        np.add.at(sums.swapaxes(0, 1), self.representatives, theirs.swapaxes(0, 1) * self.factors[:, None, None])
        return sums


def find_duplicate_units(inputs: np.ndarray, writers: Iterable[np.ndarray] = ()) -> DuplicateUnits | None:
    """Finds duplicate input channels; `None` if there are none.

    Args:
        inputs (`np.ndarray` of shape `(channels, samples)`): the activations.
        writers (iterable of `np.ndarray`, *optional*): weights of layers that may write these channels, rows first.
    """
    moving = inputs - inputs.mean(1, keepdims=True)
    norms, energy = np.linalg.norm(inputs, axis=1), (moving**2).sum(1)
    moves = (energy > MIN_VARIATION * norms**2) & (energy**2 >= SAMPLES * (moving**4).sum(1))
    same = (np.abs(cosines(inputs, inputs)) > MIN_SAME_COSINE) & (np.abs(cosines(moving, moving)) > MIN_SAME_COSINE)
    same &= moves[:, None] & moves
    np.fill_diagonal(same, False)
    for rows in writers if same.any() else ():
        same_rows = cosines(rows, rows) > MIN_SAME_ROW_COSINE
        np.fill_diagonal(same_rows, False)
        if float(same_rows[same].mean()) >= MIN_WRITER_SHARE:
            same |= same_rows & ~(moves[:, None] | moves)
            break
    np.fill_diagonal(same, True)
    first = same.argmax(1)
    if len(np.unique(first)) == len(first):
        return None
    signs = np.where(np.einsum("cs,cs->c", inputs, inputs[first]) < 0, -1.0, 1.0)
    ratios = np.divide(norms, norms[first], out=np.ones_like(norms), where=moves & (norms[first] > _TINY))
    return DuplicateUnits(first, np.where(moves, signs * ratios, 1.0))


def first_duplicate_rows(rows: np.ndarray) -> np.ndarray:
    """For each row, the index of the first row that is a positive multiple of it, or its own: `(rows,)`."""
    same_rows = cosines(rows, rows) > MIN_SAME_ROW_COSINE
    np.fill_diagonal(same_rows, True)
    return same_rows.argmax(1)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The cosines of every row of one with every row of the other, `(rows, other rows)`."""
    one, two = (values.reshape(len(values), -1) for values in (ours, theirs))
    norms = [np.linalg.norm(values, axis=1, keepdims=True) for values in (one, two)]
    one, two = (v / np.where(n > _TINY, n, 1) for v, n in zip((one, two), norms, strict=True))
    return one @ two.T
