"""Which input channels of a suspect are one: a unit that was split carries the same as its parts, and whatever reads
them adds them up.

Channels that move are known by what they carry. Those that stand still on every input there is, or move in a sample
or two, are like many others by chance; of them the layer that writes them tells, as its rows are alike too.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


MIN_SAME_COSINE, MIN_SAME_ROW_COSINE = 0.9999, 0.999999
SAMPLES, MIN_VARIATION = 8, 1e-4  # in how many samples a channel moves, and by what share of its energy
MIN_WRITER_SHARE = 0.5  # of the channels that are one by what they carry
_TINY = 1e-20


class DuplicateUnits(NamedTuple):
    """Input channels that always carry the same, up to a factor.

    Attributes:
        one (`np.ndarray` of shape `(channels in,)`): the first channel that carries the same as each.
        factors (`np.ndarray` of shape `(channels in,)`): what each carries, in units of that one.
    """

    one: np.ndarray
    factors: np.ndarray

    def __call__(self, theirs: np.ndarray) -> np.ndarray:
        """The tensor with the sum in the first channel's place, and nothing in the others'."""
        sums = np.zeros_like(theirs)
        np.add.at(sums.swapaxes(0, 1), self.one, theirs.swapaxes(0, 1) * self.factors[:, None, None])
        return sums


def find_duplicate_units(inputs: np.ndarray, writers: Iterable[np.ndarray] = ()) -> DuplicateUnits | None:
    """Finds them; `None` if each is by itself.

    Args:
        inputs (`np.ndarray` of shape `(channels, samples)`): what goes in.
        writers (iterable of `np.ndarray` of shape `(channels, channels in, kernel)`, *optional*): weights that may
            write it, among others that don't.
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
    one = same.argmax(1)
    if len(np.unique(one)) == len(one):
        return None
    signs = np.where(np.einsum("cs,cs->c", inputs, inputs[one]) < 0, -1.0, 1.0)
    ratios = np.divide(norms, norms[one], out=np.ones_like(norms), where=moves & (norms[one] > _TINY))
    return DuplicateUnits(one, np.where(moves, signs * ratios, 1.0))


def first_duplicate_rows(rows: np.ndarray) -> np.ndarray:
    """For each row the first that is a positive multiple of it, perhaps itself: `(rows,)`."""
    same_rows = cosines(rows, rows) > MIN_SAME_ROW_COSINE
    np.fill_diagonal(same_rows, True)
    return same_rows.argmax(1)


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of every row of one with every row of the other, `(rows, other rows)`."""
    one, two = (values.reshape(len(values), -1) for values in (ours, theirs))
    norms = [np.linalg.norm(values, axis=1, keepdims=True) for values in (one, two)]
    one, two = (v / np.where(n > _TINY, n, 1) for v, n in zip((one, two), norms, strict=True))
    return one @ two.T
