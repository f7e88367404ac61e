"""Read the tensors of ONNX files: in the message itself in one of several fields, or in a file next to the model."""

from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import DATA_TYPES, StoredTensor
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.formats.torch_tensors import as_sizes
from hf_fingerprint.checkpoints.limits import MAX_EXPANSION, MAX_EXPANSION_RATIO, MAX_SHARDS


_DIMS, _DATA_TYPE, _SEGMENT, _FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES, _UINT64S = 1, 2, 3, 4, 5, 7, 9, 10, 11
_EXTERNAL, _LOCATION = 13, 14
_KEY, _VALUE = 1, 2
_NOTHING = np.empty(0, np.uint8)
_IN_INT32S = {
    "int32": "<i4", "int16": "<i2", "uint16": "<u2", "float16": "<u2", "bfloat16": "<u2", "int8": "i1", "uint8": "u1",
    "bool": "u1", "int4": "u1", "uint4": "u1", "int2": "u1", "uint2": "u1", "float4_e2m1": "u1",
    "float8_e4m3fn": "u1", "float8_e5m2": "u1", "float8_e4m3fnuz": "u1", "float8_e5m2fnuz": "u1", "float8_e8m0": "u1",
}  # fmt: skip


class OnnxTensors:
    """Reads the tensors of a model.

    Args:
        path (`Path`): the model.

    Attributes:
        companions (`dict[Path, np.ndarray]`): the files with external data that were opened, and their bytes.
    """

    def __init__(self, path: Path):
        self.companions: dict[Path, np.ndarray] = {}
        self._path = path
        self._left = self._external_left = MAX_EXPANSION  # bytes of numbers that are unpacked, and in other files

    def read(self, message: Message) -> StoredTensor:
        """A `TensorProto`. If it can't be read, the tensor says why."""
        number = message.integer(_DATA_TYPE)
        dtype = DATA_TYPES.get(number, f"number {number}")
        shape = as_sizes(message.integers(_DIMS))
        if shape is None:
            return StoredTensor(dtype, (), _NOTHING, "an invalid shape")
        if _SEGMENT in message:
            return StoredTensor(dtype, shape, _NOTHING, "in segments")
        try:
            return StoredTensor(dtype, shape, self._bytes(message, dtype, prod(shape)))
        except InvalidFileError as error:
            return StoredTensor(dtype, shape, _NOTHING, str(error))

    def _bytes(self, message: Message, dtype: str, count: int) -> np.ndarray:
        if message.integer(_LOCATION) or (_EXTERNAL in message and _RAW not in message):
            return self._external(message)
        raw = message.content(_RAW)
        if raw is not None:
            return raw
        if dtype in ("float32", "complex64"):
            return message.floats(_FLOATS).view(np.uint8)
        if dtype in ("float64", "complex128"):
            return message.doubles(_DOUBLES).view(np.uint8)
        field = _UINT64S if dtype.startswith("uint") and _INT32S not in message else _INT64S
        stored = {"int64": "<i8", "uint32": "<u4", "uint64": "<u8"}.get(dtype)
        if dtype in _IN_INT32S:
            field, stored = _INT32S, _IN_INT32S[dtype]
        if stored is None:
            return _NOTHING
        self._left -= np.dtype(stored).itemsize * count + sum(map(len, message.parts(field)))
        if self._left < 0:
            raise InvalidFileError("too many packed numbers: convert the model to raw data")
        return message.varints(field, stored, count).view(np.uint8)

    def _external(self, message: Message) -> np.ndarray:
        entries = {each.text(_KEY): each.text(_VALUE) for each in message.messages(_EXTERNAL)}
        path = find_companion(self._path, PurePosixPath(entries.get("location", "")))
        if path not in self.companions:
            if len(self.companions) >= MAX_SHARDS:
                raise InvalidFileError(f"more than {MAX_SHARDS} files with external data")
            self.companions[path] = map_file(path)
            self._external_left += len(self.companions[path]) * MAX_EXPANSION_RATIO
        data = self.companions[path]
        start = _number(entries.get("offset", "0"))
        found = slice_bytes(data, start, _number(entries["length"]) if "length" in entries else len(data) - start)
        self._external_left -= len(found)
        if self._external_left < 0:
            raise InvalidFileError("tensors that overlap in a file with external data")
        return found


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidFileError("an invalid place in a file")
    return int(text)
