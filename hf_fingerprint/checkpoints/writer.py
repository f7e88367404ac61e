"""A copy of a model folder with the bytes of some tensors replaced and everything else as it was.

Headers, names, shapes, dtypes, order, metadata and all other files are copied byte for byte. What may not be handed
on stays behind and is named: the same weights in another form, unmarked. A pickled model becomes `model.safetensors`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hf_fingerprint.checkpoints.reader import Checkpoint
from hf_fingerprint.checkpoints.safetensors_file import TensorInfo
from hf_fingerprint.errors import CheckpointError


Rewrite = Callable[[np.ndarray], np.ndarray]
CONVERTED = "model.safetensors"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class WrittenCopy:
    """What was written.

    Attributes:
        digests (`dict[str, str]`): SHA-256 of each tensor's bytes in the copy.
        left_out (`tuple[str, ...]`): files of the source that hold weights in another form and were not copied.
    """

    digests: dict[str, str]
    left_out: tuple[str, ...]


def write_copy(
    checkpoint: Checkpoint,
    folder: Path,
    rewrites: Mapping[str, Rewrite],
    advance: Callable[[int], None] | None = None,
) -> WrittenCopy:
    """Writes a copy into an empty folder, and syncs it to the disk.

    Args:
        checkpoint ([`Checkpoint`]): the open source.
        folder (`Path`): an existing, empty folder.
        rewrites (mapping): for each tensor to change, a function that is given its bytes block of rows by block of
            rows, in
            order (`uint8`, valid during the call), and returns as many new ones.
        advance (callable, *optional*): told the bytes written.

    Raises:
        [`CheckpointError`]: if the source can't be copied faithfully, or the disk is too full.
    """
    source = checkpoint.source
    others, unmarked = source.other_files()
    _check_space(checkpoint, folder)
    digests: dict[str, str] = {}
    for path in others:
        target = folder / path.relative_to(source.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        sync(target)
    with ThreadPoolExecutor(1) as pool:
        for number, target in enumerate(_targets(checkpoint, folder)):
            with target.open("xb") as stream:
                _write_header(checkpoint, number, stream)
                for name, info in checkpoint.tensors.items():
                    if source.pickled or info.file == number:
                        digests[name] = _write_tensor(checkpoint, info, rewrites.get(name), stream, pool)
                        if advance is not None:
                            advance(info.nbytes)
                stream.flush()
                os.fsync(stream.fileno())
    left_out = [str(path.relative_to(source.folder)) for path in unmarked]
    if source.pickled:
        left_out += [path.name for path in source.weights] + ([source.index.name] if source.index else [])
    return WrittenCopy(digests, tuple(sorted(set(left_out))))


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _targets(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    source = checkpoint.source
    if source.pickled:
        if checkpoint.shared:
            first, second = checkpoint.shared[0]
            raise CheckpointError(
                f"{source.name}: tensors {first} and {second} are one, which only a pickle can say: save it as "
                f"safetensors."
            )
        return [folder / CONVERTED]
    targets = [folder / path.relative_to(source.folder) for path in source.weights]
    if source.index is not None:
        shutil.copyfile(source.index, folder / source.index.name)
        sync(folder / source.index.name)
    return targets


def _check_space(checkpoint: Checkpoint, folder: Path) -> None:
    needed = sum(info.nbytes for info in checkpoint.tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{folder} has {free >> 20} MB free and the copy needs {needed >> 20}: make room.")


def _write_header(checkpoint: Checkpoint, number: int, stream: BinaryIO) -> None:
    if not checkpoint.source.pickled:
        start = checkpoint.data_starts[number]
        for offset in range(0, start, _COPY_BYTES):
            stream.write(checkpoint.read_file(number, offset, np.empty(min(_COPY_BYTES, start - offset), np.uint8)))
        return
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in checkpoint.tensors.items():
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)


def _write_tensor(
    checkpoint: Checkpoint, info: TensorInfo, rewrite: Rewrite | None, stream: BinaryIO, pool: ThreadPoolExecutor
) -> str:
    digest = hashlib.sha256()
    for _, raw in checkpoint.blocks(info):
        new = raw if rewrite is None else rewrite(raw)
        hashed = pool.submit(digest.update, new)
        stream.write(new)
        hashed.result()
    return digest.hexdigest()
