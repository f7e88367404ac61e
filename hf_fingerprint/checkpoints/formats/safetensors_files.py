"""Read the layout of a .safetensors file: the offset of each tensor.

The `safetensors` library checks the file but doesn't expose the offsets, so this module parses the header itself: 8
bytes with its length, little-endian, then JSON. If the library rejects a suspect's file for an unknown dtype, this
module repeats its other checks. Limits come first: the library's 100 MB of header take 2.4 GB once parsed.
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

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.limits import check_json_values, megabytes, parse_json
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


EMPTY = "no elements"
_MAX_CACHED_HEADER = 1 << 20  # bytes of a header whose layout is cached
_MAX_OFFSET = 1 << 63


@dataclass(frozen=True)
class TensorInfo:
    """Location, dtype and shape of a tensor.

    Attributes:
        name (`str`): name in the file.
        dtype (`str`): safetensors dtype, such as `"F32"`.
        shape (`tuple[int, ...]`): its shape.
        file (`int`): index of the weight file in the checkpoint.
        offset (`int`): offset of its bytes in that file.
        nbytes (`int`): size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Number of output channels: the first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one output channel."""
        return self.nbytes // self.rows if self.rows else 0

    @property
    def columns(self) -> int:
        """Number of weights of one output channel."""
        return self.row_bytes // SIZES[self.dtype]


def read_layout(path: Path, file: int = 0, left_out: dict[str, str] | None = None) -> tuple[int, list[TensorInfo]]:
    """The checked layout of a file.

    Args:
        path (`Path`): a .safetensors file.
        file (`int`, *optional*, defaults to 0): index to record in each [`TensorInfo`].
        left_out (`dict[str, str]`, *optional*): for a suspect, receives the unreadable tensors, each with a short
            reason. By default, one such tensor is an error.

    Returns:
        `(data_start, tensors)`: offset of the data, and the tensors ordered by offset.

    Raises:
        [`CheckpointError`]: if the file is malformed.
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
        start = 8 + len(raw)
        if refusal is None and left_out is None and len(raw) <= _MAX_CACHED_HEADER:
            tensors, unreadable = _cached_layout(raw, file)
        else:
            header = parse_json(raw)
            if refusal is not None and not _has_only_unknown_dtypes(header, path.stat().st_size - start):
                raise refusal
            if left_out is None and len(header) > limits.MAX_TENSORS + 1:
                raise CheckpointError(
                    f"{path} holds {len(header)} tensors, and the limit is {limits.MAX_TENSORS}: split the model."
                )
            tensors, unreadable = _parse_tensors(header, file, start, empty=left_out is None)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a complete, well-formed safetensors file ({refusal or error}): download it again."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    if left_out is None and unreadable:
        name, reason = unreadable[0]
        raise CheckpointError(f"{path}: tensor {name!r} has {reason}, which can't be copied: convert it first.")
    if left_out is not None:
        left_out.update((printable(name), reason) for name, reason in unreadable)
    return start, list(tensors)


@lru_cache(4)
def _cached_layout(raw: bytes, file: int) -> tuple[list[TensorInfo], list[tuple[str, str]]]:
    """[`_parse_tensors`] of a header that the library has checked, cached since fine-tunes of a model share it."""
    return _parse_tensors(parse_json(raw), file, 8 + len(raw), empty=True)


def _read_header(path: Path) -> bytes:
    """A file's header, within the limits for parsing it; `ValueError` if it has too many values or is truncated."""
    length = header_size(path)
    if length > limits.MAX_HEADER:
        raise CheckpointError(
            f"{path} has a header of {megabytes(length, round_up=True)} MB, and the limit is "
            f"{megabytes(limits.MAX_HEADER)} MB: download the file again."
        )
    with path.open("rb") as stream:
        stream.seek(8)
        raw = stream.read(length)
    check_json_values(raw)
    return raw


def check_header(content: bytes) -> None:
    """Checks, before the library parses it, that the header of a safetensors file is within its limits.

    Raises:
        [`ValueError`]: if it is not.
    """
    if (length := int.from_bytes(content[:8], "little")) > limits.MAX_HEADER:
        raise ValueError("its header is too large")
    check_json_values(content[8 : 8 + length])


def header_size(path: Path) -> int:
    """Size of a file's header in bytes.

    Raises:
        [`ValueError`]: if the file is truncated.
        [`OSError`]: if it can't be read.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > os.fstat(stream.fileno()).st_size:
            raise ValueError("it ends within its header")
    return length


def headers_size(paths: Iterable[Path]) -> int:
    """Total size of the headers of several files in bytes. Damaged files count as 0."""
    total = 0
    for path in paths:
        with suppress(OSError, ValueError):  # read_layout reports the damage
            total += header_size(path)
    return total


def largest_tensors(tensors: Iterable[TensorInfo], left_out: dict[str, str]) -> set[str] | None:
    """Names of the [`MAX_TENSORS`] largest tensors of a suspect, or `None` if it has no more than that.

    Filler tensors that displace the largest cost the most. `left_out` receives the number of the others.
    """
    found = sorted(tensors, key=lambda info: -info.nbytes)
    if len(found) <= limits.MAX_TENSORS:
        return None
    left_out["..."] = f"{len(found) - limits.MAX_TENSORS} tensors beyond the {limits.MAX_TENSORS} largest"
    return {info.name for info in found[: limits.MAX_TENSORS]}


def _parse_tensors(
    header: dict[str, Any], file: int, start: int, empty: bool
) -> tuple[list[TensorInfo], list[tuple[str, str]]]:
    """The readable tensors of a well-formed header, ordered by offset, and the unreadable ones with the reason.

    With `empty`, tensors without elements are readable."""
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
    """Whether unknown dtypes are all that is wrong with a header for `size` bytes of data, which tensors must tile."""
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
    """The value if it is a list of possible sizes, else `None`."""
    if not isinstance(value, list) or len(value) > limits.MAX_DIMENSIONS:
        return None
    return value if all(type(each) is int and 0 <= each < _MAX_OFFSET for each in value) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == value.encode(errors="replace").decode()
