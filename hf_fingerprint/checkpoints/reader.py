"""Read checkpoints of all formats in blocks of rows, without loading the whole model.

```python
with open_checkpoint("org/name") as checkpoint:
    for name, info in checkpoint.tensors.items():
        for rows, raw in checkpoint.blocks(info):
            values = to_float32(raw, info.dtype)
```
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.choosing import ADAPTER_MESSAGE
from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.formats.contained import Container, describe_container, load_contained
from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.nesting import unique_name
from hf_fingerprint.checkpoints.formats.pytorch.pickled import load_pickled
from hf_fingerprint.checkpoints.formats.recognition import PYTORCH, SAFETENSORS, detect_format, other_format
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo, headers_size, largest_tensors, read_layout
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.limits import megabytes, parse_json, read_bounded
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.tensor_names import is_adapter
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.threads import map_ahead


if TYPE_CHECKING:
    from hf_fingerprint.checkpoints.memory import ModelInput

BLOCK_WEIGHTS = 1 << 18
ROW_MULTIPLE = 8


class Checkpoint:
    """An open model. Use as a context manager, or `close()` it.

    Attributes:
        source ([`Source`]): where it came from.
        tensors (`dict[str, TensorInfo]`): all tensors, ordered by file and by offset.
        data_starts (`list[int]`): offset of the data in each safetensors file.
        left_out (`dict[str, str]`): unreadable tensors of a suspect, each with a short reason: an unknown dtype, a
            sparse layout, no elements.
        tied (`dict[str, str]`): for a pickle, names of tensors that share memory, each with the first name.
        companions (`tuple[Path, ...]`): for a suspect in another format, further files that hold its weights.
        container ([`Container`]): how its weights are stored.
    """

    container: Container
    companions: tuple[Path, ...] = ()

    def __init__(self, source: Source, suspect: bool = False):
        self.source = source
        self.tensors: dict[str, TensorInfo] = {}
        self.left_out: dict[str, str] = {}
        self.data_starts: list[int] = []
        self._descriptors: list[int] = []
        self._memory: dict[str, LazyTensor] = {}
        self.tied: dict[str, str] = {}
        formats = {detect_format(path) for path in source.weights}
        self._sizes = {path: path.stat().st_size for path in source.weights}
        producer, form = "", formats.pop() if len(formats) == 1 else ""
        if not form:
            raise CheckpointError(f"{source.name} mixes files of several formats: download the model again.")
        if (other := other_format(form)) is not None:
            if not suspect:
                raise CheckpointError(
                    f"{source.weights[0]} holds {form}, which only a suspect may have: give the safetensors or "
                    f"PyTorch file that it was converted from."
                )
            infos, self._memory, producer, self.companions = load_contained(other, source.weights, self.left_out)
            self._sizes |= {path: path.stat().st_size for path in self.companions}
            self._add(infos)
        elif form == PYTORCH:
            infos, self._memory, self.tied = load_pickled(source.weights, self.left_out if suspect else None)
            self._add(infos)
        else:
            taken: dict[str, int] | None = {} if suspect else None
            self._check_headers()
            for number, path in enumerate(source.weights):
                start, infos = read_layout(path, number, self.left_out if suspect else None)
                self.data_starts.append(start)
                self._add(infos, taken)
            self._check_index(suspect)
        if suspect and (largest := largest_tensors(self.tensors.values(), self.left_out)) is not None:
            self.tensors = {name: info for name, info in self.tensors.items() if name in largest}
        if len(self.tensors) > limits.MAX_TENSORS:
            most = f"the limit is {limits.MAX_TENSORS}"
            raise CheckpointError(f"{source.name} holds {len(self.tensors)} tensors, and {most}: split the model.")
        if not suspect and is_adapter(self.tensors):
            raise CheckpointError(f"{source.name} {ADAPTER_MESSAGE}.")
        self.container = describe_container(form, producer, self.tensors.values(), self._memory)
        if form == SAFETENSORS:
            self._open()

    def _add(self, infos: list[TensorInfo], taken: dict[str, int] | None = None) -> None:
        for info in infos:
            if taken is not None:
                name = unique_name(info.name[: limits.MAX_NAME], taken)
                info = info if name == info.name else replace(info, name=name)
            if info.name in self.tensors:
                raise CheckpointError(f"{self.source.name} holds tensor {info.name} twice: download the model again.")
            if taken is None and len(info.name) > limits.MAX_NAME:
                raise CheckpointError(
                    f"{self.source.weights[info.file]} has a tensor whose name begins with {info.name[:80]!r} and is "
                    f"longer than {limits.MAX_NAME} characters: rename it."
                )
            self.tensors[info.name] = info

    def _check_headers(self) -> None:
        """Refuses files whose headers, which are in memory at once, are too large together."""
        if (total := headers_size(self.source.weights)) > limits.MAX_HEADERS:
            raise CheckpointError(
                f"{self.source.name} has weight files whose headers have {megabytes(total)} MB together, and no model "
                f"has more than {megabytes(limits.MAX_HEADERS)} MB: download the model again."
            )

    def _open(self) -> None:
        try:
            for path in self.source.weights:
                self._descriptors.append(os.open(path, os.O_RDONLY))
        except OSError as error:
            self.close()
            raise CheckpointError(
                f"{self.source.name} can't be read ({error.strerror}): close other programs, or allow this one more "
                f"open files (ulimit -n)."
            ) from None

    def _check_index(self, suspect: bool) -> None:
        if self.source.index is None:
            return
        shards = {path.name: number for number, path in enumerate(self.source.weights)}
        index = parse_json(read_bounded(self.source.index, limits.MAX_INDEX, "an index of weight files"))
        for name, shard in index["weight_map"].items():
            info = self.tensors.get(name)
            if suspect and info is None:
                self.left_out.setdefault(printable(name), f"not in {printable(shard)}")
            elif not suspect and (info is None or info.file != shards[shard]):
                raise CheckpointError(
                    f"{self.source.index} places tensor {name} in {shard}, which lacks it: download it again."
                )

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    @property
    def stored(self) -> "Checkpoint":
        """The model under the names that its files give its tensors."""
        return self

    def reopen(self) -> "Checkpoint":
        """The same model, opened as a base is: all of its tensors must be readable."""
        return Checkpoint(self.source)

    def state(self) -> str:
        """Name, size, times and inode of each weight file as JSON, which changes whenever a file does."""
        found = [(path.name, path.stat()) for path in self.source.weights]
        return json.dumps([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in found])

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`. With `out`, which must be large enough, a view of it."""
        count = (info.nbytes if stop is None else stop) - start
        if self._memory:
            for path in (self.source.weights[info.file], *self.companions):
                if path.stat().st_size < self._sizes[path]:  # reading on would be fatal
                    raise CheckpointError(f"{path} ends too soon: it changed while it was read.")
            try:
                found = self._memory[info.name].read(start, start + count)
            except InvalidFileError as error:
                raise CheckpointError(
                    f"{self.source.weights[info.file]}: tensor {printable(info.name)} can't be read ({error}): "
                    f"download the file again."
                ) from None
            if out is None:  # a pickle's tensors lie anywhere in its file
                return found if found.ctypes.data % SIZES[info.dtype] == 0 else found.copy()
            out[:count] = found
            return out[:count]
        buffer = np.empty(count, np.uint8) if out is None else out[:count]
        return self.read_file(info.file, info.offset + start, buffer)

    def place_of(self, info: TensorInfo) -> tuple[int, int] | None:
        """The open file that holds a tensor as [`read`] returns it, and its offset there; `None` if none does."""
        is_plain = type(self).read is Checkpoint.read and not self._memory
        return (self._descriptors[info.file], info.offset) if is_plain else None

    def read_file(self, file: int, offset: int, buffer: np.ndarray) -> np.ndarray:
        """Fills `buffer` (`uint8`) with bytes of a weight file from `offset`, and returns it."""
        view, done = memoryview(buffer), 0
        while done < len(view):
            got = os.preadv(self._descriptors[file], [view[done:]], offset + done)
            if got == 0:
                raise CheckpointError(f"{self.source.weights[file]} ends too soon: it changed while it was read.")
            done += got
        return buffer

    def blocks(self, info: TensorInfo) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads a tensor in blocks of about 1 MB; see [`block_rows`].

        Yields:
            `(rows, raw)`: the rows, and their bytes as `uint8`, which the next block overwrites.
        """
        buffer = np.empty(0, np.uint8)
        for rows in block_rows(info):
            start, stop = rows.start * info.row_bytes, rows.stop * info.row_bytes
            buffer = buffer if len(buffer) else np.empty(stop - start, np.uint8)  # no block is larger than the first
            yield rows, self.read(info, start, stop, buffer)


def block_rows(info: TensorInfo) -> Iterator[slice]:
    """Yields the row slices of a tensor's blocks: about 1 MB each, a multiple of 8 rows in all but the last."""
    if info.nbytes:
        rows = max(ROW_MULTIPLE, BLOCK_WEIGHTS // max(info.columns, 1) // ROW_MULTIPLE * ROW_MULTIPLE)
        for start in range(0, info.rows, rows):
            yield slice(start, min(start + rows, info.rows))


def open_checkpoint(
    name: "ModelInput | Source",
    weights_only: bool = False,
    suspect: bool = False,
    file: str | None = None,
    options: HubOptions = NO_OPTIONS,
) -> Checkpoint:
    """Opens a model.

    Args:
        name ([`ModelInput`] or [`Source`]): a model name as for [`resolve`], or its result; or a module or a state
            dict, which is read where it is.
        weights_only (`bool`, *optional*, defaults to `False`): whether to download only the weights from the Hub.
        suspect (`bool`, *optional*, defaults to `False`): whether to open the model as a suspect: it may have any
            format, quantized weights are dequantized, unreadable tensors are listed in `left_out`, and pickles may
            nest their tensors freely. A base must be fully readable, since copies need every tensor.
        file (`str`, *optional*): weight file to use in the folder or repo.
        options ([`HubOptions`], *optional*): where in the folder or repo, and how to reach it.

    Raises:
        [`CheckpointError`]: if there is no such model, or it can't be read.
    """
    opened: Checkpoint
    if not isinstance(name, str | Path | Source):
        from hf_fingerprint.checkpoints.memory import MemoryCheckpoint

        opened = MemoryCheckpoint(name, suspect)
    else:
        source = name if isinstance(name, Source) else resolve(name, weights_only, file, options)
        opened = Checkpoint(source, suspect)
    if suspect:
        from hf_fingerprint.checkpoints.dequantized import dequantize_schemes

        return dequantize_schemes(opened)
    return opened


class DtypeAndShape(Protocol):
    """Dtype and shape of a tensor, as in a [`TensorInfo`]."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def content_hash(tensors: Mapping[str, DtypeAndShape], digests: Mapping[str, str]) -> str:
    """Hash of a model's weights, independent of sharding and metadata.

    Args:
        tensors (mapping of `str` to [`TensorInfo`]): the tensors.
        digests (mapping of `str` to `str`): hexadecimal SHA-256 of each tensor's bytes.

    Returns:
        `str`: SHA-256 of one JSON line `[name, dtype, shape, digest]` for each tensor, sorted by name; hexadecimal.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        info = tensors[name]
        total.update(json.dumps([name, info.dtype, list(info.shape), digests[name]]).encode() + b"\n")
    return total.hexdigest()


def digest_tensors(
    checkpoint: Checkpoint,
    progress: Progress | None = None,
    visit: Callable[[TensorInfo, np.ndarray], None] | None = None,
) -> dict[str, str]:
    """Hexadecimal SHA-256 of each tensor's bytes, by several threads.

    Args:
        checkpoint ([`Checkpoint`]): the open model.
        progress (callable, *optional*): a [`Progress`].
        visit (callable, *optional*): called with each tensor and each of its blocks in order, and with those of other
            tensors meanwhile; see [`Checkpoint.blocks`]. It saves a second pass over the file.
    """

    def digest_one(info: TensorInfo) -> str:
        digest = hashlib.sha256()
        for _, raw in checkpoint.blocks(info):
            digest.update(raw)
            if visit is not None:
                visit(info, raw)
        return digest.hexdigest()

    digests = {}
    count = counting(progress, "hashing", sum(info.nbytes for info in checkpoint.tensors.values()))
    for (name, info), digest in zip(
        checkpoint.tensors.items(), map_ahead(digest_one, checkpoint.tensors.values()), strict=True
    ):
        digests[name] = digest
        count(info.nbytes)
    return digests
