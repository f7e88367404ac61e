"""Read NumPy's `.npy` and `.npz` files, as MLX, JAX and Google's Vision Transformers have them, without pickle.

An array is a view of the mapped file; one in a compressed member is unpacked as it is read.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, element_bytes
from hf_fingerprint.checkpoints.formats.unpacked_tensors import UnpackedTensor
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC, PackedMember, ZipMembers, names_if_zip
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MB


_SUFFIX = ".npy"
_LARGEST_HEADER = 512  # bytes; the header of an array of numbers has 118, and a zip has 40,000 of them
_HEAD = _LARGEST_HEADER + 12
_NAMES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8", "b1": "bool", "c8": "complex64", "V2": "bfloat16",
}  # fmt: skip
_MAGIC = b"\x93NUMPY"
_ITEM = r"""["'](descr|fortran_order|shape)["']\s*:\s*("[^"']*"|'[^"']*'|\[[^\]]*\]|True|False|\([\d\s,]*\))"""
_HEADER = re.compile(rf"\s*\{{\s*(?:{_ITEM}\s*(?:,\s*|(?=\}})))*\}}\s*")


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
    """The header at the beginning of `size` bytes. NumPy would evaluate it as Python, which takes long if hostile."""
    raw = head.tobytes()
    wide = 2 if raw[6:7] == b"\x01" else 4
    start = 8 + wide + int.from_bytes(raw[8 : 8 + wide], "little")
    text = raw[8 + wide : start].decode("latin-1")
    if not raw.startswith(_MAGIC) or start > len(raw) or not _HEADER.fullmatch(text):
        raise InvalidFileError("an unsupported header")
    found = dict(re.findall(_ITEM, text))
    if found.keys() != {"descr", "fortran_order", "shape"} or not found["shape"].startswith("("):
        raise InvalidFileError("an unsupported header")
    sizes = as_sizes([int(each) for each in re.findall(r"\d{1,19}", found["shape"])])
    descr = found["descr"].strip("\"'")
    order, kind = descr[:1], descr[1:]
    if sizes is None:
        raise InvalidFileError("an invalid shape")
    if kind.startswith("O"):
        raise InvalidFileError("a pickled array")
    if order == ">":
        raise InvalidFileError("of a machine with the other order of bytes")
    if kind not in _NAMES:
        raise InvalidFileError(f"dtype {descr[:20]}")
    if prod(sizes) * element_bytes(_NAMES[kind]) > size - start:
        raise InvalidFileError("larger than its file")
    return _Header(sizes, found["fortran_order"] == "True", _NAMES[kind], start)


def _matches(head: bytes, path: Path) -> bool:
    if head.startswith(_MAGIC):
        return True
    names = names_if_zip(head, path)
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


FORMAT = Format("NumPy", (".npz", _SUFFIX), _matches, load_numpy)
