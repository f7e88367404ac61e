"""Weights in PyTorch's pickle format, through `torch.load(weights_only=True)` and nothing else."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.names import printable
from hf_fingerprint.checkpoints.nests import all_tensors, free_name, only_tensors
from hf_fingerprint.checkpoints.safetensors_file import EMPTY, TensorInfo
from hf_fingerprint.errors import CheckpointError


_MORE_ROOM = 1 << 28  # bytes of views that are not in order, above their file's size
_DTYPES = {
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


def load_pickled(
    paths: tuple[Path, ...], left_out: dict[str, str] | None = None
) -> tuple[list[TensorInfo], dict[str, np.ndarray], list[tuple[str, str]]]:
    """Loads .bin, .pt and .pth files, memory-mapped where their format allows it.

    Args:
        paths (`tuple[Path, ...]`): one file or all shards.
        left_out (`dict[str, str]`, *optional*): for a suspect: takes the tensors that can't be read, each with a short
            reason; the others are returned, from whatever they are nested in. By default one such tensor refuses the
            file.

    Returns:
        `(infos, memory, shared)`: the tensors, their bytes as `uint8`, and pairs of names that share one memory.

    Raises:
        [`CheckpointError`]: if a file isn't a plain dictionary of tensors, or holds anything that only a real
        unpickler reads.
    """
    infos, memory, shared = [], {}, []
    taken: dict[str, int] = {}
    for number, path in enumerate(paths):
        spans: list[tuple[int, int, str]] = []
        room = path.stat().st_size + _MORE_ROOM
        for name, tensor in _tensors(path, left_out):
            reason, raw = _bytes_of(name, tensor, room if left_out is not None else None)
            if raw is None:
                if left_out is None:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} can't be read ({reason}): convert it or export without it."
                    )
                left_out[printable(name)] = reason
                continue
            if left_out is not None:
                name = free_name(name, taken)
                room -= 0 if tensor.is_contiguous() else raw.nbytes
            else:
                shared += _overlaps(name, tensor, spans)
            memory[name] = raw
            dtype = _DTYPES[_dtype_of(tensor)]
            infos.append(TensorInfo(name, dtype, tuple(tensor.shape), number, 0, raw.nbytes))
    return infos, memory, shared


def _tensors(path: Path, left_out: dict[str, str] | None) -> Iterable[tuple[str, Any]]:
    kind, loaded = _torch().Tensor, _load(path)
    if left_out is None:
        return only_tensors(loaded, kind, path).items()
    found = list(all_tensors(loaded, kind, left_out))
    if not found and not left_out:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return found


def _bytes_of(name: object, tensor: Any, room: int | None) -> tuple[str, np.ndarray | None]:
    """A tensor's bytes as `uint8`; or why they can't be had, and `None`.

    Args:
        name (`object`): its name, which may be impossible.
        tensor (`torch.Tensor`): as it came.
        room (`int` or `None`): for a suspect, how many bytes a tensor may take that is not there as it is read.
    """
    torch = _torch()
    try:
        if _dtype_of(tensor) not in _DTYPES:
            return f"dtype {_dtype_of(tensor)}", None
        if tensor.layout is not torch.strided:
            return f"layout {str(tensor.layout).removeprefix('torch.')}", None
        if tensor.device.type != "cpu":
            return "no data", None
        if not _can_be_named(name):
            return "an impossible name", None
        if room is not None and not tensor.numel():
            return EMPTY, None
        if room is not None and not tensor.is_contiguous() and tensor.numel() * tensor.element_size() > room:
            return "larger than its file", None
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return "", plain.reshape(-1).view(torch.uint8).numpy()
    except Exception:  # of a size that memory hasn't, or of one of torch's kinds that have no such bytes
        return "larger than memory", None


def _dtype_of(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _can_be_named(name: object) -> bool:
    """Whether safetensors can hold a tensor of this name."""
    if not isinstance(name, str) or name == "__metadata__":
        return False
    return name.encode(errors="replace") == name.encode(errors="surrogatepass")


def _overlaps(name: str, tensor: Any, spans: list[tuple[int, int, str]]) -> list[tuple[str, str]]:
    """The tensors met before that share memory with this one; notes where it lies."""
    if not tensor.numel():
        return []
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    begin = tensor.data_ptr()
    end = begin + extent * tensor.element_size()
    found = [(other, name) for start, stop, other in spans if begin < stop and start < end]
    spans.append((begin, end, name))
    return found


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise CheckpointError(
            "Reading .bin and .pth files needs PyTorch: pip install hf-fingerprint[models]."
        ) from None
    return torch


def _load(path: Path) -> Any:
    """What a file holds."""
    torch = _torch()
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # the format before PyTorch 1.6
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading that could run its code: get the model as safetensors."
        ) from None
    except Exception as error:  # a damaged file makes torch raise whatever its bytes happen to mean
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint ({type(error).__name__}): get it again."
        ) from None
