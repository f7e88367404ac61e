"""Constants of Core ML programs, which lie in the program or in a weight file next to it.

A weight file has a header of 64 bytes and then, for each blob, 64 bytes of metadata at a multiple of 64, and its
bytes. A program names the file and where the metadata is.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.computed_tensors import (
    ComputedTensor,
    Rows,
    packed_rows,
    stored_rows,
)
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes


MAX_ROW = 1 << 24  # elements of a row of a computed tensor, which is read as a whole
MAX_FILES = 64  # weight files of one program; a package has one
FLOATS = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16",
          "fp8e4m3fn": "float8_e4m3fn", "fp8e5m2": "float8_e5m2"}  # fmt: skip
_INTEGERS = {"int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8", "bool": "bool"}
_WIDE = {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}  # of which there are no tensors
_PACKED = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}  # bits
_BLOB_TYPES = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 5: "bf16", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1",
    10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32", 16: "fp8e4m3fn", 17: "fp8e5m2",
}  # fmt: skip
_SENTINEL = 0xDEADBEEF
_METADATA = 64  # bytes
_FOLDER = "@model_path/"


@dataclass(frozen=True)
class Constant:
    """A value that a program holds, or computes from such values alone.

    Attributes:
        dtype (`str`): type of its elements in Core ML's words, such as `"fp16"` or `"uint4"`.
        shape (`tuple[int, ...]`): its shape.
        rows ([`Rows`]): its rows: integers as stored, floating-point ones as `float32`.
        raw (`np.ndarray` or `None`): its bytes, if it is stored.
        tensor ([`LazyTensor`]): the tensor with its values.
        place (hashable): what it was made from, which is equal for equal constants, or `None`.
        spread (`bool`): whether it stands for the elements of itself that a mask selects.
        steps (`int`): how many operations it went through.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: Rows
    tensor: LazyTensor
    raw: np.ndarray | None = None
    place: object = None
    spread: bool = False
    steps: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def stored(self) -> str:
        """How its values are stored, such as `"int4"`."""
        return getattr(self.tensor, "stored", self.dtype)


@dataclass(frozen=True)
class Unreadable:
    """A value that can't be read.

    Attributes:
        reason (`str`): why, in a few words.
        dtype (`str`): its type.
        shape (`tuple[int, ...]`): its shape.
    """

    reason: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


def make_constant(dtype: str, shape: tuple[int, ...], raw: np.ndarray, place: object = None) -> Constant:
    """A constant whose elements are contiguous, in row-major order, without gaps from the lowest bit on.

    Args:
        dtype (`str`): type of its elements.
        shape (`tuple[int, ...]`): its shape.
        raw (`np.ndarray`): its bytes, `uint8`; further ones are ignored.
        place (hashable, *optional*): see [`Constant`].

    Raises:
        [`InvalidFileError`]: if it has another size, or an unknown type.
    """
    if as_sizes(shape) is None:
        raise InvalidFileError("an invalid shape")
    if dtype in FLOATS or dtype in _INTEGERS:
        tensor = dense_tensor(raw, FLOATS.get(dtype) or _INTEGERS[dtype], shape)
        if (reason := tensor.unreadable_reason()) is not None:
            raise InvalidFileError(reason)
        rows = _booleans(tensor) if dtype == "bool" else stored_rows(tensor)
        return Constant(dtype, shape, rows, tensor, raw, place)
    if dtype in _PACKED:
        rows = packed_rows(raw, _PACKED[dtype], shape or (1,), signed=dtype == "int4")
    elif dtype in _WIDE:
        rows = _wide_rows(raw, np.dtype(_WIDE[dtype]), shape or (1,))
    else:
        raise InvalidFileError(f"dtype {dtype[:20]}")
    return computed(dtype, shape, rows, dtype, raw=raw, place=place)


def computed(
    dtype: str, shape: tuple[int, ...], rows: Rows, stored: str, raw: np.ndarray | None = None, place: object = None,
    spread: bool = False,
) -> Constant:  # fmt: skip
    """A constant with computed rows; the arguments are attributes of [`Constant`] and [`ComputedTensor`].

    Raises:
        [`InvalidFileError`]: if a row is too long to be computed as a whole.
    """
    if prod(shape[1:]) > MAX_ROW:
        raise InvalidFileError("too large a row")

    def values(start: int, stop: int) -> np.ndarray:
        return rows(start, stop).astype(np.float32, copy=False)

    return Constant(dtype, shape, rows, ComputedTensor(values, shape, stored), raw, place, spread)


def _booleans(tensor: LazyTensor) -> Rows:
    """The rows of a tensor of truth values, as 0 and 1."""
    row = tensor.nbytes // max(tensor.shape[0], 1) if tensor.shape else 1
    shape = tensor.shape or (1,)
    return lambda start, stop: tensor.read(start * row, stop * row).reshape(stop - start, *shape[1:])


def _wide_rows(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> Rows:
    """The rows of a tensor of a type that PyTorch's files don't have."""
    if prod(shape) * dtype.itemsize > raw.nbytes:
        raise InvalidFileError("too few bytes for its shape")
    row = prod(shape[1:]) * dtype.itemsize

    def rows(start: int, stop: int) -> np.ndarray:
        return raw[start * row : stop * row].view(dtype).reshape(stop - start, *shape[1:])

    return rows


class WeightFiles:
    """The weight files of a program.

    Args:
        container (`Path`): the program's file, out of whose folder no path leads.

    Attributes:
        found (`dict[str, Path]`): the files that were opened.
    """

    def __init__(self, container: Path):
        self.found: dict[str, Path] = {}
        self._container = container
        self._data: dict[str, np.ndarray | str] = {}

    def constant(self, name: str, offset: int, dtype: str, shape: tuple[int, ...]) -> Constant:
        """The constant whose metadata is at a place in a file.

        Args:
            name (`str`): the file as the program names it, such as `"@model_path/weights/weight.bin"`.
            offset (`int`): where the metadata begins.
            dtype (`str`): type of its elements, as the program says.
            shape (`tuple[int, ...]`): its shape, as the program says.

        Raises:
            [`InvalidFileError`]: if it is not there, or has another type.
        """
        data = self._open(name)
        head = slice_bytes(data, offset, _METADATA)
        sentinel, kind = (int(each) for each in head[:8].view("<u4"))
        size, start = (int(each) for each in head[8:24].view("<u8"))
        if sentinel != _SENTINEL:
            raise InvalidFileError("no weights at its place in the weight file")
        stored = _BLOB_TYPES.get(kind, "")
        if stored != dtype and not (stored in ("uint8", "int8") and dtype == "bool"):
            raise InvalidFileError(f"dtype {dtype[:20]}, and another one in the weight file")
        return make_constant(dtype, shape, slice_bytes(data, start, size), (name, offset, dtype, shape))

    def _open(self, name: str) -> np.ndarray:
        if name not in self._data:
            if len(self._data) >= MAX_FILES:
                raise InvalidFileError(f"more than {MAX_FILES} weight files")
            try:
                self.found[name] = find_companion(self._container, PurePosixPath(name.removeprefix(_FOLDER)))
                self._data[name] = map_file(self.found[name])
            except (InvalidFileError, OSError) as error:
                self.found.pop(name, None)
                self._data[name] = str(error) if isinstance(error, InvalidFileError) else "no readable weight file"
        data = self._data[name]
        if isinstance(data, str):
            raise InvalidFileError(data)
        return data
