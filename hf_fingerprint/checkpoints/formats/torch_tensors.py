"""Tensors as pickles describe them: a shape and strides over a storage's bytes, read when asked for. PyTorch is not
needed."""

from math import prod
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, InertObject
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS
from hf_fingerprint.printable import printable


DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_OTHER_SIZES = {"complex128": 16, "quint8": 1, "qint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_NUMPY = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u1": "uint8", "b1": "bool", "c8": "complex64",
}  # fmt: skip
_LARGEST = 1 << 62
NO_DATA = "no data"


class Storage(InertObject):
    """A stretch of bytes that tensors are views of.

    Attributes:
        key (`str`): its name in the file; empty for one that has no bytes.
        dtype (`str`): PyTorch's word for what it holds.
        count (`int`): of how many elements.
        start (`int`): the element at which it begins in the stretch of that name, if it is a view of it.
        data (`np.ndarray` or `None`): the bytes, `uint8`, once they are found.
    """

    __slots__ = ("count", "data", "dtype", "key", "start")

    def __init__(self, key: str, dtype: str, count: int, start: int = 0, data: np.ndarray | None = None):
        self.key, self.dtype, self.count, self.start, self.data = key, dtype, count, start, data

    @property
    def element_bytes(self) -> int:
        return element_bytes(self.dtype)


class LazyTensor(InertObject):
    """A tensor that is read in rows, without ever being laid out whole.

    Attributes:
        dtype (`str`): PyTorch's word for it.
        shape (`tuple[int, ...]`): its shape.
        strides (`tuple[int, ...]`): in elements.
        offset (`int`): the element of the storage that it begins at.
        storage ([`Storage`] or `None`): where its bytes are.
        reason (`str` or `None`): why it can't be read, if it can't.
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
        """How many elements it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * element_bytes(self.dtype)

    @property
    def contiguous(self) -> bool:
        """Whether its bytes lie together in the order of its shape."""
        expected = 1
        for size, stride in zip(self.shape[::-1], self.strides[::-1], strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def span(self) -> tuple[int, int]:
        """The bytes of the storage's stretch that it lies in."""
        assert self.storage is not None
        size, begin = element_bytes(self.dtype), self.storage.start * self.storage.element_bytes
        extent = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)) + 1
        return begin + self.offset * size, begin + (self.offset + (extent if self.numel() else 0)) * size

    def unreadable_reason(self) -> str | None:
        """Why its bytes can't be had, if there is a reason."""
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
        """Bytes `start` to `stop` of it, in the order of its shape, as `uint8`."""
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
    """An array of numpy's, of which a pickle first says that it is one and then what is in it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", reason=NO_DATA)

    def set_state(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) >= 4:
            self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, columns_first: Any, raw: Any) -> None:
        """Takes the array's bytes, in the order of its shape or of the shape read backwards."""
        sizes, named = parse_sizes(shape), _numpy_dtype(dtype)
        raw = raw.encode("latin-1", "replace") if isinstance(raw, str) else raw  # as Python 2 wrote it
        if sizes is None or named is None or not isinstance(raw, bytes | memoryview):
            self.reason = "a numpy array of another dtype"
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
    """The bytes of one element; 1 for what is not known."""
    return SIZES[DTYPES[dtype]] if dtype in DTYPES else _OTHER_SIZES.get(dtype, 1)


def _numpy_dtype(dtype: Any) -> str | None:
    """PyTorch's word for a dtype of numpy's, in the order of bytes that is read here."""
    if not isinstance(dtype, CallRecord) or not isinstance(dtype.args, tuple) or not dtype.args:
        return None
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    if len(state) > 1 and state[1] == ">":
        return None
    return _NUMPY.get(dtype.args[0]) if isinstance(dtype.args[0], str) else None


def parse_sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS or not all(map(is_size, value)):
        return None
    return tuple(value)


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST
