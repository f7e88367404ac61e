"""A walk over FlatBuffers' wire format, as TFLite and ONNX Runtime use it.

A table is read by the slots of its schema, the fields in their order of declaration, without a native parser. (A union
takes two slots: its type, then its table.) Nothing is copied: a tensor's bytes stay a view of the mapped file.

```python
model = FlatTable.root(map_file(path))
for subgraph in model.tables(2):  # each a FlatTable
    subgraph.text(4), subgraph.numbers(1, "<i4")
```
"""

from collections.abc import Iterator
from struct import Struct

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED
from hf_fingerprint.checkpoints.formats.protobuf import MAX_TEXT


MAX_VISITED = 2_000_000  # in one file: a graph of 20,000 nodes takes half; all take 2 s
_SHORT, _OFFSET, _JUMP = Struct("<H"), Struct("<I"), Struct("<i")
_SCALARS = {code: Struct(code) for code in ("<b", "<B", "<h", "<H", "<i", "<I", "<q", "<Q", "<f")}
_TABLE, _VECTOR = 8, 2  # what they cost: as much time as so many fields of protobuf
_BYTES, _NUMBERS = 64, 16  # of a text or vector, that cost as much as one field


class FlatTable:
    """A table of which each field is found by its slot. An absent field has its default, as in the format.

    Args:
        data (`np.ndarray`): the bytes of the file, `uint8`.
        at (`int`): the table's place.

    Raises:
        [`InvalidFileError`]: if it is damaged or cut off, or too much of the file was visited.
    """

    __slots__ = ("_at", "_budget", "_data", "_end", "_view", "_vtable")

    def __init__(self, data: np.ndarray, at: int, budget: "_Budget | None" = None):
        self._data, self._view, self._at, self._budget = data, memoryview(data), at, budget or _Budget()
        self._budget.spend(_TABLE)
        self._vtable = at - self._read(_JUMP, at)
        self._end = self._read(_SHORT, self._vtable)
        if self._end < 4 or self._vtable + self._end > len(data):
            raise InvalidFileError(TRUNCATED)

    @classmethod
    def root(cls, data: np.ndarray) -> "FlatTable":
        """The table that a file begins with."""
        if len(data) < 8:
            raise InvalidFileError(TRUNCATED)
        return cls(data, int(_OFFSET.unpack_from(data)[0]))

    @property
    def place(self) -> int:
        """Where it is in the file; several tables may refer to one."""
        return self._at

    def integer(self, slot: int, code: str = "<i", default: int = 0) -> int:
        """The number in a field; `code` is its type as in `struct`, such as `"<b"` for a byte."""
        at = self._field(slot)
        return int(self._read(_SCALARS[code], at)) if at else default

    def real(self, slot: int, default: float = 0.0) -> float:
        """The `float32` in a field."""
        at = self._field(slot)
        return float(self._read(_SCALARS["<f"], at)) if at else default

    def text(self, slot: int) -> str:
        """The text in a field, cut at 4,096 bytes, or an empty one. It may be hostile."""
        at = self._field(slot)
        return self._text(at) if at else ""

    def texts(self, slot: int) -> list[str]:
        """The texts in a field."""
        return [self._text(at) for at in self._elements(slot)]

    def table(self, slot: int) -> "FlatTable | None":
        """The table in a field, or `None`."""
        at = self._field(slot)
        return FlatTable(self._data, self._follow(at), self._budget) if at else None

    def tables(self, slot: int) -> Iterator["FlatTable"]:
        """The tables in a field."""
        for at in self._elements(slot):
            yield FlatTable(self._data, self._follow(at), self._budget)

    def content(self, slot: int) -> np.ndarray | None:
        """The bytes in a field, as a view, or `None`."""
        at = self._field(slot)
        return self._vector(at, 1) if at else None

    def numbers(self, slot: int, dtype: str) -> np.ndarray:
        """The numbers in a field, as a view; `dtype` is their NumPy type, such as `"<f4"`."""
        at = self._field(slot)
        if not at:
            return np.empty(0, dtype)
        found = self._vector(at, np.dtype(dtype).itemsize).view(dtype)
        self._budget.spend(_VECTOR + len(found) // _NUMBERS)
        return found

    def _field(self, slot: int) -> int:
        """The place of a field, or 0 if it is absent."""
        entry = 4 + 2 * slot
        if entry + 2 > self._end:
            return 0
        offset = self._read(_SHORT, self._vtable + entry)
        return self._at + offset if offset else 0

    def _elements(self, slot: int) -> range:
        """The places of the offsets in a field."""
        at = self._field(slot)
        if not at:
            return range(0)
        start = self._follow(at)
        count = self._read(_OFFSET, start)
        if count * 4 > len(self._data) - start - 4:
            raise InvalidFileError(TRUNCATED)
        return range(start + 4, start + 4 + 4 * count, 4)

    def _text(self, at: int) -> str:
        found = self._vector(at, 1)[:MAX_TEXT]
        self._budget.spend(_VECTOR + len(found) // _BYTES)
        return bytes(found).decode("utf-8", "replace")

    def _vector(self, at: int, size: int) -> np.ndarray:
        """The bytes of a vector whose offset is at a place and whose elements have some bytes."""
        start = self._follow(at)
        count = self._read(_OFFSET, start) * size
        if count > len(self._data) - start - 4:
            raise InvalidFileError(TRUNCATED)
        return self._data[start + 4 : start + 4 + count]

    def _follow(self, at: int) -> int:
        return at + self._read(_OFFSET, at)

    def _read(self, kind: Struct, at: int) -> int:
        if at < 0 or at + kind.size > len(self._data):
            raise InvalidFileError(TRUNCATED)
        return kind.unpack_from(self._view, at)[0]


class _Budget:
    """Counts what is visited in one file: tables and vectors may be referred to many times."""

    def __init__(self) -> None:
        self.left = MAX_VISITED

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise InvalidFileError(f"more than {MAX_VISITED:,} fields")
