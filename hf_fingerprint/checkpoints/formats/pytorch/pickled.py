"""Read the model's tensors from PyTorch files (.bin, .pt, .pth, .ckpt, ...)."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor
from hf_fingerprint.checkpoints.formats.descriptions import InvalidPickleError
from hf_fingerprint.checkpoints.formats.pytorch.nesting import all_tensors, model_tensors, unique_name
from hf_fingerprint.checkpoints.formats.pytorch.torch_files import LoadedFile, load_torch_file
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, LazyTensor
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MAX_EXPANSION_RATIO
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_FLAT = re.compile(r"(\A|\.)_?flat_param(_\d+)?(\.|\Z)")


class PickledTensors(NamedTuple):
    """The tensors of PyTorch files.

    Attributes:
        infos (`list[TensorInfo]`): names, dtypes and shapes, in the order of the files.
        memory (`dict[str, LazyTensor]`): access to their bytes.
        tied (`dict[str, str]`): names of tensors that share memory, each with the first name.
    """

    infos: list[TensorInfo]
    memory: dict[str, LazyTensor]
    tied: dict[str, str]


def load_pickled(paths: tuple[Path, ...], left_out: dict[str, str] | None = None) -> PickledTensors:
    """The tensors of PyTorch files, memory-mapped. Nothing in the files is executed.

    Args:
        paths (`tuple[Path, ...]`): one file or all shards.
        left_out (`dict[str, str]`, *optional*): for a suspect, receives the unreadable tensors, each with a short
            reason; tensors may be nested at any depth. By default, an unreadable tensor is an error, and so are
            tensors that share a part of their memory.

    Raises:
        [`CheckpointError`]: if a file can't be read, or it is ambiguous which tensors are the model's.
    """
    found = PickledTensors([], {}, {})
    taken: dict[str, int] = {}
    for number, path in enumerate(paths):
        byte_budget = path.stat().st_size * MAX_EXPANSION_RATIO + MAX_EXPANSION
        own: dict[str, LazyTensor] = {}
        for name, tensor in _load_tensors(path, left_out):
            reason = _unreadable_reason(name, tensor, byte_budget, suspect=left_out is not None)
            if reason is not None:
                if left_out is None:
                    problem = f"{path}: tensor {name!r} can't be read ({reason})"
                    raise CheckpointError(f"{problem}: convert it or export without it.")
                left_out[printable(str(name))] = reason
                continue
            byte_budget -= tensor.nbytes
            if left_out is not None:
                name = unique_name(name, taken)
            own[name] = found.memory[name] = tensor
            found.infos.append(TensorInfo(name, DTYPES[tensor.dtype], tensor.shape, number, 0, tensor.nbytes))
        if left_out is None:
            found.tied.update(find_tied(own, path))
    return found


def _load_tensors(path: Path, left_out: dict[str, str] | None) -> Iterable[tuple[str, LazyTensor]]:
    try:
        return _select_tensors(load_torch_file(path), path, left_out)
    except InvalidPickleError as error:
        raise CheckpointError(f"{path} is not a complete PyTorch checkpoint ({error}): download it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None


def _select_tensors(
    loaded: LoadedFile, path: Path, left_out: dict[str, str] | None
) -> Iterable[tuple[str, LazyTensor]]:
    if left_out is None:
        return model_tensors(loaded.content, path).items()
    found = list(all_tensors(loaded.content, left_out))
    if loaded.constants:
        names = {name: 2 for name, _ in found}
        more = all_tensors(loaded.constants, left_out)
        found += [(unique_name(f"constants.{name}", names), tensor) for name, tensor in more]
    if not found and not left_out:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return found


def _unreadable_reason(name: object, tensor: LazyTensor, byte_budget: int, suspect: bool) -> str | None:
    """Why a tensor can't be read, or `None`."""
    if (reason := tensor.unreadable_reason()) is not None:
        return reason
    if not suspect and isinstance(tensor, ComputedTensor):  # a copy needs every tensor as it is stored
        return f"dtype {tensor.stored}"
    if not is_valid_name(name):
        return "an invalid name"
    if suspect and not tensor.numel():
        return EMPTY
    if suspect and _FLAT.search(str(name)):
        return "a flat vector of FSDP, without shapes: save a full or a sharded state dict"
    return "larger than its file" if tensor.nbytes > byte_budget else None


def is_valid_name(name: object) -> bool:
    """Whether safetensors can hold a tensor of this name."""
    if not isinstance(name, str) or name == "__metadata__":
        return False
    return name.encode(errors="replace") == name.encode(errors="surrogatepass")


def find_tied(tensors: Mapping[str, LazyTensor], path: Path | str) -> dict[str, str]:
    """Names of tensors that share memory with an earlier one, each with that one's name; none may overlap in part."""
    spans = [
        (id(tensor.storage.data), *tensor.span, number, name)
        for number, (name, tensor) in enumerate(tensors.items())
        if tensor.storage is not None and tensor.numel()
    ]
    tied: dict[str, str] = {}
    memory, reached, last = 0, 0, ""
    for where, begin, end, _, name in sorted(spans):
        if where == memory and begin < reached:
            if _layout_key(tensors[name]) != _layout_key(tensors[last]) or begin != tensors[last].span[0]:
                raise CheckpointError(
                    f"{path}: tensors {printable(last)} and {printable(name)} share a part of their memory, which a "
                    f"copy can't keep: save clones of them."
                )
            tied[name] = last
        else:
            memory, reached, last = where, end, name
    return tied


def _layout_key(tensor: LazyTensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.strides
