"""A model on the Hub read by byte ranges: the headers, and then only those tensors' bytes that are asked for.

```python
with open_ranges("org/name") as checkpoint:  # None: download it instead
    checkpoint.fetch([(info, start, stop)])  # neighbours in one request
    checkpoint.read(info, start, stop)       # as from a file
```
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol

import numpy as np

from hf_fingerprint.checkpoints.names import printable
from hf_fingerprint.checkpoints.ranged_files import NotByRanges, RangedFiles
from hf_fingerprint.checkpoints.safetensors_file import MAX_HEADER, TensorInfo, read_layout
from hf_fingerprint.checkpoints.source import HUB_ID, MAX_INDEX, Source, choose_weights, exists
from hf_fingerprint.errors import CheckpointError


HEADER_GUESS = 1 << 17
GAP, GAP_SHARE = 1 << 16, 256  # bytes between two pieces, and share of the model, that cost less than a request
MAX_RUN = 1 << 25


class Weights(Protocol):
    """What the readers of a suspect need of it: a [`Checkpoint`], or a [`RangedCheckpoint`]."""

    source: Source
    tensors: dict[str, TensorInfo]

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, into `out` if it is given."""


def open_ranges(name: str | Path, max_bytes: int | None = None) -> "RangedCheckpoint | None":
    """Opens a model on the Hub for reading by ranges.

    Args:
        name (`str` or `Path`): what [`resolve`] takes.
        max_bytes (`int`, *optional*): how many bytes are to be fetched at most, for whoever reads.

    Returns:
        [`RangedCheckpoint`], or `None` if it is to be had by [`open_checkpoint`]: a path, a model that is in the local
        cache or has pickled weights only, a Hub that can't be reached or does not answer ranges.

    Raises:
        [`CheckpointError`]: if there is no such model, or it is not open to this account, or not well-formed.
    """
    text = str(name)
    match = HUB_ID.fullmatch(text.removeprefix("hf-hub:"))
    if match is None or (not text.startswith("hf-hub:") and exists(Path(text))):
        return None
    try:
        return RangedCheckpoint(match["repo"], match["revision"], max_bytes)
    except NotByRanges:
        return None


