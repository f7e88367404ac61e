"""Sparse tensors of TFLite files, made dense in rows.

A level for each dimension says which of its indices are stored: all (dense), or those listed for each index of the
level before (CSR). Block-sparse tensors have a further dense level for each dimension of the blocks.
"""

from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import Rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS


MAX_SPARSE = 1 << 23  # stored values of a sparse tensor, each of which takes 32 bytes while it is placed
_ORDER, _BLOCK_MAP, _LEVELS = 0, 1, 2
_FORM, _SIZE, _SEGMENTS_TYPE, _SEGMENTS, _INDICES_TYPE, _INDICES = 0, 1, 2, 3, 4, 5
_SPARSE = 1
_INDEX_DTYPES = {1: "<i4", 2: "<u2", 3: "u1"}
_DAMAGED = "damaged sparse indices"


class SparseTensor:
    """A sparse tensor, whose values are placed when it is first read.

    Args:
        sparsity ([`FlatTable`]): its `SparsityParameters`.
        values ([`Rows`]): the stored values, in one dimension.
        count (`int`): their number.
        shape (`tuple[int, ...]`): shape of the dense tensor.

    Raises:
        [`InvalidFileError`]: if the parameters are invalid, or it has too many values.
    """

    def __init__(self, sparsity: FlatTable, values: Rows, count: int, shape: tuple[int, ...]):
        self._values, self._count, self._shape = values, count, shape
        self._places: tuple[np.ndarray, np.ndarray] | None = None
        order = sparsity.numbers(_ORDER, "<i4")[: 2 * MAX_DIMENSIONS].tolist()
        block_map = sparsity.numbers(_BLOCK_MAP, "<i4")[:MAX_DIMENSIONS].tolist()
        levels = [_Level(table) for _, table in zip(order, sparsity.tables(_LEVELS), strict=False)]
        dimensions = len(shape)
        if sorted(order) != list(range(len(levels))) or len(order) != dimensions + len(block_map):
            raise InvalidFileError(_DAMAGED)
        if any(not 0 <= each < dimensions for each in block_map):
            raise InvalidFileError(_DAMAGED)
        steps = [prod(shape[axis + 1 :]) for axis in range(dimensions)] + [prod(shape[a + 1 :]) for a in block_map]
        sizes = list(shape) + [0] * len(block_map)
        for dimension, level in zip(order, levels, strict=True):
            if dimension >= dimensions:
                axis = block_map[dimension - dimensions]
                if level.sparse or level.size < 1:
                    raise InvalidFileError(_DAMAGED)
                sizes[dimension] = level.size
                sizes[axis] = -(-sizes[axis] // level.size)
                steps[axis] *= level.size
        self._plan = [(level, sizes[at], steps[at]) for at, level in zip(order, levels, strict=True)]
        self._most = max([count, *(len(level.segments) for level in levels)])
        if self._most > 2 * prod(shape) + MAX_DIMENSIONS:
            raise InvalidFileError(_DAMAGED)
        if self._most > MAX_SPARSE:
            raise InvalidFileError("sparse, of too many values")

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Some rows of the dense tensor, as [`Rows`]."""
        if self._places is None:
            flat = self._place()
            self._places = np.sort(flat), np.argsort(flat, kind="stable")
        places, order = self._places
        row = prod(self._shape[1:])
        first, last = np.searchsorted(places, [start * row, stop * row])
        stored = self._values(0, self._count)
        dense = np.zeros((stop - start) * row, stored.dtype)
        dense[places[first:last] - start * row] = stored[order[first:last]]
        return dense.reshape(stop - start, *self._shape[1:])

    def _place(self) -> np.ndarray:
        """The place of each stored value in the dense tensor."""
        position = flat = np.zeros(1, np.int64)
        for level, size, step in self._plan:
            position, repeats, index = level.descend(position, self._most)
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise InvalidFileError(_DAMAGED)
            flat = np.repeat(flat, repeats) + index * step
        if len(flat) > self._count or (len(flat) and int(flat.max()) >= prod(self._shape)):
            raise InvalidFileError(_DAMAGED)
        return flat


class _Level:
    """Which indices of a dimension are stored."""

    def __init__(self, table: FlatTable):
        self.sparse = table.integer(_FORM, "<b") == _SPARSE
        self.size = 0 if self.sparse else table.integer(_SIZE)
        self.segments = self._indices = np.empty(0, np.int32)
        if self.sparse:
            self.segments = _vector(table, _SEGMENTS_TYPE, _SEGMENTS)
            self._indices = _vector(table, _INDICES_TYPE, _INDICES)

    def descend(self, position: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray | int, np.ndarray]:
        """The positions below those of the level before, how many each has, and their indices in the dimension."""
        if not self.sparse:
            if self.size < 0 or len(position) * self.size > most:
                raise InvalidFileError(_DAMAGED)
            index = np.arange(self.size)
            return (position[:, None] * self.size + index).reshape(-1), self.size, np.tile(index, len(position))
        if len(position) and int(position.max()) + 1 >= len(self.segments):
            raise InvalidFileError(_DAMAGED)
        begin, end = (self.segments[position + each].astype(np.int64) for each in (0, 1))
        counts = end - begin
        if len(counts) and (counts.min() < 0 or begin.min() < 0 or end.max() > len(self._indices)):
            raise InvalidFileError(_DAMAGED)
        total = int(counts.sum())
        if total > most:
            raise InvalidFileError(_DAMAGED)
        below = np.arange(total) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
        return below, counts, self._indices[below].astype(np.int64)


def _vector(table: FlatTable, form: int, slot: int) -> np.ndarray:
    dtype, found = _INDEX_DTYPES.get(table.integer(form, "<B")), table.table(slot)
    if dtype is None or found is None:
        raise InvalidFileError(_DAMAGED)
    return found.numbers(0, dtype)
