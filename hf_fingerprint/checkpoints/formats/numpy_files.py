"""Read NumPy's `.npy` and `.npz` files, as MLX, JAX and Google's Vision Transformers have them, without pickle.

An array is a view of the mapped file; one in a compressed member is unpacked as it is read.
"""

import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, element_bytes
from hf_fingerprint.checkpoints.formats.unpacked_tensors import UnpackedTensor
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC, PackedMember, ZipMembers, list_members
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MB


_SUFFIX = ".npy"
_LARGEST_HEADER = 4_096  # bytes; the header of an array of numbers has 118
_HEAD = _LARGEST_HEADER + 12
_NAMES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8", "b1": "bool", "c8": "complex64", "V2": "bfloat16",
}  # fmt: skip
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Header(NamedTuple):
    """What an array's header says, and where its values begin."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: str
    start: int

    def view(self, content: np.ndarray) -> LazyTensor:
        """The array in the bytes of its file."""
        strides, count = [], 1
        for each in self.shape if self.columns_first else self.shape[::-1]:
            strides.append(count)
            count *= each
        strides = strides if self.columns_first else strides[::-1]
        storage = Storage("file", self.dtype, count, data=content[self.start :])
        return LazyTensor(self.dtype, self.shape, tuple(strides), 0, storage)


def load_numpy(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The arrays of a file, under the names of its members, or under its own.

    Args:
        path (`Path`): a `.npy` or `.npz` file.
        left_out (`dict[str, str]`): receives the unreadable arrays, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged.
        [`OSError`]: if it can't be opened.
    """
    data = map_file(path)
    if data[:4].tobytes() != ZIP_MAGIC:
        header = _read_header(data[:_HEAD], len(data))
        return FoundTensors([(path.stem, header.view(data))], "NumPy")
    with path.open("rb", buffering=0) as stream:
        members = ZipMembers(stream, data)
    unpack = lru_cache(1)(_unpack_columns)  # of the arrays that are unpacked as a whole, one is kept
    tensors = []
    for member in members:
        name = member.removesuffix(_SUFFIX)
        if name == member:
            continue
        try:
            tensors.append((name, _find_array(members.open(member), unpack)))
        except InvalidFileError as error:
            left_out[name] = str(error)
    return FoundTensors(tensors, "NumPy")


def _find_array(content: np.ndarray | PackedMember | None, unpack: Callable[..., LazyTensor]) -> LazyTensor:
    """The array in a member of a zip."""
    assert content is not None
    if not isinstance(content, PackedMember):
        return _read_header(content[:_HEAD], len(content)).view(content)
    header = _read_header(content.read(0, min(content.size, _HEAD)), content.size)
    if not header.columns_first or len(header.shape) < 2:
        start = header.start
        return UnpackedTensor(header.dtype, header.shape, lambda first, end: content.read(start + first, start + end))
    if content.size > MAX_EXPANSION:
        raise InvalidFileError(f"larger than {MAX_EXPANSION // MB} MB, compressed in column-major order")
    return UnpackedTensor(header.dtype, header.shape, lambda first, end: unpack(content, header).read(first, end))


def _unpack_columns(content: PackedMember, header: _Header) -> LazyTensor:
    return header.view(content.read(0, content.size))


def _read_header(head: np.ndarray, size: int) -> _Header:
    """The header at the beginning of `size` bytes."""
    stream = io.BytesIO(head.tobytes())
    try:
        with warnings.catch_warnings(action="ignore"):
            version = npy.read_magic(stream)
            shape, columns_first, dtype = _READERS[version](stream, _LARGEST_HEADER)
    except Exception:  # NumPy evaluates a hostile literal of 4 kB: errors of Python's parser, of sizes and of dtypes
        raise InvalidFileError("an unsupported header") from None
    sizes = as_sizes(shape)
    if sizes is None:
        raise InvalidFileError("an invalid shape")
    if dtype.hasobject:
        raise InvalidFileError("a pickled array")
    if dtype.byteorder == ">":
        raise InvalidFileError("of a machine with the other order of bytes")
    named = _NAMES.get(f"{dtype.kind}{dtype.itemsize}") if dtype.fields is None and dtype.subdtype is None else None
    if named is None:
        raise InvalidFileError(f"dtype {str(dtype)[:20]}")
    if prod(sizes) * element_bytes(named) > size - stream.tell():
        raise InvalidFileError("larger than its file")
    return _Header(sizes, bool(columns_first), named, stream.tell())


def _matches(head: bytes, path: Path) -> bool:
    if head.startswith(npy.MAGIC_PREFIX):
        return True
    if not head.startswith(ZIP_MAGIC):
        return False
    try:
        names = list_members(path)
    except (InvalidFileError, OSError):
        return False
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


FORMAT = Format("NumPy", (".npz", _SUFFIX), _matches, load_numpy)
