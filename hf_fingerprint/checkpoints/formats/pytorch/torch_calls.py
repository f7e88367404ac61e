"""Interpret the calls in PyTorch's pickles.

Calls of functions that rebuild a tensor become a [`LazyTensor`]; all others stay a [`CallRecord`].
"""

from collections.abc import Callable
from typing import Any

from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, InvalidPickleError, as_key
from hf_fingerprint.checkpoints.formats.pytorch.quantized_tensors import rebuild_quantized
from hf_fingerprint.checkpoints.formats.torch_tensors import (
    NO_DATA,
    LazyTensor,
    NumpyArray,
    Storage,
    as_sizes,
    is_size,
)
from hf_fingerprint.printable import printable


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8", "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8", "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
_WRAPPER = "a wrapper subclass"


def parse_storage(found: Any) -> Storage:
    """The storage of a persistent id `("storage", type, key, location, count[, view])`.

    Raises:
        [`InvalidPickleError`]: if it is not such an id.
    """
    if not isinstance(found, tuple) or len(found) < 5 or found[0] != "storage" or not isinstance(found[1], GlobalRef):
        raise InvalidPickleError("a pickle with ids of things outside it that are no tensors")
    _, kind, key, location, count, *view = found
    dtype = _STORAGES.get(kind.name)
    if dtype is None or not kind.module.startswith("torch") or not isinstance(key, str) or not is_size(count):
        raise InvalidPickleError("a pickle with ids of things outside it that are no tensors")
    start = 0
    if view and isinstance(view[0], tuple) and len(view[0]) == 3 and is_size(view[0][1]) and is_size(view[0][2]):
        _, start, count = view[0]
    return Storage("" if location == "meta" else key, dtype, count, start)


def build_call(kind: Any, args: Any) -> Any:
    """The object that a known call builds, such as a [`LazyTensor`], else a [`CallRecord`]."""
    known = _KNOWN.get((kind.module, kind.name)) if isinstance(kind, GlobalRef) else None
    if known is not None and isinstance(args, tuple):
        try:
            found = known(*args)
        except (TypeError, ValueError):  # invalid arguments, or those of another version
            found = None
        if found is not None:
            return found
    return CallRecord(kind, args)


def _rebuild(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None, signs: Any = None
) -> LazyTensor:
    shape, strides = as_sizes(shape), as_sizes(strides)
    if not isinstance(storage, Storage) or shape is None or strides is None or not is_size(offset):
        return LazyTensor("", reason="impossible sizes")
    if len(shape) != len(strides):
        return LazyTensor("", reason="impossible sizes")
    waiting = isinstance(signs, dict) and any(signs.get(key) for key in ("conj", "neg"))
    reason = "a pending conjugation or negation" if waiting else None if storage.key else NO_DATA
    return LazyTensor(dtype or storage.dtype, shape, strides, offset, storage, reason)


def _rebuild_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> LazyTensor:
    return _rebuild(storage, offset, shape, strides, signs=rest[2] if len(rest) > 2 else None)


def _rebuild_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> LazyTensor:
    _, _, dtype, *more = rest
    named = dtype.name if isinstance(dtype, GlobalRef) else ""
    return _rebuild(storage, offset, shape, strides, dtype=named, signs=more[0] if more else None)


class SubclassTensor(LazyTensor):
    """A tensor of a subclass that holds others instead of elements of its own, such as codes and scales.

    Attributes:
        inner (`dict`): the attributes of the subclass.
        outer_shape (`tuple[int, ...]` or `None`): the shape that it shows.
    """

    __slots__ = ("inner", "outer_shape")

    def __init__(self, inner: dict[Any, Any], outer_shape: tuple[int, ...] | None):
        super().__init__("", reason=_WRAPPER)
        self.inner, self.outer_shape = inner, outer_shape


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """The tensor of a subclass."""
    wrapper = isinstance(function, GlobalRef) and function.name == "_rebuild_wrapper_subclass"
    if wrapper and isinstance(args, tuple) and isinstance(state, dict):
        return SubclassTensor(state, as_sizes(args[2]) if len(args) > 2 else None)
    if isinstance(function, GlobalRef) and (function.module, function.name) in _REBUILD and isinstance(args, tuple):
        return build_call(function, args)
    return None


def _first(data: Any, *rest: Any) -> Any:
    return data if isinstance(data, LazyTensor) else None


def _unreadable(reason: str) -> Callable[..., LazyTensor]:
    return lambda *args: LazyTensor("", reason=reason)


def _rebuild_sparse(layout: Any, *rest: Any) -> LazyTensor:
    """An unreadable tensor, with its layout as the reason."""
    args = layout.args if isinstance(layout, CallRecord) else None
    named = args[0] if isinstance(args, tuple) and args and isinstance(args[0], str) else "sparse"
    return LazyTensor("", reason=f"layout {printable(named.removeprefix('torch.'))[:20]}")


def _dictionary(*args: Any) -> Any:
    """The dictionary of an `OrderedDict` call; Python 2 passes a list of pairs."""
    if not args:
        return {}
    pairs = args[0]
    if len(args) > 1 or not isinstance(pairs, list):
        return None
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return None
    found = {as_key(key): value for key, value in pairs}
    pairs.clear()  # otherwise a hostile pickle could build a dictionary of it again and again
    return found


def _set(items: Any = ()) -> Any:
    """The items of a set in an old protocol, as a list."""
    return items if isinstance(items, list | tuple) else None


def _text_as_bytes(text: Any, encoding: Any) -> Any:
    """The bytes of a `_codecs.encode` call, as old protocols store them."""
    return text.encode("latin-1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else None


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, *rest: Any) -> Any:
    found = NumpyArray()
    found.fill(shape, dtype, order == "F", raw)
    return found


_REBUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._utils", "_rebuild_qtensor"): rebuild_quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuild_sparse,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _rebuild_sparse,
    ("torch._utils", "_rebuild_nested_tensor"): _unreadable("layout nested"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable(NO_DATA),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _unreadable("on another device"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _unreadable(_WRAPPER),
}
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **_REBUILD,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
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
