"""The layouts in which a tensor may hold the weights of another: permuted, merged, split and squeezed axes.

A layout is a reshape to *atoms*, a permutation of these, and a reshape to the new shape. Frameworks differ by no more:
OHWI and HWIO convolutions, transposed matrices, linear layers as 1x1 convolutions, im2col matrices, heads as an axis.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from math import prod
from typing import NamedTuple

import numpy as np


MAX_ATOMS = 6  # axes longer than 1 of a tensor whose axes may be permuted
MAX_LAYOUTS = 48  # of one pair of shapes
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How to bring an array into another shape: `array.reshape(atoms).transpose(order).reshape(shape)`."""

    atoms: Shape
    order: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the weights keep their order in memory."""
        return self.order == tuple(range(len(self.atoms)))

    def apply(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The array in the new shape; a view of it where possible."""
        return array.reshape(self.atoms).transpose(self.order).reshape(shape)

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """The row-major positions in the new shape of weights at row-major `indices` of the array."""
        places = np.unravel_index(indices, self.atoms)
        moved = tuple(places[axis] for axis in self.order)
        return np.ravel_multi_index(moved, tuple(self.atoms[axis] for axis in self.order))


PLAIN = Layout((-1,), (0,))


def squeeze(shape: Shape) -> Shape:
    """The axes longer than 1."""
    return tuple(size for size in shape if size != 1)


@lru_cache(1 << 12)
def find_layouts(source: Shape, target: Shape) -> tuple[Layout, ...]:
    """The layouts in which a tensor of one shape may hold the weights of another, the plainest first; at most 48.

    Axes of 1 are added and dropped freely. Either one of the shapes is a permutation of the other with adjacent axes
    merged, or the order of the weights is the same.
    """
    if prod(source) != prod(target):
        return ()
    coarse, fine = squeeze(source), squeeze(target)
    if coarse == fine and len(set(fine)) == len(fine):
        return (_canonical(fine, tuple(range(len(fine)))),)
    found: dict[Layout, None] = {}
    if refines(coarse, fine) or refines(fine, coarse):
        found[_canonical(fine, tuple(range(len(fine))))] = None
    for layout in (*_splits(coarse, fine), *_merges(coarse, fine)):
        found[layout] = None
        if len(found) >= MAX_LAYOUTS:
            break
    return tuple(found)


def _splits(source: Shape, target: Shape) -> Iterator[Layout]:
    """Layouts that split the source's axes into the target's, and permute them."""
    if len(target) > MAX_ATOMS:
        return
    coarse = {source, *(_merged(source, at) for at in range(len(source) - 1))}
    for order in permutations(range(len(target))):
        atoms = tuple(target[axis] for axis in order)
        if any(refines(atoms, each) for each in coarse):
            yield _canonical(atoms, tuple(np.argsort(order).tolist()))


def _merges(source: Shape, target: Shape) -> Iterator[Layout]:
    """Layouts that permute the source's axes, and merge them into the target's."""
    if len(source) <= MAX_ATOMS:
        for order in _orders(source, target, ()):
            yield _canonical(source, order)


def _orders(source: Shape, target: Shape, taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The orders of the source's axes in which adjacent ones merge into the target's."""
    if len(taken) == len(source):
        yield taken
        return
    done, ends = prod(source[axis] for axis in taken), np.cumprod(target, dtype=object).tolist()
    end = next((each for each in ends if each > done), None)
    for axis in range(len(source)):
        if end is not None and axis not in taken and end % (done * source[axis]) == 0:
            yield from _orders(source, target, (*taken, axis))


def _merged(shape: Shape, at: int) -> Shape:
    return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])


def refines(fine: Shape, coarse: Shape) -> bool:
    """Whether merging adjacent axes of `fine` gives `coarse`."""
    return set(np.cumprod(coarse, dtype=object).tolist()) <= set(np.cumprod(fine, dtype=object).tolist())


def _canonical(atoms: Shape, order: tuple[int, ...]) -> Layout:
    """The same layout with atoms merged that stay adjacent."""
    groups: list[list[int]] = []
    for axis in order:
        if groups and axis == groups[-1][-1] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    firsts = sorted(group[0] for group in groups)
    sizes = {group[0]: prod(atoms[axis] for axis in group) for group in groups}
    return Layout(tuple(sizes[first] for first in firsts), tuple(firsts.index(group[0]) for group in groups))
