"""Tensors whose values are computed as they are read: dequantized, unpacked or looked up in a table.

```python
codes = packed_rows(raw, bits=4, shape=(768, 3072))
tensor = dequantize(codes, (768, 3072), scales, zeros, stored="uint4")  # scales of shape (768, 96): groups of 32
```
"""

from collections.abc import Callable
from math import prod

import numpy as np

from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, LazyTensor, Storage


MAX_BLOCK = 1 << 25  # elements of the rows computed at once: 134 MB as float32, of which a few copies are made
Factors = float | np.ndarray | LazyTensor  # what blocks of a tensor share
Rows = Callable[[int, int], np.ndarray]  # from the first row and the end to an array `(rows, *shape[1:])`
_INTEGERS = {
    "I8": "i1",
    "U8": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}
_NOTHING = np.empty(0, np.uint8)
_BLOCK_ROWS = 8  # the fewest rows that a reader asks for


class ComputedTensor(LazyTensor):
    """A `float32` tensor whose rows are computed when they are read.

    Args:
        rows ([`Rows`]): computes some rows, the slices of the first dimension, as `float32`.
        shape (`tuple[int, ...]`): its shape.
        stored (`str`): how its values are stored, such as `"int4"`.
    """

    __slots__ = ("rows", "stored")

    def __init__(self, rows: Rows, shape: tuple[int, ...], stored: str):
        super().__init__("float32", shape, storage=Storage("", "float32", prod(shape), data=_NOTHING))
        self.rows, self.stored = rows, stored

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`: a few whole rows are computed at once."""
        rows = min(_BLOCK_ROWS, *self.shape[:1]) if self.shape else 1
        if rows * prod(self.shape[1:]) > MAX_BLOCK:
            return f"rows of more than {MAX_BLOCK // rows:,} elements"
        return super().unreadable_reason()

    @property
    def span(self) -> tuple[int, int]:
        """Begin and end of its bytes in a storage, which it has none of."""
        return 0, 0

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as `uint8`."""
        stop = self.nbytes if stop is None else stop
        if start >= stop:
            return np.empty(0, np.uint8)
        row = self.nbytes // self.shape[0] if self.shape else self.nbytes
        first = start // row
        with np.errstate(all="ignore"):
            found = np.ascontiguousarray(self.rows(first, -(-stop // row)), np.float32)
        return found.reshape(-1).view(np.uint8)[start - first * row : stop - first * row]


def stored_rows(tensor: LazyTensor) -> Rows:
    """The rows of a tensor as its own type: codes as integers, floats as `float32`. One of no dimension is one row.

    Raises:
        [`InvalidFileError`]: if it can't be read.
    """
    reason = tensor.unreadable_reason()
    dtype = DTYPES.get(tensor.dtype, "")
    if reason is not None or (dtype not in _INTEGERS and dtype not in READABLE):
        raise InvalidFileError(reason or f"dtype {tensor.dtype}")
    shape = tensor.shape or (1,)
    row = tensor.nbytes // max(shape[0], 1)

    def rows(start: int, stop: int) -> np.ndarray:
        raw = np.ascontiguousarray(tensor.read(start * row, stop * row))
        values = raw.view(_INTEGERS[dtype]) if dtype in _INTEGERS else to_float32(raw, dtype)
        return values.reshape(stop - start, *shape[1:])

    return rows


def stored_values(tensor: LazyTensor) -> np.ndarray:
    """All values of a small tensor, such as scales, in its shape; see [`stored_rows`]."""
    return stored_rows(tensor)(0, tensor.shape[0] if tensor.shape else 1).reshape(tensor.shape)


def packed_rows(
    raw: np.ndarray, bits: int, shape: tuple[int, ...], signed: bool = False, high_first: bool = False
) -> Rows:
    """The rows of a tensor of small integers that are packed without gaps, in row-major order.

    Args:
        raw (`np.ndarray`): the bytes, `uint8`.
        bits (`int`): bits of an element, 1 to 8.
        shape (`tuple[int, ...]`): the tensor's shape.
        signed (`bool`, *optional*, defaults to `False`): whether elements are in two's complement.
        high_first (`bool`, *optional*, defaults to `False`): whether the first element is in the highest bits.

    Raises:
        [`InvalidFileError`]: if there are too few bytes.
    """
    if raw.nbytes * 8 < prod(shape) * bits:
        raise InvalidFileError("too few bytes for its shape")
    columns = prod(shape[1:])
    order = np.arange(bits)[::-1] if high_first else np.arange(bits)
    worth = (1 << order).astype(np.uint8)

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start * columns * bits, stop * columns * bits
        piece = np.ascontiguousarray(raw[first // 8 : -(-last // 8)])
        if bits == 8:
            codes = piece.copy()
        elif bits == 4:
            low, high = piece & 15, piece >> 4
            codes = np.stack([high, low] if high_first else [low, high], -1).reshape(-1)
            codes = codes[first % 8 // 4 :][: (stop - start) * columns]
        else:
            each = np.unpackbits(piece, bitorder="big" if high_first else "little")[first % 8 :]
            codes = each[: last - first].reshape(-1, bits) @ worth
        if signed:
            half = 1 << (bits - 1)
            return ((codes.astype(np.int16) ^ half) - half).reshape(stop - start, *shape[1:])
        return codes.reshape(stop - start, *shape[1:])

    return rows


def dequantize(
    rows: Rows,
    shape: tuple[int, ...],
    scales: Factors,
    zeros: Factors | None = None,
    stored: str = "int8",
    blocks: tuple[int, ...] | None = None,
    offsets: Factors | None = None,
) -> ComputedTensor:
    """The tensor `(codes - zeros) * scales + offsets`.

    Args:
        rows ([`Rows`]): the codes.
        shape (`tuple[int, ...]`): their shape.
        scales, zeros, offsets (`float`, `np.ndarray` or [`LazyTensor`]): of as many dimensions as the codes, or of
            none. Along each dimension there is one value for all codes, for each code, or for each block of adjacent
            codes. A lazy tensor's rows are read along with the codes.
        stored (`str`, *optional*, defaults to `"int8"`): how the codes are stored.
        blocks (`tuple[int, ...]`, *optional*): the size of the blocks along each dimension; by default the codes are
            divided into equal blocks.

    Raises:
        [`InvalidFileError`]: if the shapes don't fit.
    """
    factor = _Blocks(scales, shape, blocks)
    zero, offset = (None if each is None else _Blocks(each, shape, blocks) for each in (zeros, offsets))

    def compute(start: int, stop: int) -> np.ndarray:
        values = rows(start, stop).astype(np.float32)
        if zero is not None:
            values -= zero.rows(start, stop)
        values *= factor.rows(start, stop)
        if offset is not None:
            values += offset.rows(start, stop)
        return values

    return ComputedTensor(compute, shape, stored)


def look_up(rows: Rows, shape: tuple[int, ...], table: np.ndarray, stored: str) -> ComputedTensor:
    """The tensor `table[codes]`, for a table of one dimension. Codes beyond the table give NaN."""
    values = np.asarray(table, np.float32)[: 1 << 16]

    def compute(start: int, stop: int) -> np.ndarray:
        padded = np.full(1 << 16, np.nan, np.float32)  # not kept, since a file may have many tensors
        padded[: len(values)] = values
        return padded[rows(start, stop).astype(np.uint16)]

    return ComputedTensor(compute, shape, stored)


class _Blocks:
    """Values that blocks of a tensor share, as an array that broadcasts to some of its rows."""

    def __init__(self, values: Factors, shape: tuple[int, ...], blocks: tuple[int, ...] | None):
        self._rows = stored_rows(values) if isinstance(values, LazyTensor) else _array_rows(values)
        self._shape = (values.shape if isinstance(values, LazyTensor) else np.shape(values)) or (1,) * len(shape)
        if len(self._shape) != len(shape):
            raise InvalidFileError("scales of another shape")
        self._repeats: list[tuple[int, int]] = []  # axes with blocks of several values, and the size of these
        for axis, (size, count) in enumerate(zip(shape, self._shape, strict=True)):
            if count == 1:
                continue
            if not count or count > size:
                raise InvalidFileError("scales of another shape")
            block = -(-size // count) if blocks is None else blocks[axis]
            if block < 1 or -(-size // block) > count:
                raise InvalidFileError("scales of another shape")
            if block > 1:
                self._repeats.append((axis, block))
        self._sizes = shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        block = dict(self._repeats).get(0, 1)
        first, last = (start // block, -(-stop // block)) if self._shape and self._shape[0] > 1 else (0, 1)
        found = self._read(first, last)
        for axis, block in self._repeats:
            index = np.arange(self._sizes[axis]) if axis else np.arange(start, stop) - first * block
            found = np.take(found, index // block, axis)
        return found

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._rows(start, stop), np.float32).reshape(-1, *self._shape[1:])


def _array_rows(values: float | np.ndarray) -> Rows:
    array = np.asarray(values, np.float32).reshape(np.shape(values) or (1,))
    return lambda start, stop: array[start:stop]
