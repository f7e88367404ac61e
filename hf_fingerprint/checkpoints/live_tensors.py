"""Tensors of PyTorch that are read where they are, in memory or on an accelerator."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, NO_DATA, LazyTensor, Storage
from hf_fingerprint.errors import CheckpointError


if TYPE_CHECKING:
    import torch


class LiveTensor(LazyTensor):
    """A tensor of PyTorch whose rows are read where they are; `storages` has the known storages by address."""

    __slots__ = ("_raw", "_values")

    def __init__(self, values: "torch.Tensor", storages: dict[tuple[str, int], Storage]):
        reason = obstacle(values)
        if reason is not None:
            super().__init__("", reason=reason)
            return
        dtype, memory = str(values.dtype).removeprefix("torch."), values.untyped_storage()
        storage = storages.setdefault(
            storage_of(values), Storage("", "uint8", memory.nbytes(), data=np.empty(0, np.uint8))
        )
        super().__init__(dtype, tuple(values.shape), tuple(values.stride()), int(values.storage_offset()), storage)
        if dtype in DTYPES and self.span[1] > memory.nbytes():  # freed, such as by a library that offloads weights
            self.reason = NO_DATA
        self._values = values.detach()
        self._raw = _raw_bytes(self._values) if values.is_contiguous() and values.device.type == "cpu" else None

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`."""
        if self.reason is None and self.dtype not in DTYPES:
            return f"dtype {self.dtype}"
        return self.reason

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as read-only `uint8`."""
        stop = self.nbytes if stop is None else stop
        if self._raw is not None:
            return self._raw[start:stop]
        if start >= stop:
            return np.empty(0, np.uint8)
        row = self.nbytes // self.shape[0] if self.shape else self.nbytes
        first = start // row
        rows = self._values[first : -(-stop // row)] if self.shape else self._values
        return _raw_bytes(rows.contiguous().cpu())[start - first * row : stop - first * row]


class ComputedLiveTensor(LazyTensor):
    """A quantized tensor of a library's own class; `dequantize` returns its bytes, by [`dequantized_bytes`]."""

    __slots__ = ("_dequantize", "_values")

    def __init__(self, values: "torch.Tensor", dequantize: "Callable[[torch.Tensor], np.ndarray]"):
        dtype, shape = str(values.dtype).removeprefix("torch."), tuple(values.shape)
        super().__init__(dtype, shape, storage=Storage("", dtype, values.numel(), data=np.empty(0, np.uint8)))
        self._values, self._dequantize = values.detach(), dequantize
        self.reason = None if dtype in DTYPES else f"dtype {dtype}"

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`."""
        return self.reason

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as read-only `uint8`."""
        return self._dequantize(self._values)[start:stop]


def dequantized_bytes(values: "torch.Tensor") -> np.ndarray:
    """The bytes of a quantized tensor of a library's own class, as its class dequantizes it.

    Raises:
        [`CheckpointError`]: if the class can't.
    """
    try:
        return _raw_bytes(values.dequantize().to(values.dtype).cpu().contiguous())
    except Exception as error:  # classes of tensors raise anything
        kind = type(values).__name__
        raise CheckpointError(f"A {kind} can't be dequantized ({type(error).__name__}): save the model.") from error


def is_quantized(values: Any) -> bool:
    """Whether a value is of a library's own class that holds other tensors and has a `dequantize`."""
    import torch

    return _holds_others(values) and getattr(type(values), "dequantize", None) not in (None, torch.Tensor.dequantize)


def without_subclass(values: Any) -> Any:
    """A tensor of a library's own class that has elements of its own, as a plain tensor; any other value unchanged."""
    import torch

    if not isinstance(values, torch.Tensor) or type(values) in _plain_kinds() or torch.nn.parameter.is_lazy(values):
        return values
    if _holds_others(values):
        return values
    with torch._C.DisableTorchFunctionSubclass():
        return values.detach().as_subclass(torch.Tensor)


def _holds_others(values: Any) -> bool:
    """Whether a value is a tensor of a class that computes with the tensors that it holds, as torchao's do."""
    import torch

    own = getattr(type(values), "__torch_dispatch__", None)
    return isinstance(values, torch.Tensor) and own is not torch.Tensor.__torch_dispatch__


def storage_of(values: "torch.Tensor") -> tuple[str, int]:
    """Device and address of the memory that a tensor lies in, which tied tensors and views share."""
    return str(values.device), values.untyped_storage().data_ptr()


def overlaps(values: "torch.Tensor") -> bool:
    """Whether elements of a tensor may share memory, as those of an expanded one do, so that it can't be marked in
    place."""
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(values.stride(), values.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def obstacle(values: Any) -> str | None:
    """Why a value of a state dict can't be read as a tensor, or `None`."""
    import torch

    if type(values) not in _plain_kinds():
        return "a tensor subclass" if isinstance(values, torch.Tensor) else "not a tensor"
    if values.is_meta:
        return NO_DATA
    if values.layout is not torch.strided or values.is_quantized:
        return f"layout {values.layout}".replace("torch.", "") if not values.is_quantized else "quantized"
    if values.is_conj() or values.is_neg():
        return "a lazy view"
    return None


def _plain_kinds() -> tuple[type, ...]:
    import torch

    return torch.Tensor, torch.nn.Parameter, torch.nn.Buffer


def _raw_bytes(values: "torch.Tensor") -> np.ndarray:
    """The bytes of a contiguous tensor on the CPU, read-only `uint8`, which share its memory."""
    import torch

    raw: np.ndarray = values.reshape(-1).view(torch.uint8).numpy()
    raw.flags.writeable = False
    return raw
