"""Integer tensors of TFLite files, dequantized: with one scale, one for each channel, or one for each block."""

from collections.abc import Callable
from hashlib import blake2b
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import (
    ComputedTensor,
    Rows,
    dequantize,
    packed_rows,
    stored_rows,
)
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


class CodeType(NamedTuple):
    """A type of integers: its name, and how they are stored."""

    name: str
    bits: int
    signed: bool


FLOATS = {  # by the number of the type
    0: "float32",
    1: "float16",
    10: "float64",
    18: "bfloat16",
    21: "float8_e4m3fn",
    22: "float8_e5m2",
}
CODES = {
    2: CodeType("int32", 32, True),
    3: CodeType("uint8", 8, False),
    4: CodeType("int64", 64, True),
    7: CodeType("int16", 16, True),
    9: CodeType("int8", 8, True),
    12: CodeType("uint64", 64, False),
    15: CodeType("uint32", 32, False),
    16: CodeType("uint16", 16, False),
    17: CodeType("int4", 4, True),
    19: CodeType("int2", 2, True),
    20: CodeType("uint4", 4, False),
}
_SCALE, _ZERO, _DETAILS_TYPE, _DETAILS, _AXIS = 2, 3, 4, 5, 6
_BLOCKWISE, _SEVERAL_AXES = 2, 3
_SCALES_INDEX, _ZEROS_INDEX, _BLOCK_SIZE, _BLOCK_SHAPE_OR_AXES = 0, 1, 2, 3

Find = Callable[[int, tuple[int, ...]], LazyTensor | None]  # from the number of a tensor to it in a shape, if it fits


def stored(raw: np.ndarray, kind: int, shape: tuple[int, ...]) -> Rows:
    """The rows of a constant as it is stored. Integers of fewer than 8 bits are packed, the first in the lowest bits.

    Args:
        raw (`np.ndarray`): its bytes, `uint8`.
        kind (`int`): the number of its type, one of [`FLOATS`] or [`CODES`].
        shape (`tuple[int, ...]`): its shape.

    Raises:
        [`InvalidFileError`]: if there are too few bytes.
    """
    if kind in FLOATS:
        return stored_rows(dense_tensor(raw, FLOATS[kind], shape))
    _, bits, signed = CODES[kind]
    if bits <= 8:
        return packed_rows(raw, bits, shape, signed)
    dtype = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    row = prod(shape[1:]) * dtype.itemsize
    if len(raw) < prod(shape) * dtype.itemsize:
        raise InvalidFileError("too few bytes for its shape")
    return lambda start, stop: (
        np.ascontiguousarray(raw[start * row : stop * row]).view(dtype).reshape(stop - start, *shape[1:])
    )


def dequantize_codes(
    rows: Rows, shape: tuple[int, ...], quantization: FlatTable | None, find: Find, stored_as: str
) -> ComputedTensor | None:
    """The values of an integer tensor, or `None` if the file doesn't say how to scale it.

    Args:
        rows ([`Rows`]): its integers.
        shape (`tuple[int, ...]`): their shape.
        quantization ([`FlatTable`], *optional*): the tensor's `QuantizationParameters`.
        find ([`Find`]): the tensors of the subgraph, some of which hold scales.
        stored_as (`str`): the type of the integers, such as `"int4"`.

    Raises:
        [`InvalidFileError`]: if the scales don't fit.
    """
    if quantization is None:
        return None
    form = quantization.integer(_DETAILS_TYPE, "<B")
    details = quantization.table(_DETAILS) if form else None
    if details is not None:
        return (
            _by_tensors(rows, shape, details, form, find, stored_as) if form in (_BLOCKWISE, _SEVERAL_AXES) else None
        )
    scales, zeros = quantization.numbers(_SCALE, "<f4"), quantization.numbers(_ZERO, "<i8")
    if not scales.any():
        return None
    axis = quantization.integer(_AXIS)
    zero = _along(axis, zeros, shape) if zeros.any() else None
    return dequantize(rows, shape, _along(axis, scales, shape), zero, stored_as)


def scaling_key(quantization: FlatTable) -> tuple[object, ...]:
    """Equal for `QuantizationParameters` of several subgraphs only if they scale integers in the same way."""
    details = quantization.table(_DETAILS)
    vectors = quantization.numbers(_SCALE, "<f4"), quantization.numbers(_ZERO, "<i8")
    digest = blake2b(b"".join(np.ascontiguousarray(each).data for each in vectors), digest_size=16).digest()
    return digest, len(vectors[0]), quantization.integer(_AXIS), None if details is None else details.place


def _along(axis: int, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One value, or one for each index of an axis, as an array that broadcasts to a shape."""
    if len(values) == 1:
        return values.reshape(())
    if not 0 <= axis < len(shape) or len(values) != shape[axis]:
        raise InvalidFileError("scales of another shape")
    return values.reshape([-1 if each == axis else 1 for each in range(len(shape))])


def _by_tensors(
    rows: Rows, shape: tuple[int, ...], details: FlatTable, form: int, find: Find, stored_as: str
) -> ComputedTensor | None:
    """The values of an integer tensor whose scales are another tensor, which is read in rows too."""
    blocks = _blocks(details, form, shape)
    counts = tuple(-(-size // block) for size, block in zip(shape, blocks, strict=True))
    scales = find(details.integer(_SCALES_INDEX), counts)
    if scales is None or not shape:
        return None
    place = details.integer(_ZEROS_INDEX)
    zeros = find(place, counts)
    if zeros is None and place > 0:  # number 0, the default, is seldom a tensor of zeros
        raise InvalidFileError("zeros of another shape")
    return dequantize(rows, shape, scales, zeros, stored_as, blocks)


def _blocks(details: FlatTable, form: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The size of the blocks along each dimension."""
    size = details.integer(_BLOCK_SIZE)
    given = tuple(details.numbers(_BLOCK_SHAPE_OR_AXES, "<i4")[: len(shape) + 1].tolist())
    if form == _SEVERAL_AXES:
        each = [1 if axis in given else length for axis, length in enumerate(shape)]
        if size > 0 and given and 0 <= given[-1] < len(shape):
            each[given[-1]] = size
    elif given:
        each = [block if block > 0 else length for block, length in zip(given, shape, strict=False)]
    else:
        each = [*[1] * (len(shape) - 1), size][: len(shape)]
    if len(each) != len(shape) or min(each, default=1) < 1:
        raise InvalidFileError("scales of another shape")
    return tuple(each)
