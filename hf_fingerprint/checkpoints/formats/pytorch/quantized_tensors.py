"""PyTorch's quantized tensors (`torch.qint8`, ...) and the packed parameters of quantized modules.

A quantized tensor has integer codes with one scale and zero point, or those of each channel. Quantized modules keep
their weight and bias in an object that a pickle describes by its state.
"""

from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import (
    ComputedTensor,
    Rows,
    dequantize,
    packed_rows,
    stored_rows,
    stored_values,
)
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, is_size


_CODES = {"qint8": ("int8", 8), "quint8": ("uint8", 8), "qint32": ("int32", 32), "quint4x2": ("uint8", 4)}
_PACKED = "._packed_params"
_MOST_PARTS = 64  # values in the state of a packed object, which has 15


class QuantizedTensor(ComputedTensor):
    """A tensor `(codes - zero) * scale`, whose storages may be located after it is described.

    Args:
        codes ([`LazyTensor`]): the codes, as integers; for `quint4x2` the bytes, two codes each.
        shape (`tuple[int, ...]`): its shape.
        parameters (`tuple`): `(scale, zero)`, numbers; or `(scales, zeros, axis)`, tensors of one dimension.
        stored (`str`): its dtype, such as `"qint8"`.
    """

    __slots__ = ("_codes", "_computed", "_parameters")

    def __init__(self, codes: LazyTensor, shape: tuple[int, ...], parameters: tuple[Any, ...], stored: str):
        super().__init__(self._compute, shape, stored)
        self._codes, self._parameters = codes, parameters
        self._computed: Rows | None = None

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`."""
        try:
            self._prepare()
        except InvalidFileError as error:
            return str(error)
        return super().unreadable_reason()

    def _compute(self, start: int, stop: int) -> np.ndarray:
        return self._prepare()(start, stop)

    def _prepare(self) -> Rows:
        if self._computed is None:
            rows = stored_rows(self._codes)
            if _CODES[self.stored][1] == 4:
                rows = packed_rows(self._codes.read(), 4, self.shape)
            scales, zeros, *axis = self._parameters
            if axis:
                wide = [1] * len(self.shape)
                wide[axis[0]] = self.shape[axis[0]]
                for each in (scales, zeros):
                    if each.numel() != self.shape[axis[0]] or not each.contiguous:  # a view may be of any size
                        raise InvalidFileError(each.unreadable_reason() or "scales of another shape")
                scales, zeros = (stored_values(each).reshape(wide) for each in (scales, zeros))
            with np.errstate(all="ignore"):
                scales, zeros = (np.asarray(each, np.float64).astype(np.float32) for each in (scales, zeros))
                self._computed = dequantize(rows, self.shape, scales, zeros, self.stored).rows
        return self._computed


def rebuild_quantized(storage: Any, offset: Any, shape: Any, strides: Any, parameters: Any, *rest: Any) -> LazyTensor:
    """The tensor of a `_rebuild_qtensor` call: dequantized, or unreadable with a reason.

    Its `parameters` are `(scheme, scale, zero)` or `(scheme, scales, zeros, axis)`.
    """
    sizes, steps = as_sizes(shape), as_sizes(strides)
    if not isinstance(storage, Storage) or storage.dtype not in _CODES:
        return LazyTensor("", reason=f"dtype {storage.dtype}" if isinstance(storage, Storage) else "quantized")
    if sizes is None or steps is None or not is_size(offset) or len(sizes) != len(steps):
        return LazyTensor("", reason="impossible sizes")
    found = _parameters(parameters, len(sizes))
    if found is None:
        return LazyTensor("", reason=f"{storage.dtype} of an unknown scheme")
    dtype, bits = _CODES[storage.dtype]
    codes = LazyTensor(dtype, sizes, steps, offset, storage)
    if bits == 4:
        if not codes.contiguous or offset:
            return LazyTensor("", reason="packed codes that are not contiguous")
        count = -(-codes.numel() // 2)
        codes = LazyTensor(dtype, (count,), (1,), 0, storage)
    return QuantizedTensor(codes, sizes, found, storage.dtype)


def _parameters(found: Any, dimensions: int) -> tuple[Any, ...] | None:
    if not isinstance(found, tuple) or len(found) not in (3, 4):
        return None
    _, scale, zero, *axis = found
    if not axis:
        numbers = isinstance(scale, int | float) and isinstance(zero, int | float)
        return (float(scale), float(zero)) if numbers else None
    tensors = isinstance(scale, LazyTensor) and isinstance(zero, LazyTensor)
    return (scale, zero, axis[0]) if tensors and is_size(axis[0]) and axis[0] < dimensions else None


def packed_parameters(name: str, value: Any) -> tuple[str, dict[Any, Any]] | None:
    """The module's name and the tensors of its packed parameters, or `None` if the value holds none.

    Args:
        name (`str`): the value's name, such as `"fc._packed_params._packed_params"`.
        value (anything): a tuple `(weight, bias)`, or an object of PyTorch's quantized modules whose state is a tuple.

    Returns:
        `tuple[str, dict]`: such as `("fc", {"weight": ..., "bias": ...})`.
    """
    if isinstance(value, CallRecord) and isinstance(value.kind, GlobalRef):
        scripted = value.kind.module.startswith("__torch__.") or value.kind.name == "ScriptObject"
        parts = value.state if scripted else None
    else:
        parts = value if name.endswith(_PACKED) else None
    if not isinstance(parts, tuple | list):
        return None
    tensors = _flat_tensors(parts)
    weights: list[LazyTensor] = [each for each in tensors if isinstance(each, QuantizedTensor)]
    if not weights and isinstance(value, CallRecord):  # such as XNNPACK's, of optimized mobile models
        weights = [each for each in tensors if len(each.shape) > 1]
    if len(weights) != 1:
        return None
    found: dict[Any, Any] = {"weight": weights[0]}
    for number, tensor in enumerate(each for each in tensors if each is not weights[0]):
        is_bias = "bias" not in found and tensor.dtype in ("float32", "float16") and len(tensor.shape) == 1
        found["bias" if is_bias else f"packed_{number}"] = tensor
    while name.endswith(_PACKED):
        name = name.removesuffix(_PACKED)
    return name, found


def _flat_tensors(parts: Any) -> list[LazyTensor]:
    """The tensors in nested tuples, lists and their calls, such as `build_tensorlist([...])`."""
    found: list[LazyTensor] = []
    waiting = [parts]
    for _ in range(_MOST_PARTS):
        if not waiting:
            break
        part = waiting.pop()
        if isinstance(part, LazyTensor):
            found.append(part)
        elif isinstance(part, CallRecord):
            waiting += [part.args] if isinstance(part.args, tuple) else []
        elif isinstance(part, tuple | list) and len(part) <= _MOST_PARTS:
            waiting += part[::-1]
    return found
