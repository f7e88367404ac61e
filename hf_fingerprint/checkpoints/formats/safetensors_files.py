"""The layout of one .safetensors file: where each tensor's bytes lie.

The `safetensors` library checks the file (sizes, offsets, overlaps, truncation); it doesn't tell the offsets, which is
all that is read here: 8 bytes of header length, little-endian, the header in JSON, the data. A suspect's file that the
library refuses for a dtype is checked here in the same way. The library takes headers of 100 MB, which parsing makes
2.4 GB of, so a header is held to its limits before anybody parses it.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.limits import (
    MAX_DIMENSIONS,
    MAX_HEADER,
    MAX_TENSORS,
    check_json_values,
    megabytes,
    parse_json,
)
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


EMPTY = "no elements"
_MAX_CACHED_HEADER = 1 << 20  # bytes of a header whose layout is remembered
_MAX_OFFSET = 1 << 63


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it looks like.

    Attributes:
        name (`str`): its name in the file.
        dtype (`str`): as safetensors calls it, such as `"F32"`.
        shape (`tuple[int, ...]`): its shape.
        file (`int`): which weight file of the checkpoint.
        offset (`int`): where its bytes begin in that file.
        nbytes (`int`): how many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Output channels: the first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one output channel."""
        return self.nbytes // self.rows if self.rows else 0

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.row_bytes // SIZES[self.dtype]


def read_layout(path: Path, file: int = 0, left_out: dict[str, str] | None = None) -> tuple[int, list[TensorInfo]]:
    """The layout of a file, checked.

    Args:
        path (`Path`): a .safetensors file.
        file (`int`, *optional*): the number to record in each [`TensorInfo`].
        left_out (`dict[str, str]`, *optional*): for a suspect: takes the tensors that can't be read, each with a short
            reason, and the others are returned. By default one such tensor refuses the file.

    Returns:
        `(data_start, tensors)`: where the data begin, and the tensors in the order of their bytes.

    Raises:
        [`CheckpointError`]: if the file isn't well-formed.
    """
    refusal: SafetensorError | None = None
    try:
        raw = _read_header(path)
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            if left_out is None:
                raise
            refusal = error
        length = len(raw)
        start = 8 + length
        if refusal is None and left_out is None and length <= _MAX_CACHED_HEADER:
            tensors, unreadable = _cached_layout(raw, file)
        else:
            header = parse_json(raw)
            if refusal is not None and not _has_only_unknown_dtypes(header, path.stat().st_size - start):
                raise refusal
            if left_out is None and len(header) > MAX_TENSORS + 1:
                raise CheckpointError(
                    f"{path} holds {len(header)} tensors, and {MAX_TENSORS} are read: split the model."
                )
            tensors, unreadable = _parse_tensors(header, file, start, empty=left_out is None)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole, well-formed safetensors file ({refusal or error}): get it again."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    if left_out is None and unreadable:
        name, reason = unreadable[0]
        raise CheckpointError(
            f"{path}: tensor {name!r} has {reason}, which this version can't copy: convert it first."
        )
    if left_out is not None:
        left_out.update((printable(name), reason) for name, reason in unreadable)
    return start, list(tensors)


@lru_cache(4)
def _cached_layout(raw: bytes, file: int) -> tuple[list[TensorInfo], list[tuple[str, str]]]:
    """[`_parse_tensors`] of a header that the library has checked: fine-tunes of one model have one header, parsed once."""
    return _parse_tensors(parse_json(raw), file, 8 + len(raw), empty=True)


def _read_header(path: Path) -> bytes:
    """A file's header, which can be parsed at a bounded cost.

    Raises:
        [`CheckpointError`]: if it is too large.
        [`ValueError`]: if it has too many values, or the file ends before.
    """
    length = header_length(path)
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path} has a header of {megabytes(length, round_up=True)} MB, and no model's is larger than "
            f"{megabytes(MAX_HEADER)} MB: get the file again."
        )
    with path.open("rb") as stream:
        stream.seek(8)
        raw = stream.read(length)
    check_json_values(raw)
    return raw


def check_header(content: bytes) -> None:
    """Refuses the bytes of a safetensors file whose header costs too much to parse, before the library parses it.

    Raises:
        [`ValueError`]: if it does.
    """
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:
        raise ValueError("its header is too large")
    check_json_values(content[8 : 8 + length])


def header_length(path: Path) -> int:
    """How many bytes a file's header has.

    Raises:
        [`ValueError`]: if the file ends before.
        [`OSError`]: if it can't be read.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > os.fstat(stream.fileno()).st_size:
            raise ValueError("it ends within its header")
    return length


def total_header_length(paths: Iterable[Path]) -> int:
    """How many bytes the headers of several files have together; none of those that have no whole one."""
    total = 0
    for path in paths:
        with suppress(OSError, ValueError):  # reading its layout says what is wrong with it
            total += header_length(path)
    return total


def largest_tensors(tensors: Iterable[TensorInfo], left_out: dict[str, str]) -> set[str] | None:
    """Which of a suspect's tensors are read where it has more than [`MAX_TENSORS`]: the largest, since those are the
    dearest to hide others behind. `left_out` takes how many are not. `None` for all of them."""
    found = list(tensors)
    if len(found) <= MAX_TENSORS:
        return None
    found.sort(key=lambda info: -info.nbytes)
    left_out["..."] = f"{len(found) - MAX_TENSORS} tensors more than the {MAX_TENSORS} largest, which are read"
    return {info.name for info in found[:MAX_TENSORS]}


def _parse_tensors(
    header: dict[str, Any], file: int, start: int, empty: bool
) -> tuple[list[TensorInfo], list[tuple[str, str]]]:
    """The tensors of a well-formed header, in the order of their bytes, and those that can't be read, with the reason;
    `empty` ones are tensors, or among the latter."""
    tensors, unreadable = [], []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
        if dtype not in SIZES:
            unreadable.append((name, f"dtype {printable(dtype)[:20]}"))
        elif begin == end and not empty:
            unreadable.append((name, EMPTY))
        else:
            tensors.append(TensorInfo(name, dtype, tuple(entry["shape"]), file, start + begin, end - begin))
    return sorted(tensors, key=lambda tensor: tensor.offset), unreadable


def _has_only_unknown_dtypes(header: Any, size: int) -> bool:
    """Whether a header is well-formed for `size` bytes of data but for dtypes that nobody here knows: every byte
    belongs to one tensor, and to as many elements as its shape has."""
    if not isinstance(header, dict):
        return False
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return False
    places, new = [], False
    for name, entry in header.items():
        if not _is_text(name) or not isinstance(entry, dict) or not _is_text(entry.get("dtype")):
            return False
        shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
        if shape is None or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
            return False
        known = SIZES.get(entry["dtype"])
        if known is None:
            new = True
        elif known * prod(shape) != offsets[1] - offsets[0]:
            return False
        places.append(tuple(offsets))
    places.sort()
    ends = [0, *(end for _, end in places)]
    return new and ends[-1] == size and all(begin == end for (begin, _), end in zip(places, ends, strict=False))


def _sizes(value: Any) -> list[int] | None:
    """A list of numbers that may be sizes, or nothing."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return value if all(type(each) is int and 0 <= each < _MAX_OFFSET for each in value) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == value.encode(errors="replace").decode()
