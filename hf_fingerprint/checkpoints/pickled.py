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
        seen: dict[int, str] = {}
        for name, tensor in _state_dict(path).items():
            dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
            if dtype is None or tensor.layout is not _torch().strided:
                raise CheckpointError(
                    f"{path}: tensor {name} is of type {tensor.dtype}, which can't be read: convert it."
                )
            raw = tensor.detach().contiguous().reshape(-1).view(_torch().uint8).numpy()
            if tensor.numel() and seen.setdefault(tensor.data_ptr(), str(name)) != str(name):
                shared.append((seen[tensor.data_ptr()], str(name)))
            memory[str(name)] = raw
            infos.append(TensorInfo(str(name), dtype, tuple(tensor.shape), number, 0, raw.nbytes))
    return infos, memory, shared


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
        except RuntimeError:  # the format before PyTorch 1.6 can't be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading that could run its code: get the model as safetensors."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
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
