"""The bytes of TFLite tensors: among the tables, behind them in files of over 2 GB, or in files next to the model."""

from pathlib import Path, PurePosixPath

import numpy as np

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import map_file, slice_bytes
from hf_fingerprint.checkpoints.limits import MAX_SHARDS
from hf_fingerprint.printable import printable


_BUFFERS, _GROUPS, _EXTERNAL_BUFFERS = 4, 8, 9  # of Model
_DATA, _OFFSET, _SIZE = 0, 1, 2  # of Buffer
_ID, _GROUP, _START, _LENGTH, _PACKING = 0, 1, 2, 3, 4  # of ExternalBuffer
_GROUP_NAME = 0
_UNPACKED = ("", "unpacked")


class TfliteBuffers:
    """The buffers of a model.

    Args:
        path (`Path`): its file.
        data (`np.ndarray`): its bytes, `uint8`.
        model ([`FlatTable`]): its root.

    Attributes:
        companions (`dict[Path, np.ndarray]`): further files that were opened, and their bytes.
    """

    def __init__(self, path: Path, data: np.ndarray, model: FlatTable):
        self.companions: dict[Path, np.ndarray] = {}
        self._path, self._data = path, data
        self._inner = list(model.tables(_BUFFERS))
        self._outer = {table.integer(_ID, "<I"): table for table in model.tables(_EXTERNAL_BUFFERS)}
        self._groups = [group.text(_GROUP_NAME) for group in model.tables(_GROUPS)]

    def inner(self, number: int) -> np.ndarray:
        """The bytes of a buffer in the file, none for a tensor that isn't constant.

        Raises:
            [`InvalidFileError`]: if they are missing.
        """
        if number >= len(self._inner):
            raise InvalidFileError("its buffer is missing")
        buffer = self._inner[number]
        if (offset := buffer.integer(_OFFSET, "<Q")) > 1:
            return slice_bytes(self._data, offset, buffer.integer(_SIZE, "<Q"))
        found = buffer.content(_DATA)
        return np.empty(0, np.uint8) if found is None else found

    def outer(self, number: int) -> np.ndarray:
        """The bytes of an external buffer, which is a part of a file in the model's folder.

        Raises:
            [`InvalidFileError`]: if they are missing, or elsewhere.
        """
        buffer = self._outer.get(number)
        group = len(self._groups) if buffer is None else buffer.integer(_GROUP, "<I")
        if buffer is None or group >= len(self._groups):
            raise InvalidFileError("its buffer is missing")
        if (packing := buffer.text(_PACKING)) not in _UNPACKED:
            raise InvalidFileError(f"packed as {printable(packing)[:20]}")
        path = find_companion(self._path, PurePosixPath(self._groups[group]))
        if path not in self.companions:
            if len(self.companions) >= MAX_SHARDS:
                raise InvalidFileError(f"more than {MAX_SHARDS} files with buffers")
            self.companions[path] = map_file(path)
        return slice_bytes(self.companions[path], buffer.integer(_START, "<Q"), buffer.integer(_LENGTH, "<Q"))
