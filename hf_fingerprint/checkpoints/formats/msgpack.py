"""A walk over msgpack's wire format that finds extension values, such as arrays, without a copy.

The library's decoder copies the bytes of each array; here they stay views of the mapped file.
"""

import struct
from typing import Any, NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED
from hf_fingerprint.checkpoints.limits import MB


MAX_VALUES = 300_000  # of one file: a layer takes about 30; all take 1 s and 100 MB
MAX_TEXT = 16 * MB  # bytes of all texts of one file, which are copied
MAX_DEPTH = 64
_COST_OF_EXTENSION = 5  # which holds values of its own: no more than 50,000 arrays
_FIXED = {  # first byte: layout of a number
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # first byte: bytes of the length that follows
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_LIST, _MAP = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}


class Extension(NamedTuple):
    """A value of a type that an application defines.

    Attributes:
        kind (`int`): number of the type.
        content (`np.ndarray`): its bytes, `uint8`.
    """

    kind: int
    content: np.ndarray


class Unpacker:
    """Reads the values in some bytes, one after the other.

    Maps are lists of pairs, since names may repeat; text is `bytes`, and binary values are arrays of `uint8`.

    Args:
        data (`np.ndarray`): the bytes, `uint8`.
        values (`int`, *optional*): how many values to read at most.
    """

    def __init__(self, data: np.ndarray, values: int = MAX_VALUES):
        self._data, self._at, self._left, self._text_left = data, 0, values, MAX_TEXT

    def read(self, depth: int = 0) -> Any:
        """The next value.

        Raises:
            [`InvalidFileError`]: if it is cut off, nested too deep, or has too many parts.
        """
        self._left -= 1
        if self._left < 0:
            raise InvalidFileError("too many values")
        if depth > MAX_DEPTH:
            raise InvalidFileError(f"nested deeper than {MAX_DEPTH}")
        first = self._number(1)
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _FIXED:
            layout = _FIXED[first]
            return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        if 0xA0 <= first < 0xC0 or first in _TEXT:
            return self._text(first & 31 if first < 0xC0 else self._number(_TEXT[first]))
        if first in _BINARY:
            return self._take(self._number(_BINARY[first]))
        if first in _EXTENSION or 0xD4 <= first <= 0xD8:
            self._left -= _COST_OF_EXTENSION
            size = self._number(_EXTENSION[first]) if first in _EXTENSION else 1 << (first - 0xD4)
            return Extension(self._number(1), self._take(size))
        if 0x80 <= first < 0x90 or first in _MAP:
            count = first & 15 if first < 0x90 else self._number(_MAP[first])
            return Pairs((self.read(depth + 1), self.read(depth + 1)) for _ in range(count))
        if 0x90 <= first < 0xA0 or first in _LIST:
            count = first & 15 if first < 0xA0 else self._number(_LIST[first])
            return [self.read(depth + 1) for _ in range(count)]
        raise InvalidFileError(TRUNCATED)

    @property
    def ended(self) -> bool:
        """Whether all bytes were read."""
        return self._at == len(self._data)

    def _text(self, count: int) -> bytes:
        self._text_left -= count
        if self._text_left < 0:
            raise InvalidFileError(f"more than {MAX_TEXT // MB} MB of text")
        return self._take(count).tobytes()

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, count: int) -> np.ndarray:
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise InvalidFileError(TRUNCATED)
        return self._data[start : self._at]


class Pairs(list[tuple[Any, Any]]):
    """The keys and values of a map."""
