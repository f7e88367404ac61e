"""Tensors that are joined from chunks as they are read."""

from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


class Chunk(NamedTuple):
    """A part of a tensor.

    Attributes:
        offsets (`tuple[int, ...]`): where it begins in the tensor, along each dimension.
        tensor ([`LazyTensor`]): its values.
    """

    offsets: tuple[int, ...]
    tensor: LazyTensor


def join_chunks(chunks: list[Chunk], shape: tuple[int, ...]) -> LazyTensor:
    """The tensor that chunks make up, which need no order: as it is if there is one, else as `float32`.

    Args:
        chunks (`list[Chunk]`): its parts, each readable.
        shape (`tuple[int, ...]`): its shape.

    Raises:
        [`InvalidFileError`]: if chunks are missing, or don't fit.
    """
    parts = [each for each in chunks if each.tensor.numel()]
    for offsets, tensor in parts:
        if len(offsets) != len(shape) or len(tensor.shape) != len(shape):
            raise InvalidFileError("a chunk of another shape")
        if any(begin + size > whole for begin, size, whole in zip(offsets, tensor.shape, shape, strict=True)):
            raise InvalidFileError("a chunk beyond the tensor's shape")
    if sum(each.tensor.numel() for each in parts) != prod(shape):
        raise InvalidFileError("chunks are missing: give the whole folder")
    if len(parts) == 1 or not parts:
        return (parts or chunks)[0].tensor
    rows = [stored_rows(each.tensor) for each in parts]
    begins = np.array([each.offsets[0] for each in parts])
    ends = np.array([each.offsets[0] + each.tensor.shape[0] for each in parts])

    def compute(start: int, stop: int) -> np.ndarray:
        found = np.zeros((stop - start, *shape[1:]), np.float32)
        for number in np.flatnonzero((begins < stop) & (ends > start)):
            (begin, *others), tensor = parts[number]
            first, last = max(start, begin), min(stop, int(ends[number]))
            place = tuple(slice(at, at + size) for at, size in zip(others, tensor.shape[1:], strict=True))
            found[(slice(first - start, last - start), *place)] = rows[number](first - begin, last - begin)
        return found

    return ComputedTensor(compute, shape, parts[0].tensor.dtype)


class FlatPiece(NamedTuple):
    """Adjacent elements of a flat vector.

    Attributes:
        tensor ([`LazyTensor`]): the vector.
        start (`int`): the first element.
        size (`int`): how many they are.
    """

    tensor: LazyTensor
    start: int
    size: int


def join_pieces(pieces: list[FlatPiece], shape: tuple[int, ...]) -> ComputedTensor:
    """The tensor whose elements in row-major order are those of the pieces, one after another, as `float32`.

    Args:
        pieces (`list[FlatPiece]`): readable pieces; they may have more elements than the tensor.
        shape (`tuple[int, ...]`): its shape.
    """
    rows = [stored_rows(each.tensor) for each in pieces]
    ends = np.cumsum([each.size for each in pieces])
    row = prod(shape[1:])

    def compute(start: int, stop: int) -> np.ndarray:
        first, last = start * row, stop * row
        found = np.empty(last - first, np.float32)
        for number in range(int(np.searchsorted(ends, first, "right")), len(pieces)):
            piece, begin = pieces[number], int(ends[number]) - pieces[number].size
            if begin >= last:
                break
            low, high = max(first, begin), min(last, begin + piece.size)
            values = rows[number](piece.start + low - begin, piece.start + high - begin)
            found[low - first : high - first] = values
        return found.reshape(stop - start, *shape[1:])

    return ComputedTensor(compute, shape, pieces[0].tensor.dtype if pieces else "float32")
