"""Write a copy of a model folder with the bytes of some tensors replaced.

Tensor names, shapes, dtypes and order are kept, and so are file permissions. [`list_contents`] decides which other
files are copied; skipped files are reported with a reason. What loaders don't read (local paths in a configuration,
notes in a header) is dropped; all other files are copied byte for byte. A pickled model becomes `model.safetensors`.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce
from io import BytesIO, FileIO
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.configs import clean_header
from hf_fingerprint.checkpoints.contents import SkippedFile, list_contents
from hf_fingerprint.checkpoints.files import (
    allocate,
    copy_file,
    copy_mode,
    create_file,
    file_mode,
    make_folders,
    sync,
    write_all,
)
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo
from hf_fingerprint.checkpoints.reader import Checkpoint, block_rows, content_hash
from hf_fingerprint.errors import CheckpointError, StorageError
from hf_fingerprint.progress import Progress, counting


Rewrite = Callable[[np.ndarray], None]
CONVERTED_FILE = "model.safetensors"
_BUFFERS = 3
_GROUP_BYTES = 1 << 21


@dataclass(frozen=True)
class WrittenCopy:
    """A written copy, not yet synced to disk; its weights may be in memory until [`flush`].

    Attributes:
        digests (`dict[str, str]`): SHA-256 of each tensor's bytes in the copy.
        file_digests (`dict[Path, str]`): SHA-256 of each weight file, if requested.
        left_out (`tuple[SkippedFile, ...]`): files of the source that were not copied, with the reason.
        files (`tuple[Path, ...]`): the files written.
        buffered (`dict[Path, BytesIO]`): files that are still in memory.
        mode (`int`): permissions of the buffered files once written.
        content_hash (`str`): the content hash of the copy's weights.
    """

    digests: dict[str, str]
    file_digests: dict[Path, str]
    left_out: tuple[SkippedFile, ...]
    files: tuple[Path, ...]
    buffered: dict[Path, BytesIO] = field(default_factory=dict)
    mode: int = 0o600
    content_hash: str = ""

    def write_buffered(self) -> None:
        """Writes the buffered files, without syncing them to disk."""
        for path in list(self.buffered):
            content = self.buffered.pop(path).getbuffer()
            with create_file(path, self.mode) as stream:
                allocate(stream, len(content))
                write_all(stream, content)

    def flush(self) -> None:
        """Writes the buffered files and syncs all files and their folders to disk."""
        self.write_buffered()
        for path in (*self.files, *dict.fromkeys(path.parent for path in self.files)):
            sync(path)


def write_copy(
    checkpoint: Checkpoint,
    folder: Path,
    rewrites: Mapping[str, Rewrite],
    progress: Progress | None = None,
    in_memory: bool = False,
    file_digests: bool = False,
    include_code: bool = False,
) -> WrittenCopy:
    """Writes a copy into an empty folder. Call `flush()` on the result before relying on it.

    Args:
        checkpoint ([`Checkpoint`]): the open source.
        folder (`Path`): an existing, empty folder.
        rewrites (mapping): for each tensor to change, a function that changes its bytes (`uint8`) in place. It gets
            the tensor's blocks of rows in order.
        progress (callable, *optional*): a [`Progress`].
        in_memory (`bool`, *optional*, defaults to `False`): whether the weights stay in memory until `flush()`.
        file_digests (`bool`, *optional*, defaults to `False`): whether to hash the weight files too.
        include_code (`bool`, *optional*, defaults to `False`): whether to copy the model's `.py` files.

    Raises:
        [`CheckpointError`]: if the source can't be copied faithfully.
        [`StorageError`]: if the disk is too full.
    """
    source = checkpoint.source
    if not set(rewrites) <= set(checkpoint.tensors):
        missing = ", ".join(sorted(set(rewrites) - set(checkpoint.tensors)))
        raise CheckpointError(f"{source.name} lacks the tensors {missing}, which carry the mark: give the base.")
    contents = list_contents(source, include_code)
    targets = _targets(checkpoint, folder)
    if not in_memory:
        _check_space(checkpoint, folder)
    if source.owns_folder:
        copy_mode(source.folder, folder)
    copies = [(each, folder / each.name) for each in contents.included]
    for each, target in copies:
        make_folders(target.parent, folder, source.folder)
        copy_file(each.path, target, each.content)
    mode = reduce(int.__and__, map(file_mode, source.weights)) if source.weights else file_mode(folder) & 0o666
    count = counting(progress, "writing the copy", sum(info.nbytes for info in checkpoint.tensors.values()))
    digests: dict[str, str] = {}
    hashes: dict[Path, str] = {}
    buffered: dict[Path, BytesIO] = {target: BytesIO() for target in targets} if in_memory else {}
    for number, target in enumerate(targets):
        chosen = [i for i in checkpoint.tensors.values() if source.pickled or i.file == number]
        header = _header(checkpoint, number)
        with ExitStack() as opened:
            stream = buffered[target] if in_memory else opened.enter_context(create_file(target, mode))
            size = len(header) + sum(info.nbytes for info in chosen)
            output = opened.enter_context(_HashingWriter(stream, size, chosen, file_digests))
            head = output.buffer(len(header))[: len(header)]
            head[:] = np.frombuffer(header, np.uint8)
            output.put(head, [])
            for group in _group_blocks(chosen):
                buffer, end = output.buffer(sum(stop - start for _, start, stop in group)), 0
                for info, start, stop in group:
                    block = checkpoint.read(info, start, stop, buffer[end:])
                    if info.name in rewrites:
                        rewrites[info.name](block)
                    end += stop - start
                output.put(buffer[:end], [(info.name, stop - start) for info, start, stop in group])
                count(end)
        digests |= output.digests
        if file_digests:
            hashes[target] = output.digest
    written = tuple(target for _, target in copies) + tuple(targets)
    copy_hash = content_hash(checkpoint.tensors, digests)
    return WrittenCopy(digests, hashes, contents.left_out, written, buffered, mode, copy_hash)


def can_publish_unchanged(checkpoint: Checkpoint) -> bool:
    """Whether the weight files may be published unchanged: safetensors with nothing to drop from their headers."""
    source = checkpoint.source
    if source.pickled or not all(map(_is_named_safetensors, source.weights)):
        return False
    numbers = range(len(checkpoint.data_starts))
    return all(_header(checkpoint, number) == _read_head(checkpoint, number) for number in numbers)


def rewrite_tensors(path: Path, rewrites: Sequence[tuple[TensorInfo, Rewrite]]) -> None:
    """Changes tensors of a safetensors file, all or none: a new file is written, synced and renamed.

    Args:
        path (`Path`): the file.
        rewrites (sequence): tensors of the file, from an open checkpoint, each with a function that changes its bytes
            in place; see [`write_copy`].

    Raises:
        [`CheckpointError`]: if the file can't be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        copy_file(path, partial)
        with partial.open("r+b") as stream:
            for info, rewrite in rewrites:
                for rows in block_rows(info):
                    start = info.offset + rows.start * info.row_bytes
                    stream.seek(start)
                    raw = np.frombuffer(stream.read((rows.stop - rows.start) * info.row_bytes), np.uint8).copy()
                    rewrite(raw)
                    stream.seek(start)
                    stream.write(raw)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        problem = f"{path} can't be written ({error.strerror})"
        raise CheckpointError(f"{problem}: free disk space, or fix its permissions.") from None


