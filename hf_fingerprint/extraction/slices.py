"""Lists the slices in which one tensor may hold another: fused projections, stacked layers, rows or columns, padding.

The same slices serve both ways: a suspect's fused tensor holds several carriers, and a base's fused carrier may be
held by several tensors of a suspect.
"""

from collections.abc import Iterator
from math import prod

from hf_fingerprint.extraction.layouts import Shape
from hf_fingerprint.extraction.placed import Bounds, full_bounds


MAX_STACKED = 128  # layers in one tensor
MAX_FUSED = 4  # tensors of one size joined along an axis
MAX_PADDING = 2.0  # the weights of a padded tensor, as a multiple of those that are not padding


def find_slices(shape: Shape, size: int, equal_only: bool = False) -> Iterator[Bounds]:
    """Yields the slices of a tensor along one axis that have a number of weights.

    These are equal parts, one index of an axis, and parts at either end, with room for one or two of their size.

    Args:
        shape (`tuple[int, ...]`): the tensor's shape.
        size (`int`): the number of weights of a slice, less than the tensor's.
        equal_only (`bool`, *optional*, defaults to `False`): whether to leave out parts that are not equal.
    """
    total, bounds = prod(shape), full_bounds(shape)
    for axis, count in enumerate(shape):
        extent, rest = divmod(size * count, total)
        if rest or not 0 < extent < count:
            continue
        equal = count % extent == 0 and (count // extent <= MAX_FUSED or (extent == 1 and count <= MAX_STACKED))
        if equal_only and not equal:
            continue
        starts = range(0, count, extent) if equal else (0, extent, count - 2 * extent, count - extent)
        for start in dict.fromkeys(starts):
            if 0 <= start <= count - extent:
                yield (*bounds[:axis], (start, start + extent), *bounds[axis + 1 :])


def find_stacked_slices(shape: Shape, size: int) -> Iterator[Bounds]:
    """Yields the equal parts, two to four, of each layer of a tensor that stacks layers along an axis."""
    bounds, total = full_bounds(shape), prod(shape)
    for axis, layers in enumerate(shape):
        if not 1 < layers <= MAX_STACKED:
            continue
        for other, count in enumerate(shape):
            fused = total // layers // size if size else 0
            if other == axis or not 1 < fused <= MAX_FUSED or fused * size * layers != total or count % fused:
                continue
            extent = count // fused
            for layer in range(layers):
                for start in range(0, count, extent):
                    found = list(bounds)
                    found[axis], found[other] = (layer, layer + 1), (start, start + extent)
                    yield tuple(found)


def find_padded(shape: Shape, size: int, extents: Shape) -> Iterator[Bounds]:
    """Yields the slices from the beginning of every axis that have these extents, in any order.

    Args:
        shape (`tuple[int, ...]`): the padded tensor's shape.
        size (`int`): the number of weights without padding.
        extents (`tuple[int, ...]`): the lengths of the axes without padding.
    """
    if not size < prod(shape) <= MAX_PADDING * size:
        return

    def fill(axis: int, left: tuple[int, ...], found: Bounds) -> Iterator[Bounds]:
        if axis == len(shape):
            if all(extent == 1 for extent in left):
                yield found
            return
        for extent in dict.fromkeys((*left, 1)):
            if extent <= shape[axis] and (extent > 1 or shape[axis] == 1 or 1 in left):
                rest = list(left)
                if extent in rest:
                    rest.remove(extent)
                yield from fill(axis + 1, tuple(rest), (*found, (0, extent)))

    if len(shape) <= 6:
        yield from fill(0, extents, ())
