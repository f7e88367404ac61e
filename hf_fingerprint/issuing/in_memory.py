"""Marked copies of a module or a state dict: in memory, or saved as the module's library saves it."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.carriers import TensorUpdate
from hf_fingerprint.checkpoints import (
    SkippedFile,
    WrittenCopy,
    content_hash,
    digest_tensors,
    list_contents,
    open_checkpoint,
)
from hf_fingerprint.checkpoints.live_tensors import overlaps, storage_of
from hf_fingerprint.checkpoints.memory import MemoryCheckpoint, copy_module, own_storages
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.models.live_modules import save_module
from hf_fingerprint.printable import printable
from hf_fingerprint.progress import Progress, counting


if TYPE_CHECKING:
    import torch


def mark_in_memory(
    checkpoint: MemoryCheckpoint, updates: Mapping[str, TensorUpdate], progress: Progress | None = None
) -> "tuple[torch.nn.Module | dict[str, torch.Tensor], dict[str, str]]":
    """A marked deep copy of a module or a state dict, on the same device; the model is not changed.

    Args:
        checkpoint ([`MemoryCheckpoint`]): the open model.
        updates (mapping of `str` to [`TensorUpdate`]): the update of each tensor that differs, by name.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        `(copy, digests)`: the copy, and the SHA-256 of each tensor that differs.

    Raises:
        [`CheckpointError`]: if the model can't be copied, or a mark would not reach the copy's weights.
    """
    import torch

    copy: Any
    if checkpoint.module is not None:
        copy = copy_module(checkpoint.module)
        values = dict(copy.state_dict())
        _check_own(checkpoint, copy, values, updates)
    else:
        copy = values = _copy_state(checkpoint)
    digests: dict[str, str] = {}
    written: set[tuple[torch.device, int]] = set()
    count = counting(progress, "marking the copy", sum(checkpoint.tensors[name].nbytes for name in updates))
    for name, update in updates.items():
        info, target = checkpoint.tensors[name], values[name]
        digest, is_tied = hashlib.sha256(), (target.device, target.data_ptr()) in written
        for rows, raw in checkpoint.blocks(info):
            update(raw)
            digest.update(raw)
            if not is_tied:
                with torch.no_grad():
                    part = target[rows]
                    part.copy_(torch.from_numpy(raw).view(target.dtype).reshape(part.shape))
        written.add((target.device, target.data_ptr()))
        digests[name] = digest.hexdigest()
        count(info.nbytes)
    return copy, digests


def write_module(
    checkpoint: MemoryCheckpoint,
    folder: Path,
    updates: Mapping[str, TensorUpdate],
    progress: Progress | None = None,
    file_digests: bool = False,
    include_code: bool = False,
) -> WrittenCopy:
    """Saves a marked copy of a module as its library does, into an empty folder.

    What the library saves is treated as the files of a base are: local paths are removed from configurations, and
    files that don't go with a copy are deleted. For the arguments see [`write_copy`].

    Raises:
        [`CheckpointError`]: if the module can't be marked or saved, or none of the marked weights is in the files.
    """
    marked: Any
    marked, changed = mark_in_memory(checkpoint, updates, progress)
    save_module(marked, folder)
    with open_checkpoint(folder) as saved:
        contents, weights = list_contents(saved.source, include_code), saved.source.weights
        for each in contents.included:
            if each.content is not None:
                each.path.write_bytes(each.content)
        kept = [*(each.path for each in contents.included), *weights]
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and path not in kept:
                path.unlink()
        digests = digest_tensors(saved)
        if set(changed.values()).isdisjoint(digests.values()):
            raise CheckpointError(f"{checkpoint.source.name} is saved without its mark: give its state dict.")
        hashes = {path: _file_digest(path) for path in weights} if file_digests else {}
        left_out: tuple[SkippedFile, ...] = contents.left_out
        return WrittenCopy(digests, hashes, left_out, tuple(kept), content_hash=content_hash(saved.tensors, digests))


def _check_own(
    checkpoint: MemoryCheckpoint, copy: "torch.nn.Module", values: "Mapping[str, torch.Tensor]", names: Iterable[str]
) -> None:
    """Raises a [`CheckpointError`] unless these tensors of a copy's state dict are the weights that it runs."""
    own = own_storages(copy)
    for name in names:
        known, found = checkpoint.values[name], values.get(name)
        same = found is not None and (found.dtype, found.shape) == (known.dtype, known.shape)
        if found is None or not same or storage_of(found) not in own or overlaps(found):
            raise CheckpointError(
                f"{checkpoint.source.name} can't be marked (its state dict has other tensors than its weights, such "
                f"as {printable(name)}): give its state dict."
            )


def _copy_state(checkpoint: MemoryCheckpoint) -> "OrderedDict[str, torch.Tensor]":
    """A deep copy of a state dict, in which tied tensors stay tied, with the versions of the module's layers."""
    state = checkpoint.state_dict
    values = {name: each.clone() if overlaps(each) else each for name, each in checkpoint.values.items()}
    copied = deepcopy(OrderedDict((name, values.get(name, each)) for name, each in state.items()))
    if (versions := getattr(state, "_metadata", None)) is not None:
        copied._metadata = deepcopy(versions)  # type: ignore[attr-defined]
    return copied


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