def _group_blocks(infos: list[TensorInfo]) -> Iterator[list[tuple[TensorInfo, int, int]]]:
    """Groups blocks of rows into writes of about 2 MB: many small tensors, or a part of a large one.

    Yields:
        a list of `(info, start, stop)`, `start` and `stop` in bytes.
    """
    group: list[tuple[TensorInfo, int, int]] = []
    size = 0
    for info in infos:
        for rows in block_rows(info):
            start, stop = rows.start * info.row_bytes, rows.stop * info.row_bytes
            if group and size + stop - start > _GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append((info, start, stop))
            size += stop - start
    if group:
        yield group


class _HashingWriter:
    """Writes and hashes blocks in two background threads, while the caller fills the next of several buffers."""

    def __init__(self, stream: FileIO | BytesIO, size: int, infos: list[TensorInfo], hash_file: bool):
        self._stream = stream
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[np.ndarray | None, list[Future[Any]]]] = deque()
        if isinstance(stream, FileIO):
            self._waiting.append((None, [self._writer.submit(allocate, stream, size)]))
        self._buffers = [np.empty(0, np.uint8) for _ in range(_BUFFERS)]
        self._filling = self._buffers[0]
        self._hashes = {info.name: hashlib.sha256() for info in infos}
        self._file_hash = hashlib.sha256() if hash_file else None

    def __enter__(self) -> "_HashingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            while self._waiting and kind is None:
                self._wait()
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._hasher.shutdown(cancel_futures=True)

    @property
    def digests(self) -> dict[str, str]:
        """The digests of all tensors, once the writer is closed."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    @property
    def digest(self) -> str:
        """The digest of the whole file, once the writer is closed."""
        return "" if self._file_hash is None else self._file_hash.hexdigest()

    def buffer(self, count: int) -> np.ndarray:
        """A buffer of at least `count` bytes for the next block."""
        while not self._buffers:
            self._wait()
        found = self._buffers.pop()
        self._filling = found if len(found) >= count else np.empty(count, np.uint8)
        return self._filling

    def put(self, block: np.ndarray, parts: list[tuple[str, int]]) -> None:
        """Queues the block in the last buffer, which must not change any more.

        Args:
            block (`np.ndarray`): the bytes, `uint8`.
            parts (`list`): `(name, count)` of each tensor in the block, in order.
        """
        jobs: list[Future[Any]] = [
            self._writer.submit(self._write, block),
            self._hasher.submit(self._hash, block, parts),
        ]
        self._waiting.append((self._filling, jobs))

    def _write(self, block: np.ndarray) -> None:
        write_all(self._stream, block)
        if self._file_hash is not None:
            self._file_hash.update(block)

    def _hash(self, block: np.ndarray, parts: list[tuple[str, int]]) -> None:
        end = 0
        for name, count in parts:
            self._hashes[name].update(block[end : end + count])
            end += count

    def _wait(self) -> None:
        buffer, jobs = self._waiting.popleft()
        for job in jobs:
            job.result()
        if buffer is not None:
            self._buffers.append(buffer)


def _targets(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    source = checkpoint.source
    if source.pickled or (len(source.weights) == 1 and not _is_named_safetensors(source.weights[0])):
        return [folder / CONVERTED_FILE]
    for path in filterfalse(_is_named_safetensors, source.weights):
        raise CheckpointError(f"{path} holds safetensors, but its name doesn't end in .safetensors: rename it.")
    return [folder / path.relative_to(source.folder) for path in source.weights]


def _is_named_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _check_space(checkpoint: Checkpoint, folder: Path) -> None:
    needed, free = sum(info.nbytes for info in checkpoint.tensors.values()), shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{free >> 20} MB free and the copy needs {-(-needed >> 20)}"
        raise StorageError(f"{folder} has {sizes}: free disk space.")


def _header(checkpoint: Checkpoint, number: int) -> bytes:
    """The bytes before the data: the source's, without what loaders don't read, or new ones for a pickled model."""
    if not checkpoint.source.pickled:
        content = _read_head(checkpoint, number)
        text = clean_header(content[8:])
        return content if text == content[8:] else _frame_header(text)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in checkpoint.tensors.items():
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    return _frame_header(json.dumps(header, separators=(",", ":")).encode())


def _read_head(checkpoint: Checkpoint, number: int) -> bytes:
    """The bytes before the data in a safetensors file of the source."""
    return checkpoint.read_file(number, 0, np.empty(checkpoint.data_starts[number], np.uint8)).tobytes()


def _frame_header(text: bytes) -> bytes:
    """A header's JSON after its length, padded with spaces to a multiple of 8 bytes."""
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
