"""Weights in PyTorch's files (.bin, .pt, .pth, .ckpt, ...): which of their tensors are the model's, and where."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hf_fingerprint.checkpoints.formats.descriptions import NotAPickle
from hf_fingerprint.checkpoints.formats.nesting import all_tensors, free_name, only_tensors
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo
from hf_fingerprint.checkpoints.formats.torch_files import Loaded, load
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, Tensor
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MAX_TIMES
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


class Pickled(NamedTuple):
    """The tensors of PyTorch's files.

    Attributes:
        infos (`list[TensorInfo]`): what they look like, in the order of the files.
        memory (`dict[str, Tensor]`): where their bytes are.
        tied (`dict[str, str]`): names of tensors that are one with another in memory, and the first name of it.
    """

    infos: list[TensorInfo]
    memory: dict[str, Tensor]
    tied: dict[str, str]


def load_pickled(paths: tuple[Path, ...], left_out: dict[str, str] | None = None) -> Pickled:
    """Reads the tensors of .bin, .pt and .pth files, memory-mapped. Nothing that the files say is run.

    Args:
        paths (`tuple[Path, ...]`): one file or all shards.
        left_out (`dict[str, str]`, *optional*): for a suspect: takes the tensors that can't be read, each with a short
            reason; the others are returned, from whatever they are nested in. By default one such tensor refuses the
            file, and so do tensors that share a part of their memory.

    Raises:
        [`CheckpointError`]: if a file can't be read, or doesn't say which tensors are the model's.
    """
    found = Pickled([], {}, {})
    taken: dict[str, int] = {}
    for number, path in enumerate(paths):
        room = path.stat().st_size * MAX_TIMES + MAX_EXPANSION
        own: dict[str, Tensor] = {}
        for name, tensor in _described(path, left_out):
            reason = _why_not(name, tensor, room, suspect=left_out is not None)
            if reason is not None and left_out is None:
                raise CheckpointError(
                    f"{path}: tensor {name!r} can't be read ({reason}): convert it or export without it."
                )
            if reason is not None and left_out is not None:
                left_out[printable(str(name))] = reason
                continue
            room -= tensor.nbytes
            if left_out is not None:
                name = free_name(name, taken)
            own[name] = found.memory[name] = tensor
            found.infos.append(TensorInfo(name, DTYPES[tensor.dtype], tensor.shape, number, 0, tensor.nbytes))
        if left_out is None:
            found.tied.update(_tied(own, path))
    return found


def _described(path: Path, left_out: dict[str, str] | None) -> Iterable[tuple[str, Tensor]]:
    try:
        return _tensors(load(path), path, left_out)
    except NotAPickle as error:
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint ({error}): get it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None


def _tensors(loaded: Loaded, path: Path, left_out: dict[str, str] | None) -> Iterable[tuple[str, Tensor]]:
    if left_out is None:
        return only_tensors(loaded.content, path).items()
    found = list(all_tensors(loaded.content, left_out))
    if loaded.constants:
        names = {name: 2 for name, _ in found}
        more = all_tensors(loaded.constants, left_out)
        found += [(free_name(f"constants.{name}", names), tensor) for name, tensor in more]
    if not found and not left_out:
        raise CheckpointError(f"{path} holds no tensors: is it the right file?")
    return found


def _why_not(name: object, tensor: Tensor, room: int, suspect: bool) -> str | None:
    """Why a tensor can't be read, if there is a reason."""
    reason = tensor.why_not()
    if reason is not None:
        return reason
    if not _can_be_named(name):
        return "an impossible name"
    if suspect and not tensor.numel():
        return EMPTY
    return "larger than its file" if tensor.nbytes > room else None


def _can_be_named(name: object) -> bool:
    """Whether safetensors can hold a tensor of this name."""
    if not isinstance(name, str) or name == "__metadata__":
        return False
    return name.encode(errors="replace") == name.encode(errors="surrogatepass")


def _tied(tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
    """The names of tensors that are one with another, and that other's; refuses tensors that are so in part."""
    spans = [
        (id(tensor.storage.data), *tensor.span, number, name)
        for number, (name, tensor) in enumerate(tensors.items())
        if tensor.storage is not None and tensor.numel()
    ]
    tied: dict[str, str] = {}
    memory, reached, last = 0, 0, ""
    for where, begin, end, _, name in sorted(spans):
        if where == memory and begin < reached:
            if _look(tensors[name]) != _look(tensors[last]) or begin != tensors[last].span[0]:
                raise CheckpointError(
                    f"{path}: tensors {printable(last)} and {printable(name)} share a part of their memory, which a "
                    f"copy can't keep: save clones of them."
                )
            tied[name] = last
        else:
            memory, reached, last = where, end, name
    return tied


def _look(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.strides
