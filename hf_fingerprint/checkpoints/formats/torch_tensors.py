"""Tensors as PyTorch's pickles describe them: a shape and strides over a storage's bytes, read when asked for.

What rebuilds a tensor when such a pickle is loaded is known here by name, and stands for a [`Tensor`]; whatever else
a pickle would call stays a record of that. PyTorch is not needed.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.formats.inert_pickles import Inert, Made, Named, NotAPickle, as_key
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS
from hf_fingerprint.checkpoints.names import printable


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
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
_OTHER_SIZES = {"complex128": 16, "quint8": 1, "qint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_NUMPY = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u1": "uint8", "b1": "bool", "c8": "complex64",
}  # fmt: skip
_LARGEST = 1 << 62
_NO_DATA = "no data"


class Storage(Inert):
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


class Tensor(Inert):
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

    def why_not(self) -> str | None:
        """Why its bytes can't be had, if there is a reason."""
        if self.reason is not None:
            return self.reason
        if self.dtype not in DTYPES:
            return f"dtype {printable(self.dtype)[:20]}"
        if self.storage is None or (self.numel() and self.storage.data is None):
            return _NO_DATA
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


class NumpyArray(Tensor):
    """An array of numpy's, of which a pickle first says that it is one and then what is in it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", reason=_NO_DATA)

    def set_state(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) >= 4:
            self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, columns_first: Any, raw: Any) -> None:
        """Takes the array's bytes, in the order of its shape or of the shape read backwards."""
        sizes, named = _sizes(shape), _numpy_dtype(dtype)
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


def storage_of(found: Any) -> Storage:
    """The storage that a persistent id names: `("storage", type, key, location, count[, view])`.

    Raises:
        [`NotAPickle`]: if it names none.
    """
    if not isinstance(found, tuple) or len(found) < 5 or found[0] != "storage" or not isinstance(found[1], Named):
        raise NotAPickle("a pickle with ids of things outside it that are no tensors")
    _, kind, key, location, count, *view = found
    dtype = _STORAGES.get(kind.name)
    if dtype is None or not kind.module.startswith("torch") or not isinstance(key, str) or not _is_size(count):
        raise NotAPickle("a pickle with ids of things outside it that are no tensors")
    start = 0
    if view and isinstance(view[0], tuple) and len(view[0]) == 3 and _is_size(view[0][1]) and _is_size(view[0][2]):
        _, start, count = view[0]
    return Storage("" if location == "meta" else key, dtype, count, start)


def build(kind: Any, args: Any) -> Any:
    """What stands for a call in a pickle of PyTorch's."""
    known = _KNOWN.get((kind.module, kind.name)) if isinstance(kind, Named) else None
    if known is not None and isinstance(args, tuple):
        try:
            found = known(*args)
        except (TypeError, ValueError):  # called with what the real one would not take, or by another version
            found = None
        if found is not None:
            return found
    return Made(kind, args)


def _view(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None, signs: Any = None
) -> Tensor:
    shape, strides = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or shape is None or strides is None or not _is_size(offset):
        return Tensor("", reason="impossible sizes")
    if len(shape) != len(strides):
        return Tensor("", reason="impossible sizes")
    waiting = isinstance(signs, dict) and any(signs.get(key) for key in ("conj", "neg"))
    reason = "signs still to be applied" if waiting else None if storage.key else _NO_DATA
    return Tensor(dtype or storage.dtype, shape, strides, offset, storage, reason)


def _rebuild_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    return _view(storage, offset, shape, strides, signs=rest[2] if len(rest) > 2 else None)


def _rebuild_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    _, _, dtype, *more = rest
    named = dtype.name if isinstance(dtype, Named) else ""
    return _view(storage, offset, shape, strides, dtype=named, signs=more[0] if more else None)


def _of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor of a class of its own, which is a tensor like others."""
    if isinstance(function, Named) and (function.module, function.name) in _REBUILD and isinstance(args, tuple):
        return build(function, args)
    return None


def _first(data: Any, *rest: Any) -> Any:
    return data if isinstance(data, Tensor) else None


def _unreadable(reason: str) -> Callable[..., Tensor]:
    return lambda *args: Tensor("", reason=reason)


def _quantized(storage: Any, *rest: Any) -> Tensor:
    return Tensor("", reason=f"dtype {storage.dtype}" if isinstance(storage, Storage) else "quantized")


def _sparse(layout: Any, *rest: Any) -> Tensor:
    """A tensor whose layout is given by a call with its name."""
    args = layout.args if isinstance(layout, Made) else None
    named = args[0] if isinstance(args, tuple) and args and isinstance(args[0], str) else "sparse"
    return Tensor("", reason=f"layout {printable(named.removeprefix('torch.'))[:20]}")


def _dictionary(*args: Any) -> Any:
    """An ordered dictionary, which Python 2 made of a list of pairs."""
    if not args:
        return {}
    pairs = args[0]
    if (
        len(args) > 1
        or not isinstance(pairs, list)
        or not all(isinstance(e, list | tuple) and len(e) == 2 for e in pairs)
    ):
        return None
    found = {as_key(key): value for key, value in pairs}
    pairs.clear()  # it is the dictionary's alone; made of once more, it would be work without end
    return found


def _set(items: Any = ()) -> Any:
    """A set of an old protocol, as the list that it is made of."""
    return items if isinstance(items, list | tuple) else None


def _text_as_bytes(text: Any, encoding: Any) -> Any:
    """Bytes in a pickle of an old protocol."""
    return text.encode("latin-1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else None


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, *rest: Any) -> Any:
    found = NumpyArray()
    found.fill(shape, dtype, order == "F", raw)
    return found


def _numpy_dtype(dtype: Any) -> str | None:
    """PyTorch's word for a dtype of numpy's, in the order of bytes that is read here."""
    if not isinstance(dtype, Made) or not isinstance(dtype.args, tuple) or not dtype.args:
        return None
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    if len(state) > 1 and state[1] == ">":
        return None
    return _NUMPY.get(dtype.args[0]) if isinstance(dtype.args[0], str) else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS or not all(map(_is_size, value)):
        return None
    return tuple(value)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


_REBUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._utils", "_rebuild_qtensor"): _quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _sparse,
    ("torch._utils", "_rebuild_nested_tensor"): _unreadable("layout nested"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable(_NO_DATA),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _unreadable("of another device"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _unreadable("a tensor of a class of its own"),
}
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **_REBUILD,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Size"): lambda sizes=(): sizes if isinstance(sizes, tuple | list) else None,
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "defaultdict"): lambda *args: {},
    **{(module, kind): _set for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    ("_codecs", "encode"): _text_as_bytes,
    ("numpy.core.multiarray", "_reconstruct"): lambda *args: NumpyArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *args: NumpyArray(),
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}
