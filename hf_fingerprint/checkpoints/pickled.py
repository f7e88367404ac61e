"""Weights in PyTorch's pickle format, through `torch.load(weights_only=True)` and nothing else."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.safetensors_file import TensorInfo
from hf_fingerprint.errors import CheckpointError


_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "module", "net")
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
    paths: tuple[Path, ...],
) -> tuple[list[TensorInfo], dict[str, np.ndarray], list[tuple[str, str]]]:
    """Loads .bin, .pt and .pth files, memory-mapped where their format allows it.

    Args:
        paths (`tuple[Path, ...]`): one file or all shards.

    Returns:
        `(infos, memory, shared)`: the tensors, their bytes as `uint8`, and pairs of names that share one memory.

    Raises:
        [`CheckpointError`]: if a file isn't a plain dictionary of tensors, or holds anything that only a real
        unpickler reads.
    """
    infos, memory, shared = [], {}, []
    for number, path in enumerate(paths):
        spans: list[tuple[int, int, str]] = []
        for name, tensor in _state_dict(path).items():
            dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
            if dtype is None or tensor.layout is not _torch().strided:
                raise CheckpointError(
                    f"{path}: tensor {name} is of type {tensor.dtype}, which can't be read: convert it."
                )
            if not _can_be_named(name) or tensor.device.type != "cpu":
                raise CheckpointError(f"{path}: tensor {name!r} has no data or an impossible name: export it again.")
            try:
                plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
                raw = plain.reshape(-1).view(_torch().uint8).numpy()
            except RuntimeError:
                raise CheckpointError(
                    f"{path}: tensor {name!r} of shape {tuple(tensor.shape)} does not fit in memory: export it again."
                ) from None
            shared += _overlaps(name, tensor, spans)
            memory[name] = raw
            infos.append(TensorInfo(name, dtype, tuple(tensor.shape), number, 0, raw.nbytes))
    return infos, memory, shared


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


def _state_dict(path: Path) -> dict[str, Any]:
    torch = _torch()
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # the format before PyTorch 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading that could run its code: get the model as safetensors."
        ) from None
    except Exception as error:  # a damaged file makes torch raise whatever its bytes happen to mean
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint ({type(error).__name__}): get it again."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors: export its weights."
        )
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return tensors
