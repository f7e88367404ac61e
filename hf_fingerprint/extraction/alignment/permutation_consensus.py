"""Finds a common order for the tensors that share channels, since the channels that one layer writes another reads.

An idle channel has tiny weights in the layer that reads it, smaller than the mark, so its column can't be matched.
The layer that writes the channel has a whole row to match.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.extraction.alignment.weight_matching import ScaledPermutation, assign


MIN_AGREEMENT = 0.7
MIN_CONFIDENCE = 0.7
IDENTITY_CONFIDENCE = 0.5  # confidence that a channel stayed in place, if most of them did


@dataclass
class AxisOrder:
    """The rows or the input channels of one tensor.

    Attributes:
        name (`str`): the carrier's name.
        axis (`int`): 0 for rows, 1 for input channels.
        order (`np.ndarray` of shape `(channels,)`): for each channel of the base, the index of the suspect's.
        confidence (`np.ndarray` of shape `(channels,)`): the similarity of the two, 0 to 1.
        suspect_size (`int`): how many channels the suspect has.
    """

    name: str
    axis: int
    order: np.ndarray
    confidence: np.ndarray
    suspect_size: int


def axis_orders(name: str, found: ScaledPermutation, ours: np.ndarray, theirs: np.ndarray) -> list[AxisOrder]:
    """The orders of a tensor's rows and input channels; of a depthwise convolution only the rows."""
    after = found(theirs)
    sides = []
    for axis, order in enumerate((found.rows, found.columns)):
        if ours.shape[axis] > 1:
            one, two = (np.moveaxis(values, axis, 0).reshape(len(order), -1) for values in (ours, after))
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
            products = np.abs(np.einsum("rc,rc->r", one, two))
            confidence = np.divide(products, norms, out=np.zeros(len(order)), where=norms > 0)
            sides.append(AxisOrder(name, axis, order, confidence, theirs.shape[axis]))
    return sides


def find_consensus(sides: Iterable[AxisOrder]) -> dict[tuple[str, int], np.ndarray]:
    """Finds one order for all axes with nearly the same order; each channel follows the most confident axes.

    Args:
        sides (iterable of [`AxisOrder`]): the axes of all aligned tensors.

    Returns:
        `dict[tuple[str, int], np.ndarray]`: the orders that changed, by name and axis.
    """
    groups: list[list[AxisOrder]] = []
    for axis_order in sorted(sides, key=lambda each: -float(each.confidence.mean())):
        group = next((each for each in groups if _agree(each[0], axis_order)), None)
        if group is None:
            groups.append([axis_order])
        else:
            group.append(axis_order)
    changed: dict[tuple[str, int], np.ndarray] = {}
    for group in groups:
        order = _consensus_order(group)
        changed |= {(each.name, each.axis): order for each in group if not np.array_equal(order, each.order)}
    return changed


def _agree(one: AxisOrder, other: AxisOrder) -> bool:
    """Whether two axes have nearly the same order, counting only channels that moved if any did."""
    if (len(one.order), one.suspect_size) != (len(other.order), other.suspect_size):
        return False
    same, places = one.order == other.order, np.arange(len(one.order))
    moved = (one.order != places) | (other.order != places)
    moved &= np.minimum(one.confidence, other.confidence) >= MIN_CONFIDENCE
    return float(same[moved].mean() if moved.any() else same.mean()) >= MIN_AGREEMENT


def _consensus_order(group: Sequence[AxisOrder]) -> np.ndarray:
    count, suspect_size = len(group[0].order), group[0].suspect_size
    similarity = np.zeros((count, suspect_size))
    places = np.arange(count)
    for axis_order in group:
        np.maximum.at(similarity, (places, axis_order.order), axis_order.confidence)
    if float((group[0].order == places).mean()) >= MIN_AGREEMENT:
        similarity[places, places] = np.maximum(similarity[places, places], IDENTITY_CONFIDENCE)
    return assign(similarity)
