"""What one layer writes another reads, so their orders are one: where a tensor can't tell by itself, others do.

A channel that is idle has next to no weights in the layer that reads it; there the mark is larger than they are, and
whose column is whose can't be seen from the base. The layer that writes the channel has a whole row to tell by.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.extraction.alignment.weight_matching import Rearrangement, assign


AGREE = 0.7
SURE = 0.7
DOUBT = 0.5  # how sure it is that what stayed in most places stayed in all


@dataclass
class Side:
    """The rows or the input channels of one tensor.

    Attributes:
        name (`str`): the carrier's.
        axis (`int`): 0 for rows, 1 for input channels.
        order (`np.ndarray` of shape `(channels,)`): for each of the base's, the suspect's.
        sure (`np.ndarray` of shape `(channels,)`): how like each other the two are, 0 to 1.
        of (`int`): how many the suspect has.
    """

    name: str
    axis: int
    order: np.ndarray
    sure: np.ndarray
    of: int


def sides_of(name: str, found: Rearrangement, ours: np.ndarray, theirs: np.ndarray) -> list[Side]:
    """Both sides of a tensor; of a depthwise convolution only the rows."""
    after = found(theirs)
    sides = []
    for axis, order in enumerate((found.rows, found.columns)):
        if ours.shape[axis] > 1:
            one, two = (np.moveaxis(values, axis, 0).reshape(len(order), -1) for values in (ours, after))
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
            products = np.abs(np.einsum("rc,rc->r", one, two))
            sure = np.divide(products, norms, out=np.zeros(len(order)), where=norms > 0)
            sides.append(Side(name, axis, order, sure, theirs.shape[axis]))
    return sides


def agree(sides: Iterable[Side]) -> dict[tuple[str, int], np.ndarray]:
    """One order for all sides that stand in nearly the same, each channel's place by those that are surest.

    Args:
        sides (iterable of [`Side`]): of all tensors that were put in order.

    Returns:
        `dict[tuple[str, int], np.ndarray]`: by name and axis, the orders that changed.
    """
    groups: list[list[Side]] = []
    for side in sorted(sides, key=lambda each: -float(each.sure.mean())):
        for group in groups:
            if _alike(group[0], side):
                group.append(side)
                break
        else:
            groups.append([side])
    changed = {}
    for group in groups:
        order = _consensus(group)
        for side in group:
            if not np.array_equal(order, side.order):
                changed[side.name, side.axis] = order
    return changed


def _alike(one: Side, other: Side) -> bool:
    """Whether two sides stand in nearly the same order, above all in what moved: that little did says nothing."""
    if (len(one.order), one.of) != (len(other.order), other.of):
        return False
    same, places = one.order == other.order, np.arange(len(one.order))
    moved = ((one.order != places) | (other.order != places)) & (np.minimum(one.sure, other.sure) >= SURE)
    return float(same[moved].mean() if moved.any() else same.mean()) >= AGREE


def _consensus(group: Sequence[Side]) -> np.ndarray:
    count, of = len(group[0].order), group[0].of
    likeness = np.zeros((count, of))
    places = np.arange(count)
    for side in group:
        np.maximum.at(likeness, (places, side.order), side.sure)
    if float((group[0].order == places).mean()) >= AGREE:
        likeness[places, places] = np.maximum(likeness[places, places], DOUBT)
    return assign(likeness)
