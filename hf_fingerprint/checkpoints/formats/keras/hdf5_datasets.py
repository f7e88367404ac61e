"""The data sets of an HDF5 file as tensors: views of the file, or chunks that are unpacked as they are read."""

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.keras.hdf5_bytes import NOWHERE
from hf_fingerprint.checkpoints.formats.keras.hdf5_objects import Hdf5File, HeaderMessage
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED, dense_tensor
from hf_fingerprint.checkpoints.formats.torch_tensors import NO_DATA, LazyTensor, as_sizes, element_bytes
from hf_fingerprint.checkpoints.formats.unpacked_tensors import UnpackedTensor
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MAX_ZIP_RATIO, MB


_DATASPACE, _DATATYPE, _OTHER_FILES, _LAYOUT, _FILTERS = 0x01, 0x03, 0x07, 0x08, 0x0B
_INTEGER, _FLOAT, _OPAQUE, _ENUM = 0, 1, 5, 8
_COMPACT, _CONTIGUOUS, _CHUNKED = 0, 1, 2
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
_MAX_CHUNKS = 100_000  # of one file: a model has one a megabyte
_MAX_BAND = 128 * MB  # bytes of the chunks that lie side by side, which are unpacked at once
_UNSUPPORTED = "a layout that is not supported: save it with h5py's defaults"
_FLOATS = {  # size, and place and size of the exponent and of the mantissa
    (8, 52, 11, 0, 52): "float64", (4, 23, 8, 0, 23): "float32", (2, 10, 5, 0, 10): "float16",
    (2, 7, 8, 0, 7): "bfloat16", (1, 3, 4, 0, 3): "float8_e4m3fn", (1, 2, 5, 0, 2): "float8_e5m2",
}  # fmt: skip


class Hdf5Datasets:
    """Makes tensors of the data sets of a file.

    Args:
        file ([`Hdf5File`]): the file.
    """

    def __init__(self, file: Hdf5File):
        self._file = file
        self._unpack_budget = len(file) * MAX_ZIP_RATIO + MAX_EXPANSION
        self._chunks_left = _MAX_CHUNKS
        self._unpack = lru_cache(1)(_Chunks.unpack)  # of the bands of all data sets, one is kept

    def find_tensor(self, messages: list[HeaderMessage]) -> LazyTensor | None:
        """The tensor that an object's messages describe, or `None` if it is no data set.

        Raises:
            [`InvalidFileError`]: with the reason, if it can't be read.
        """
        found = {message.kind: message for message in reversed(messages)}
        if not {_DATASPACE, _DATATYPE, _LAYOUT} <= found.keys():
            return None
        if any(found[kind].shared for kind in (_DATASPACE, _DATATYPE, _LAYOUT)):
            raise InvalidFileError("a description that is shared")
        try:
            shape = _parse_shape(found[_DATASPACE].body)
            dtype = _parse_dtype(found[_DATATYPE].body)
            return self._find_values(shape, dtype, found)
        except (struct.error, IndexError):
            raise InvalidFileError(TRUNCATED) from None

    def _find_values(self, shape: tuple[int, ...], dtype: str, found: dict[int, HeaderMessage]) -> LazyTensor:
        if _OTHER_FILES in found:
            raise InvalidFileError("in another file")
        body = found[_LAYOUT].body
        version, kind = body[0], body[1]
        if version not in (3, 4):
            raise InvalidFileError(_UNSUPPORTED)
        nbytes = prod(shape) * element_bytes(dtype)
        if not nbytes:
            return dense_tensor(np.empty(0, np.uint8), dtype, shape)
        if kind == _COMPACT:
            (size,) = struct.unpack_from("<H", body, 2)
            raw = np.frombuffer(body[4 : 4 + size], np.uint8)
        elif kind == _CONTIGUOUS:
            address, size = struct.unpack_from("<QQ", body, 2)
            if address == NOWHERE:
                raise InvalidFileError(NO_DATA)
            raw = self._file.view(address, size)
        elif kind == _CHUNKED and version == 3:
            filters = _parse_filters(found[_FILTERS].body) if _FILTERS in found else []
            return self._find_chunks(shape, dtype, body, filters)
        else:
            raise InvalidFileError(_UNSUPPORTED)
        if len(raw) < nbytes:
            raise InvalidFileError("larger than its storage")
        return dense_tensor(raw, dtype, shape)

    def _find_chunks(self, shape: tuple[int, ...], dtype: str, body: memoryview, filters: list[int]) -> LazyTensor:
        rank = body[2] - 1
        tree, *sizes = struct.unpack_from(f"<Q{rank + 1}I", body, 3)
        if rank != len(shape) or not all(sizes) or sizes[-1] != element_bytes(dtype):
            raise InvalidFileError(TRUNCATED)
        chunks = _Chunks(self._file, shape, tuple(sizes), filters)
        count = prod(chunks.counts)
        unpacked = count * chunks.chunk_bytes
        if unpacked > self._unpack_budget:
            raise InvalidFileError("chunks that unpack to many times the size of the file")
        if count > self._chunks_left:
            raise InvalidFileError(f"more than {_MAX_CHUNKS:,} chunks: save it without chunks")
        if max(chunks.band_bytes, chunks.chunk_bytes) > _MAX_BAND:
            raise InvalidFileError(f"chunks of more than {_MAX_BAND // MB} MB")
        self._unpack_budget -= unpacked
        self._chunks_left -= count
        chunks.find(tree)
        return UnpackedTensor(dtype, shape, lambda start, stop: chunks.read(start, stop, self._unpack))


class _Place(NamedTuple):
    """Where a chunk lies in the file, and which filters were not applied to it."""

    address: int
    size: int
    unfiltered: int


