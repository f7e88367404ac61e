"""A walk over protobuf's wire format, as ONNX, Core ML and TensorFlow use it.

A message is read by the field numbers of its schema, without a native parser. Nothing is copied:
a tensor's bytes stay a view of the mapped file.

```python
model = Message(map_file(path))
for node in model.messages(7):  # each a Message
    node.text(3), node.integers(8)
```
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED


MAX_FIELDS = 1_000_000  # visited in one file, and four more for each message: a large graph has 300,000
MAX_TEXT = 4_096  # bytes of a name
_MASK = (1 << 64) - 1
_MESSAGE = 4  # fields that take as long as a message without any
_SMALL = 1 << 16  # bytes of a message that is copied to read it faster
_PIECE = 1 << 20  # bytes of numbers decoded at once
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Budget:
    """Counts the fields visited in one file."""

    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise InvalidFileError(f"more than {MAX_FIELDS:,} fields")


class Message:
    """A message of which each field is found by its number. Unknown fields cost nothing but the walk past them.

    Args:
        data (`np.ndarray`): its bytes, `uint8`.

    Raises:
        [`InvalidFileError`]: if it is no message, is cut off, or has too many fields.
    """

    def __init__(self, data: np.ndarray, budget: _Budget | None = None):
        self._data, self._budget = data, budget or _Budget()
        self._budget.spend(_MESSAGE)
        self._fields: dict[int, list[tuple[int, int, int]]] = {}  # wire type, start and end, or a value
        for number, wire, start, end in _walk(data, self._budget):
            self._fields.setdefault(number, []).append((wire, start, end))

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    @property
    def numbers(self) -> set[int]:
        """The numbers of the fields that are set."""
        return set(self._fields)

    def messages(self, number: int) -> Iterator["Message"]:
        """The messages in a field."""
        for part in self.parts(number):
            yield Message(part, self._budget)

    def message(self, number: int) -> "Message | None":
        """The message in a field, or `None`; of several, the last."""
        parts = self.parts(number)
        return Message(parts[-1], self._budget) if parts else None

    def parts(self, number: int) -> list[np.ndarray]:
        """The values of a field of bytes, as views."""
        return [self._data[start:end] for wire, start, end in self._fields.get(number, ()) if wire == _BYTES]

    def content(self, number: int) -> np.ndarray | None:
        """The bytes in a field, as a view, or `None`; of several, the last."""
        parts = self.parts(number)
        return parts[-1] if parts else None

    def text(self, number: int) -> str:
        """The text in a field, cut at 4,096 bytes, or an empty one; of several, the last. It may be hostile."""
        found = self.content(number)
        return "" if found is None else bytes(found[:MAX_TEXT]).decode("utf-8", "replace")

    def texts(self, number: int) -> list[str]:
        """All texts in a field; see [`text`]."""
        return [bytes(part[:MAX_TEXT]).decode("utf-8", "replace") for part in self.parts(number)]

    def integer(self, number: int, default: int = 0) -> int:
        """The signed number in a field; of several, the last."""
        found = [start for wire, start, _ in self._fields.get(number, ()) if wire == _VARINT]
        return _signed(found[-1]) if found else default

    def integers(self, number: int) -> list[int]:
        """The signed numbers in a repeated field, packed or not."""
        found: list[int] = []
        for wire, start, end in self._fields.get(number, ()):
            if wire == _VARINT:
                found.append(_signed(start))
            elif wire == _BYTES:
                view = memoryview(self._data)
                while start < end:
                    self._budget.spend(1)
                    value, start = _read_varint(view, start, end)
                    found.append(_signed(value))
        return found

    def varints(self, number: int, dtype: str, most: int) -> np.ndarray:
        """The numbers in a repeated field, cut to the width of an integer dtype, such as `"<i4"`. Fast for many.

        Raises:
            [`InvalidFileError`]: if there are more than `most`.
        """
        parts, count = [np.empty(0, dtype)], 0
        for wire, start, end in self._fields.get(number, ()):
            if wire == _VARINT:
                parts.append(np.array([start & _MASK], np.uint64).astype(dtype))
                count += 1
            while wire == _BYTES and start < end and count <= most:
                ends = np.flatnonzero(self._data[start : min(start + _PIECE, end)] < 128)
                if not len(ends):
                    raise InvalidFileError(TRUNCATED)
                parts.append(_read_varints(self._data[start : start + int(ends[-1]) + 1], ends).astype(dtype))
                start += int(ends[-1]) + 1
                count += len(ends)
        if count > most:
            raise InvalidFileError("more numbers than its shape has")
        return np.concatenate(parts)

    def real(self, number: int, default: float = 0.0) -> float:
        """The `float32` in a field; of several, the last."""
        found = self.floats(number)
        return float(found[-1]) if len(found) else default

    def floats(self, number: int) -> np.ndarray:
        """The `float32` numbers in a repeated field, packed or not."""
        return self._fixed(number, _FIXED32, "<f4")

    def doubles(self, number: int) -> np.ndarray:
        """The `float64` numbers in a repeated field, packed or not."""
        return self._fixed(number, _FIXED64, "<f8")

    def _fixed(self, number: int, wire: int, dtype: str) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        parts = [
            self._data[start : end - (end - start) % size].view(dtype)
            for kind, start, end in self._fields.get(number, ())
            if kind in (wire, _BYTES)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def first_numbers(data: np.ndarray, count: int) -> list[int]:
    """The numbers of the first fields of a message, which is not read any further; fewer if it is none or is cut off.

    Args:
        data (`np.ndarray`): its bytes, `uint8`.
        count (`int`): how many.
    """
    found: list[int] = []
    with suppress(InvalidFileError):
        found.extend(number for number, *_ in islice(_walk(data, _Budget()), count))
    return found


def _walk(data: np.ndarray, budget: _Budget) -> Iterator[tuple[int, int, int, int]]:
    """The number, wire type, start and end of each field; a number's value instead of its start."""
    at, end = 0, len(data)
    view = data.tobytes() if end < _SMALL else memoryview(data)
    while at < end:
        budget.left -= 1
        if budget.left < 0:
            budget.spend(0)
        key, at = (view[at], at + 1) if view[at] < 128 else _read_varint(view, at, end)
        number, wire = key >> 3, key & 7
        if wire in (_VARINT, _BYTES):
            if at == end:
                raise InvalidFileError(TRUNCATED)
            count, at = (view[at], at + 1) if view[at] < 128 else _read_varint(view, at, end)
            if wire == _VARINT:
                yield number, wire, count, at
                continue
        elif wire in (_FIXED64, _FIXED32):
            count = 8 if wire == _FIXED64 else 4
        else:
            raise InvalidFileError(TRUNCATED)
        if count > end - at or not number:
            raise InvalidFileError(TRUNCATED)
        yield number, wire, at, at + count
        at += count


def _read_varint(view: memoryview | bytes, at: int, end: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while at < end and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise InvalidFileError(TRUNCATED)


def _read_varints(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Adjacent numbers of up to 64 bits, as `uint64`, by the places of their last bytes."""
    if len(ends) == len(data):
        return data.astype(np.uint64)
    starts = np.concatenate([ends[:0], [0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise InvalidFileError(TRUNCATED)
    found = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        there = lengths > place
        found[there] |= (data[starts[there] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return found


def _signed(value: int) -> int:
    """A number of 64 bits in two's complement."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