class RangedCheckpoint:
    """A model on the Hub, pinned to a commit. Made by [`open_ranges`].

    Attributes:
        source ([`Source`]): its name on the Hub, which for a renamed repo is the new one, and its commit.
        tensors (`dict[str, TensorInfo]`): all tensors, in the order of the files and of the bytes in them.
        total_bytes (`int`): size of all weight files.
        max_bytes (`int` or `None`): how many bytes are to be fetched at most.
    """

    def __init__(self, repo: str, revision: str | None, max_bytes: int | None = None):
        self.max_bytes = max_bytes
        self.others = ()
        self.left_out = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.total_bytes = 0
        self._heads: list[tuple[int, int, np.ndarray]] = []
        self._kept: list[tuple[int, int, np.ndarray]] = []
        self._hub = hub = RangedFiles(repo, revision)
        chosen = choose_weights([name for name in hub.names if "/" not in name], hub.repo)
        suffix = PurePosixPath(chosen.removesuffix(".index.json")).suffix
        if suffix != ".safetensors" or self._cached(chosen):
            raise NotByRanges
        weight_map = self._weight_map(chosen) if chosen.endswith(".index.json") else {}
        self._files = sorted(set(weight_map.values())) or [chosen]
        self.source = Source(hub.repo, Path(), tuple(map(Path, self._files)), None, hub.commit, whole_folder=False)
        for number in range(len(self._files)):
            for info in self._layout(number):
                if info.name in self.tensors:
                    raise CheckpointError(
                        f"{hub.repo} holds tensor {printable(info.name)} twice: don't use this model."
                    )
                self.tensors[info.name] = info
        for name, shard in weight_map.items():
            if name not in self.tensors or self._files[self.tensors[name].file] != shard:
                raise CheckpointError(
                    f"{hub.repo}/{chosen} places tensor {printable(name)} in {shard}, which lacks it: don't use "
                    f"this model."
                )

    def __enter__(self) -> "RangedCheckpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    @property
    def bytes_fetched(self) -> int:
        """Bytes of files that came so far."""
        return self._hub.bytes_fetched

    @property
    def requests(self) -> int:
        """HTTP exchanges so far, redirects included."""
        return self._hub.requests

    def fetch(self, pieces: Iterable[tuple[TensorInfo, int, int]]) -> None:
        """Fetches pieces of tensors and keeps them for [`read`]; neighbours in one file come in one request.

        Args:
            pieces (iterable of `(info, start, stop)`): bytes `start` to `stop` of each tensor.

        Raises:
            [`CheckpointError`]: if they can't be had.
        """
        wanted = [
            (info.file, info.offset + start, info.offset + stop)
            for info, start, stop in pieces
            if self._find(info.file, info.offset + start, info.offset + stop) is None
        ]
        gap = min(GAP, self.total_bytes // GAP_SHARE) if self.max_bytes is None else 0
        for file, begin, end in runs(wanted, gap):
            self._kept.append((file, begin, self._range(file, begin, end)))

    def drop(self) -> None:
        """Forgets what [`fetch`] kept."""
        self._kept = []

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, into `out` if it is given (which must be large enough): from
        what was fetched, else by a request of its own."""
        begin, end = info.offset + start, info.offset + (info.nbytes if stop is None else stop)
        found = self._find(info.file, begin, end)
        if found is None:
            found = self._range(info.file, begin, end)
        if out is None:
            return found
        out[: len(found)] = found
        return out[: len(found)]

    def _find(self, file: int, begin: int, end: int) -> np.ndarray | None:
        for kept, start, data in (*self._heads, *self._kept):
            if kept == file and start <= begin and end <= start + len(data):
                return data[begin - start : end - start]
        return None

    def _cached(self, chosen: str) -> bool:
        """Whether all weight files of this commit are in the local cache."""
        from huggingface_hub import try_to_load_from_cache

        shards = [n for n in self._hub.names if n.endswith(".safetensors") and "/" not in n]
        wanted = [chosen, *shards] if chosen.endswith(".index.json") else [chosen]
        return all(
            isinstance(try_to_load_from_cache(self._hub.repo, n, revision=self._hub.commit), str) for n in wanted
        )

    def _weight_map(self, index: str) -> dict[str, str]:
        """Which shard holds which tensor, as the index says."""
        where = f"{self._hub.repo}/{index}"
        raw, size = self._hub.get(index, 0, MAX_INDEX, whole=True)
        if size > MAX_INDEX:
            raise CheckpointError(f"{where} has {size} bytes, which no index has: don't use this model.")
        try:
            weight_map = {str(name): str(shard) for name, shard in json.loads(bytes(raw))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            weight_map = {}
        if not weight_map:
            raise CheckpointError(f"{where} is not an index of weight files: don't use this model.")
        for shard in sorted(set(weight_map.values())):
            if "/" in shard or shard not in self._hub.names or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{where} points to {printable(shard)}, which is not a weight file beside it: don't use this "
                    f"model."
                )
        return weight_map

    def _layout(self, number: int) -> list[TensorInfo]:
        """The tensors of one file, from its header alone, checked as a file's would be."""
        name = self._files[number]
        where = f"{self._hub.repo}/{name}"
        head, size = self._hub.get(name, 0, HEADER_GUESS)
        end = 8 + int.from_bytes(head[:8].tobytes(), "little")
        if end > 8 + MAX_HEADER or end > size:
            raise CheckpointError(
                f"{where} has a header of {end - 8} bytes in a file of {size}, which no model has: don't use this "
                f"model."
            )
        if end > len(head):
            head = np.concatenate([head, self._hub.get(name, len(head), end)[0]])
        self.total_bytes += size
        self._heads.append((number, 0, head))
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as sparse:  # holds the header alone
            try:
                sparse.write(head[:end])
                sparse.truncate(size)
                sparse.flush()
                return read_layout(Path(sparse.name), number)[1]
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(sparse.name, where)) from None
            except (OSError, OverflowError):
                raise CheckpointError(
                    f"{where} is said to have {size} bytes, which fit nowhere here: don't use this model."
                ) from None

    def _range(self, file: int, begin: int, end: int) -> np.ndarray:
        """Bytes of a weight file whose size is known."""
        try:
            found, _ = self._hub.get(self._files[file], begin, end)
        except NotByRanges:
            found = np.empty(0, np.uint8)
        if len(found) != end - begin:
            raise CheckpointError(
                f"{self.source.name} can no longer be read by ranges: have the whole model fetched (--whole)."
            )
        return found


def runs(wanted: Iterable[tuple[int, int, int]], gap: int) -> Iterator[tuple[int, int, int]]:
    """Merges pieces `(file, begin, end)` of files: those that overlap or have at most `gap` bytes between them become
    one, up to a size that memory holds with ease."""
    last: tuple[int, int, int] | None = None
    for file, begin, end in sorted(wanted):
        if last and last[0] == file and begin <= last[2] + gap and max(end, last[2]) - last[1] <= MAX_RUN:
            last = file, last[1], max(end, last[2])
            continue
        if last:
            yield last
        last = file, begin, end
    if last:
        yield last
