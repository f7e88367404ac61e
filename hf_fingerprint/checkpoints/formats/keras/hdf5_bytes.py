"""The bytes of an HDF5 file, its B-trees and its heaps, read in a bounded number of steps."""

import struct
from collections.abc import Iterator

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED, slice_bytes


NOWHERE = (1 << 64) - 1
MAX_STEPS = 500_000  # messages, links and chunks of one file: a layer takes about 30; all take 2 s and 200 MB
_MAX_TREE_DEPTH = 8


class Hdf5Bytes:
    """Some bytes, in which everything is found by its address.

    Args:
        data (`np.ndarray`): the bytes, `uint8`.
        steps (`int`, *optional*): how many steps to take at most.
    """

    def __init__(self, data: np.ndarray, steps: int | None = None):
        self._data, self.steps_left = data, MAX_STEPS if steps is None else steps

    def __len__(self) -> int:
        return len(self._data)

    def view(self, start: int, count: int) -> np.ndarray:
        """Some bytes of the file; [`InvalidFileError`] if it ends before."""
        return slice_bytes(self._data, start, count)

    def read(self, start: int, count: int) -> bytes:
        """Some bytes of the file; [`InvalidFileError`] if it ends before."""
        return self.view(start, count).tobytes()

    def number(self, start: int, size: int) -> int:
        """The unsigned number in some bytes."""
        return int.from_bytes(self.read(start, size), "little")

    def expect(self, address: int, signature: bytes) -> None:
        """Checks what begins at an address; [`InvalidFileError`] if it is something else."""
        if self.read(address, len(signature)) != signature:
            raise InvalidFileError(TRUNCATED)

    def spend(self) -> None:
        """Counts one step; [`InvalidFileError`] if there were too many."""
        self.steps_left -= 1
        if self.exhausted:
            raise InvalidFileError(f"more than {MAX_STEPS:,} parts")

    @property
    def exhausted(self) -> bool:
        """Whether all steps were taken."""
        return self.steps_left < 0

    def leaves(self, tree: int, kind: int, key_bytes: int) -> Iterator[tuple[bytes, int]]:
        """Yields the key and the address of each leaf of a B-tree of version 1, in its order.

        Args:
            tree (`int`): its address.
            kind (`int`): what it holds: 0 the links of a group, 1 the chunks of a data set.
            key_bytes (`int`): size of a key.
        """
        waiting: list[tuple[bytes, int, int]] = [(b"", tree, -1)]
        while waiting:
            key, address, level = waiting.pop()
            self.spend()
            if level == 0:
                yield key, address
                continue
            signature, found, depth, count = struct.unpack("<4sBBH", self.read(address, 8))
            if signature != b"TREE" or found != kind or (level > 0 and depth != level - 1):
                raise InvalidFileError(TRUNCATED)
            step = key_bytes + 8
            for number in reversed(range(count)):
                self.spend()
                at = address + 24 + step * number
                child = self.number(at + key_bytes, 8)
                waiting.append((self.read(at, key_bytes), child, depth))

    def records(self, tree: int) -> Iterator[bytes]:
        """Yields the records of a B-tree of version 2, in any order."""
        self.expect(tree, b"BTHD")
        node_bytes, size, depth, _, _, root, count = struct.unpack("<IHHBBQH", self.read(tree + 6, 20))
        if not size or depth > _MAX_TREE_DEPTH:
            raise InvalidFileError(TRUNCATED)
        most = max(node_bytes - 10, 0) // size  # records of a leaf
        count_bytes, all_most, pointers = _bytes_of(most), most, [0]
        for level in range(depth):
            pointers.append(8 + count_bytes + (_bytes_of(all_most) if level else 0))
            own = max(node_bytes - 10 - pointers[-1], 0) // (size + pointers[-1])
            all_most = (own + 1) * all_most + own
        waiting = [(root, count, depth)]
        while waiting:
            address, count, depth = waiting.pop()
            self.expect(address, b"BTIN" if depth else b"BTLF")
            for number in range(count):
                self.spend()
                yield self.read(address + 6 + number * size, size)
            for number in range(count + 1 if depth else 0):
                self.spend()
                at = address + 6 + count * size + number * pointers[depth]
                waiting.append((self.number(at, 8), self.number(at + 8, count_bytes), depth - 1))


class FractalHeap:
    """A heap of small objects, such as the links of a large group.

    Args:
        file ([`Hdf5Bytes`]): the file.
        address (`int`): address of its header.
    """

    def __init__(self, file: Hdf5Bytes, address: int):
        file.expect(address, b"FRHP")
        self._file = file
        filters, self._flags, largest = struct.unpack("<HBI", file.read(address + 7, 7))
        self._width, self._first, most, bits, _, self._root, self._rows = struct.unpack(
            "<HQQHHQH", file.read(address + 110, 32)
        )
        if filters or not self._width or not self._first or most < self._first or bits > 64:
            raise InvalidFileError(TRUNCATED)
        self._offset_bytes, self._length_bytes = -(-bits // 8), min(_bytes_of(most), _bytes_of(largest))
        self._direct_rows = (most // self._first).bit_length() + 1

    def find(self, key: bytes) -> memoryview:
        """The object that a key of the heap stands for."""
        if key[:1] != b"\0":  # an object outside the heap's blocks
            raise InvalidFileError("a link in an unsupported form")
        offset = int.from_bytes(key[1 : 1 + self._offset_bytes], "little")
        length = int.from_bytes(key[1 + self._offset_bytes :][: self._length_bytes], "little")
        block, rows = self._root, self._rows
        while rows:
            self._file.spend()
            self._file.expect(block, b"FHIB")
            row = max((offset // (self._width * self._first)).bit_length(), 0)
            size = self._first << max(row - 1, 0)
            begin = self._width * size if row else 0
            column = (offset - begin) // size
            if row >= rows:
                raise InvalidFileError(TRUNCATED)
            block = self._file.number(block + 13 + self._offset_bytes + 8 * (row * self._width + column), 8)
            offset -= begin + column * size
            rows = 0 if row < self._direct_rows else (size // (self._first * self._width)).bit_length()
        self._file.expect(block, b"FHDB")
        return memoryview(self._file.view(block + offset, length))


def find_global(file: Hdf5Bytes, address: int, index: int) -> np.ndarray:
    """An object in a global heap, such as a text of variable size."""
    file.expect(address, b"GCOL")
    at, end = address + 16, address + file.number(address + 8, 8)
    while at < end:
        file.spend()
        found, size = file.number(at, 2), file.number(at + 8, 8)
        if found == index:
            return file.view(at + 16, size)
        at += 16 + -(-size // 8) * 8
    raise InvalidFileError(TRUNCATED)


def _bytes_of(largest: int) -> int:
    """Bytes that hold numbers up to one."""
    return max(-(-largest.bit_length() // 8), 1)
