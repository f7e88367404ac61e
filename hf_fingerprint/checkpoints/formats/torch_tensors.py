"""Lazy tensors as pickles describe them: a shape and strides over a storage's bytes. Needs no PyTorch."""

from math import prod
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, InertObject
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS
from hf_fingerprint.printable import printable


DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
_OTHER_SIZES = {"complex128": 16, "quint8": 1, "qint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_NUMPY = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u1": "uint8", "b1": "bool", "c8": "complex64",
}  # fmt: skip
_LARGEST = 1 << 62
NO_DATA = "no data"


class Storage(InertObject):
    """A block of bytes that tensors are views of.

    Attributes:
        key (`str`): name in the file; empty for a storage without bytes.
        dtype (`str`): PyTorch dtype.
        count (`int`): number of elements.
        start (`int`): first element, if the storage is a view of another one of that name.
        data (`np.ndarray` or `None`): the bytes, `uint8`, once located.
    """

    __slots__ = ("count", "data", "dtype", "key", "start")

    def __init__(self, key: str, dtype: str, count: int, start: int = 0, data: np.ndarray | None = None):
        self.key, self.dtype, self.count, self.start, self.data = key, dtype, count, start, data

    @property
    def element_bytes(self) -> int:
        return element_bytes(self.dtype)


class LazyTensor(InertObject):
    """A tensor that is read in rows, without a copy of the whole.

    Attributes:
        dtype (`str`): PyTorch dtype.
        shape (`tuple[int, ...]`): its shape.
        strides (`tuple[int, ...]`): in elements.
        offset (`int`): its first element in the storage.
        storage ([`Storage`] or `None`): storage of its bytes.
        reason (`str` or `None`): why it can't be read, or `None`.
    """

    __slots__ = ("dtype", "offset", "reason", "shape", "storage", "strides")

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...] = (),
        strides: tuple[int, ...] = (),
        offset: int = 0,
        storage: Storage | None = None,
        reason: str | None = None,
    ):
        self.dtype, self.shape, self.strides, self.offset = dtype, shape, strides, offset
        self.storage, self.reason = storage, reason

    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * element_bytes(self.dtype)

    @property
    def contiguous(self) -> bool:
        """Whether its elements are contiguous in row-major order."""
        expected = 1
        for size, stride in zip(self.shape[::-1], self.strides[::-1], strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def span(self) -> tuple[int, int]:
        """Begin and end of its bytes in the storage's data."""
        assert self.storage is not None
        size, begin = element_bytes(self.dtype), self.storage.start * self.storage.element_bytes
        extent = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) + 1
        return begin + self.offset * size, begin + (self.offset + (extent if self.numel() else 0)) * size

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`."""
        if self.reason is not None:
            return self.reason
        if self.dtype not in DTYPES:
            return f"dtype {printable(self.dtype)[:20]}"
        if self.storage is None or (self.numel() and self.storage.data is None):
            return NO_DATA
        if self.numel() and self.span[1] > len(self.storage.data if self.storage.data is not None else ()):
            return "larger than its storage"
        return None

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as `uint8`."""
        stop = self.nbytes if stop is None else stop
        if start >= stop or self.storage is None or self.storage.data is None:
            return np.empty(0, np.uint8)
        begin, end = self.span
        memory = self.storage.data[begin:end]
        if self.contiguous:
            return memory[start:stop]
        size = element_bytes(self.dtype)
        typed = memory.view(np.dtype((np.void, size)))
        view = np.lib.stride_tricks.as_strided(typed, self.shape, [each * size for each in self.strides])
        row = self.nbytes // self.shape[0]
        first = start // row
        rows = np.ascontiguousarray(view[first : -(-stop // row)])
        return rows.reshape(-1).view(np.uint8)[start - first * row : stop - first * row]


class NumpyArray(LazyTensor):
    """A NumPy array, which a pickle creates empty and fills afterwards."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", reason=NO_DATA)

    def set_state(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) >= 4:
            self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, columns_first: Any, raw: Any) -> None:
        """Receives the array's bytes, in row-major order or, with `columns_first`, in column-major order."""
        sizes, named = as_sizes(shape), _numpy_dtype(dtype)
        raw = raw.encode("latin-1", "replace") if isinstance(raw, str) else raw  # as Python 2 wrote it
        if sizes is None or named is None or not isinstance(raw, bytes | memoryview):
            self.reason = "a NumPy array of unsupported dtype"
            return
        count, strides = 1, []
        for size in sizes if columns_first else sizes[::-1]:
            strides.append(count)
            count *= size
        self.dtype, self.shape = named, sizes
        self.strides = tuple(strides if columns_first else strides[::-1])
        data = np.frombuffer(raw, np.uint8)
        self.storage, self.reason = Storage("array", named, count, data=data), None


def element_bytes(dtype: str) -> int:
    """Size of one element in bytes; 1 for an unknown dtype."""
    return SIZES[DTYPES[dtype]] if dtype in DTYPES else _OTHER_SIZES.get(dtype, 1)


def _numpy_dtype(dtype: Any) -> str | None:
    """The PyTorch dtype of a little-endian NumPy dtype, or `None`."""
    if not isinstance(dtype, CallRecord) or not isinstance(dtype.args, tuple) or not dtype.args:
        return None
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    if len(state) > 1 and state[1] == ">":
        return None
    return _NUMPY.get(dtype.args[0]) if isinstance(dtype.args[0], str) else None


def as_sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS or not all(map(is_size, value)):
        return None
    return tuple(value)


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST
