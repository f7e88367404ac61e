"""Read a model on the Hub by byte ranges: the headers first, then only the requested tensors.

```python
with open_ranged_checkpoint("org/name") as checkpoint:  # None: download it instead
    checkpoint.fetch([(info, start, stop)])  # one request for adjacent pieces
    checkpoint.read(info, start, stop)       # as from a file
```
"""

import errno
import posixpath
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.choosing import choose_weights, indexed_weights, possible_shards
from hf_fingerprint.checkpoints.folders import disk_full_error
from hf_fingerprint.checkpoints.formats.pytorch.nesting import unique_name
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo, largest_tensors, read_layout
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions, locate
from hf_fingerprint.checkpoints.limits import megabytes, parse_json
from hf_fingerprint.checkpoints.naming import HubId, exists, format_model_name, parse_hub_id
from hf_fingerprint.checkpoints.ranged_files import DownloadLimitError, RangedFiles, RangesUnavailable
from hf_fingerprint.checkpoints.source import Source
from hf_fingerprint.checkpoints.tensor_names import is_adapter
from hf_fingerprint.checkpoints.weight_files import choose_safetensors, is_safetensors, may_hold_model
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


HEADER_GUESS = 1 << 17
GAP, GAP_SHARE = 1 << 16, 256  # a gap of so many bytes, or so small a share of the model, costs less than a request


class TensorReader(Protocol):
    """Interface of [`Checkpoint`] and [`RangedCheckpoint`] for code that reads a suspect."""

    source: Source
    tensors: dict[str, TensorInfo]

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, into `out` if it is given."""


class UnreadFile(NamedTuple):
    """A weight file in the repo that is not read.

    Attributes:
        name (`str`): path in the repo; may be hostile.
        size (`int` or `None`): size in bytes, `None` if unknown.
    """

    name: str
    size: int | None


def open_ranged_checkpoint(
    name: str | Path, max_bytes: int | None = None, file: str | None = None, options: HubOptions = NO_OPTIONS
) -> "RangedCheckpoint | None":
    """Opens a model on the Hub for reading by ranges.

    Args:
        name (`str` or `Path`): a model name as for [`resolve`].
        max_bytes (`int`, *optional*): maximum number of bytes to fetch, headers and indexes included.
        file (`str`, *optional*): the only file of the repo to read.
        options ([`HubOptions`], *optional*): where in the repo, and how to reach it.

    Returns:
        [`RangedCheckpoint`], or `None` if the model has to be read with [`find_weight_sets`]: it is a local path or in
        the cache, has no readable safetensors weights, or the Hub can't be reached or doesn't serve ranges.

    Raises:
        [`CheckpointError`]: if there is no such model, it is not accessible to this account, or it is malformed.
        [`DownloadLimitError`]: if its headers alone exceed `max_bytes`.
    """
    text = str(format_model_name(name, file))
    if parse_hub_id(text) is None or (not text.startswith("hf-hub:") and exists(Path(str(name)))):
        return None
    location = locate(name, file, options)
    try:
        return RangedCheckpoint(location, max_bytes, options.access) if isinstance(location, HubId) else None
    except RangesUnavailable:
        return None


class RangedCheckpoint:
    """A suspect on the Hub, pinned to a commit. Open it with [`open_ranged_checkpoint`].

    Attributes:
        source ([`Source`]): its current name on the Hub and its commit.
        tensors (`dict[str, TensorInfo]`): all tensors, ordered by file and by offset.
        left_out (`dict[str, str]`): unreadable tensors, each with a short reason.
        unread_files (`tuple[UnreadFile, ...]`): weight files of the repo that are not read.
        total_bytes (`int`): size of all weight files that are read.
        max_bytes (`int` or `None`): maximum number of bytes to fetch.
    """

    def __init__(self, hub_id: HubId, max_bytes: int | None = None, access: HubOptions = NO_OPTIONS):
        self.max_bytes = max_bytes
        self.tensors: dict[str, TensorInfo] = {}
        self.left_out: dict[str, str] = {}
        self.total_bytes = self._headers = 0
        self._header_bytes: list[tuple[int, int, np.ndarray]] = []
        self._fetched: list[tuple[int, int, np.ndarray]] = []
        self._hub = hub = RangedFiles(hub_id, max_bytes, access)
        if hub_id.variant is not None:
            top = [name for name in hub.names if "/" not in name]
            hub_id = hub_id._replace(file=choose_weights(top, hub_id.name, hub_id.variant))
        self._cache_dir = access.cache_dir
        chosen = hub_id.file or choose_safetensors(hub.sizes, hub_id.name)
        if chosen is None or not is_safetensors(chosen) or chosen not in hub.sizes or self._is_cached(chosen):
            raise RangesUnavailable
        try:
            self._read_headers(chosen)
        except DownloadLimitError:
            raise
        except CheckpointError:
            if any(may_hold_model(name) and name != chosen for name in hub.names):  # another file may be the model
                raise RangesUnavailable from None
            raise
        if is_adapter(self.tensors):
            raise RangesUnavailable
        name, files = hub_id._replace(repo=hub.hub_id.repo).name, tuple(map(Path, self._files))
        self.source = Source(name, Path(), files, None, hub.commit, owns_folder=False, access=access)
        read = set(self._files if hub_id.file is None else hub.names)
        others = [name for name in hub.names if may_hold_model(name) and name not in read]
        self.unread_files = tuple(UnreadFile(name, hub.sizes[name]) for name in others)

    def __enter__(self) -> "RangedCheckpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.drop()

    @property
    def bytes_fetched(self) -> int:
        """File bytes received so far."""
        return self._hub.bytes_fetched

    @property
    def requests(self) -> int:
        """HTTP exchanges so far, redirects included."""
        return self._hub.requests

    def fetch(self, pieces: Iterable[tuple[TensorInfo, int, int]]) -> None:
        """Fetches pieces of tensors and keeps them for [`read`]. Adjacent pieces of a file share a request.

        Args:
            pieces (iterable of `(info, start, stop)`): bytes `start` to `stop` of each tensor.

        Raises:
            [`CheckpointError`]: if they can't be fetched.
        """
        wanted = [
            (info.file, info.offset + start, info.offset + stop)
            for info, start, stop in pieces
            if self._find(info.file, info.offset + start, info.offset + stop) is None
        ]
        gap = min(GAP, self.total_bytes // GAP_SHARE) if self.max_bytes is None else 0
        for file, begin, end in merge_ranges(wanted, gap):
            self._fetched.append((file, begin, self._fetch_range(file, begin, end)))

    def drop(self) -> None:
        """Releases what [`fetch`] kept."""
        self._fetched = []

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, from what was fetched or by a new request.

        With `out`, which must be large enough, the result is a view of it.
        """
        begin, end = info.offset + start, info.offset + (info.nbytes if stop is None else stop)
        if (found := self._find(info.file, begin, end)) is None:
            found = self._fetch_range(info.file, begin, end)
        if out is None:
            return found
        out[: len(found)] = found
        return out[: len(found)]

    def _find(self, file: int, begin: int, end: int) -> np.ndarray | None:
        for kept, start, data in (*self._header_bytes, *self._fetched):
            if kept == file and start <= begin and end <= start + len(data):
                return data[begin - start : end - start]
        return None

    def _read_headers(self, chosen: str) -> None:
        """Lists the tensors from the header of the chosen file, or of all files that the chosen index names."""
        weight_map = self._weight_map(chosen) if indexed_weights(chosen) else {}
        self._files = sorted(set(weight_map.values())) or [chosen]
        taken: dict[str, int] = {}
        for number in range(len(self._files)):
            for info in self._read_layout(number):
                name = unique_name(info.name[: limits.MAX_NAME], taken)
                info = info if name == info.name else replace(info, name=name)
                self.tensors[info.name] = info
        if (largest := largest_tensors(self.tensors.values(), self.left_out)) is not None:
            self.tensors = {name: info for name, info in self.tensors.items() if name in largest}
        for name, shard in weight_map.items():
            if name not in self.tensors:
                self.left_out.setdefault(printable(name), f"not in {printable(shard)}")

    def _is_cached(self, chosen: str) -> bool:
        """Whether all weight files of this commit are in the local cache."""
        from huggingface_hub import try_to_load_from_cache

        hub = self._hub
        wanted = [chosen, *(possible_shards(chosen, hub.names) if indexed_weights(chosen) else ())]
        cached = (
            try_to_load_from_cache(hub.hub_id.repo, hub.hub_id.path_in_repo(name), self._cache_dir, hub.commit)
            for name in wanted
        )
        return all(isinstance(path, str) for path in cached)

    def _path(self, name: str) -> str:
        """A file's path on the Hub, for errors."""
        return f"{self._hub.hub_id.repo}/{self._hub.hub_id.path_in_repo(name)}"

    def _weight_map(self, index: str) -> dict[str, str]:
        """Maps each tensor name in an index to its shard."""
        where, size = self._path(index), self._hub.sizes[index]
        if size is None or size <= limits.MAX_INDEX:
            raw, size = self._hub.get(index, 0, limits.MAX_INDEX, whole=True)
        if size > limits.MAX_INDEX:
            raise CheckpointError(f"{where} has {size} bytes, too many for an index: don't use this model.")
        try:
            weight_map = {str(name): str(shard) for name, shard in parse_json(bytes(raw))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            weight_map = {}
        if not weight_map:
            raise CheckpointError(f"{where} is not an index of weight files: don't use this model.")
        folder, there = posixpath.dirname(index), set(self._hub.names)
        shards = sorted(set(weight_map.values()))
        if len(shards) > limits.MAX_SHARDS:
            most = f"no model has more than {limits.MAX_SHARDS}"
            raise CheckpointError(f"{where} names {len(shards)} weight files, and {most}: don't use this model.")
        for shard in shards:
            if "/" in shard or not shard.endswith(".safetensors") or posixpath.join(folder, shard) not in there:
                shown = printable(shard)
                raise CheckpointError(f"{where} points to {shown}, which is no weight file next to it: don't use it.")
        return {name: posixpath.join(folder, shard) for name, shard in weight_map.items()}

    def _read_layout(self, number: int) -> list[TensorInfo]:
        """The tensors of one file, from its header alone, with the checks of [`read_layout`]."""
        name, guess = self._files[number], HEADER_GUESS
        where = self._path(name)
        if self.max_bytes is not None:  # the guess must not use up the limit
            guess = min(HEADER_GUESS, max(8, (self.max_bytes - self.bytes_fetched) // 4))
        head, size = self._hub.get(name, 0, guess)
        end = 8 + int.from_bytes(head[:8].tobytes(), "little")
        if end > 8 + limits.MAX_HEADER or end > size:
            raise CheckpointError(
                f"{where} has an impossible header of {end - 8} bytes in a file of {size}: don't use this model."
            )
        self._headers += end
        if self._headers > limits.MAX_HEADERS:
            raise CheckpointError(
                f"{self._hub.hub_id.repo} has weight files whose headers take more than "
                f"{megabytes(limits.MAX_HEADERS)} MB together: don't use this model."
            )
        if end > len(head):
            head = np.concatenate([head, self._hub.get(name, len(head), end)[0]])
        self.total_bytes += size
        self._header_bytes.append((number, 0, head))
        try:
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as sparse:  # only its header takes disk space
                try:
                    sparse.write(head[:end])
                    sparse.truncate(size)
                    sparse.flush()
                    return read_layout(Path(sparse.name), number, self.left_out)[1]
                except CheckpointError as error:
                    raise CheckpointError(str(error).replace(sparse.name, where)) from None
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # not EFBIG: the size itself is wrong
                raise disk_full_error(Path(tempfile.gettempdir())) from None
            raise CheckpointError(
                f"{where} claims a size of {size} bytes, more than any disk here holds: don't use this model."
            ) from None

    def _fetch_range(self, file: int, begin: int, end: int) -> np.ndarray:
        """Bytes `begin` to `end` of a weight file."""
        try:
            found, _ = self._hub.get(self._files[file], begin, end)
        except RangesUnavailable:
            found = np.empty(0, np.uint8)
        if len(found) != end - begin:
            where = self.source.name
            raise CheckpointError(f"{where} can no longer be read by ranges: download the full model with --full.")
        return found


def merge_ranges(wanted: Iterable[tuple[int, int, int]], gap: int) -> Iterator[tuple[int, int, int]]:
    """Merges pieces `(file, begin, end)` that overlap or lie at most `gap` bytes apart.

    A merged piece has at most [`MAX_RANGE_BYTES`] bytes.
    """
    last: tuple[int, int, int] | None = None
    for file, begin, end in sorted(wanted):
        near = last is not None and last[0] == file and begin <= last[2] + gap
        if last and near and max(end, last[2]) - last[1] <= limits.MAX_RANGE_BYTES:
            last = file, last[1], max(end, last[2])
            continue
        if last:
            yield last
        last = file, begin, end
    if last:
        yield last