class _Chunks:
    """The chunks of a data set, whose grid covers its shape. A band is all chunks of some rows."""

    def __init__(self, file: Hdf5File, shape: tuple[int, ...], sizes: tuple[int, ...], filters: list[int]):
        self._file, self._shape, self._sizes, self._filters = file, shape, sizes[:-1], filters
        self._element = sizes[-1]
        self.counts = [-(-whole // size) for whole, size in zip(shape, self._sizes, strict=True)]
        self.chunk_bytes = prod(sizes)
        self._row_bytes = prod(shape[1:]) * self._element
        self.band_bytes = min(self._sizes[0], shape[0]) * self._row_bytes
        self._places: dict[tuple[int, ...], _Place] = {}

    def find(self, tree: int) -> None:
        """Finds all chunks in the file."""
        rank = len(self._shape)
        for key, address in self._file.leaves(tree, 1, 16 + 8 * rank):
            size, unfiltered, *offsets = struct.unpack(f"<II{rank + 1}Q", key)
            where = tuple(offset // each for offset, each in zip(offsets, self._sizes, strict=False))
            self._file.view(address, size)
            self._places[where] = _Place(address, size, unfiltered)
        if len(self._places) < prod(self.counts):
            raise InvalidFileError("in part never written")

    def read(self, start: int, stop: int, unpack: "Callable[[_Chunks, int], np.ndarray]") -> np.ndarray:
        """Bytes `start` to `stop` of the data set in row-major order."""
        first = start // self.band_bytes
        edges = [start, *range((first + 1) * self.band_bytes, stop, self.band_bytes), stop]
        parts = []
        for begin, end in pairwise(edges):
            number = begin // self.band_bytes
            offset = number * self.band_bytes
            parts.append(unpack(self, number)[begin - offset : end - offset])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def unpack(self, number: int) -> np.ndarray:
        """The bytes of one band."""
        first = number * self._sizes[0]
        shape = (min(self._sizes[0], self._shape[0] - first), *self._shape[1:])
        band = np.zeros(shape, np.dtype((np.void, self._element)))
        for rest in np.ndindex(*self.counts[1:]):
            place = self._places.get((number, *rest))
            if place is None:
                raise InvalidFileError("in part never written")
            begins = [0, *(each * size for each, size in zip(rest, self._sizes[1:], strict=True))]
            target = band[tuple(slice(at, at + size) for at, size in zip(begins, self._sizes, strict=True))]
            chunk = self._decode(place).view(band.dtype).reshape(self._sizes)
            target[...] = chunk[tuple(slice(size) for size in target.shape)]
        return band.reshape(-1).view(np.uint8)

    def _decode(self, place: _Place) -> np.ndarray:
        """The bytes of a chunk, after its filters were undone."""
        raw = self._file.view(place.address, place.size)
        for number, name in reversed(list(enumerate(self._filters))):
            if place.unfiltered >> number & 1:
                continue
            if name == _CHECKSUM:
                raw = raw[:-4]
            elif name == _SHUFFLE:
                raw = np.ascontiguousarray(raw[: len(raw) // self._element * self._element]).reshape(self._element, -1)
                raw = np.ascontiguousarray(raw.T).reshape(-1)
            else:
                try:
                    raw = np.frombuffer(zlib.decompressobj().decompress(raw, self.chunk_bytes + 8), np.uint8)
                except zlib.error:
                    raise InvalidFileError(TRUNCATED) from None
        if len(raw) != self.chunk_bytes:
            raise InvalidFileError(TRUNCATED)
        return np.ascontiguousarray(raw)


def _parse_shape(body: memoryview) -> tuple[int, ...]:
    version, rank, flags = body[0], body[1], body[3]
    if version == 2 and flags == 2:
        raise InvalidFileError("no elements")
    if version not in (1, 2):
        raise InvalidFileError(TRUNCATED)
    shape = as_sizes(struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4))
    if shape is None:
        raise InvalidFileError("an invalid shape")
    return shape


def _parse_dtype(body: memoryview) -> str:
    kind, bits, (size,) = body[0] & 15, body[1], struct.unpack_from("<I", body, 4)
    if kind in (_INTEGER, _FLOAT) and bits & 1:
        raise InvalidFileError("of a machine with the other order of bytes")
    if kind == _INTEGER and size in (1, 2, 4, 8):
        return f"{'' if bits & 8 else 'u'}int{8 * size}"
    if kind == _FLOAT and not bits & 64:
        _, _, *places = struct.unpack_from("<HHBBBB", body, 8)
        if named := _FLOATS.get((size, *places)):
            return named
    if kind == _ENUM and size == 1:
        return "bool"
    if kind == _OPAQUE and size == 2:  # as Keras writes it
        return "bfloat16"
    raise InvalidFileError(f"dtype {kind} of HDF5, {size} bytes")


def _parse_filters(body: memoryview) -> list[int]:
    """The numbers of the filters in the order in which they were applied."""
    version, count = body[0], body[1]
    at, found = 8 if version == 1 else 2, []
    for _ in range(count):
        (name,) = struct.unpack_from("<H", body, at)
        if name not in (_DEFLATE, _SHUFFLE, _CHECKSUM):
            raise InvalidFileError(f"filter {name} of HDF5: save it with gzip or without compression")
        if name in found:
            raise InvalidFileError("packed several times over")
        length = struct.unpack_from("<H", body, at + 2)[0] if version == 1 else 0
        (values,) = struct.unpack_from("<H", body, at + (6 if version == 1 else 4))
        at += (8 + -(-length // 8) * 8 + 4 * (values + values % 2)) if version == 1 else 6 + 4 * values
        found.append(name)
    return found
