"""The members of a zip: PyTorch's files, NumPy's `.npz` and Keras's `.keras` are zips.

A member that is stored is a view of the memory-mapped file. One that is compressed is unpacked, at once or piece by
piece, up to a multiple of its size.
"""

import io
import zipfile
import zlib
from functools import lru_cache
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidPickleError
from hf_fingerprint.checkpoints.limits import MAX_DIRECTORY, MAX_EXPANSION, MAX_ZIP_RATIO


ZIP_MAGIC = b"PK\x03\x04"
TRUNCATED = "a file that is cut off or damaged"
_LOCAL_HEADER = 30
_PIECE = 1 << 20
_MAX_OPEN = 8


def names_if_zip(head: bytes, path: Path) -> list[str]:
    """The names of the members of a file with these first bytes, if it is a zip that can be opened; else none."""
    if not head.startswith(ZIP_MAGIC):
        return []
    try:
        return list_members(path)
    except (InvalidPickleError, OSError):
        return []


def list_members(path: Path) -> list[str]:
    """The names of a zip's members.

    Raises:
        [`InvalidPickleError`]: if it is not a zip or has too many members.
    """
    state = path.stat()
    return list(_cached_members(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))


@lru_cache(4)
def _cached_members(path: Path, *state: int) -> tuple[str, ...]:
    """The names of the members of a zip in this state, cached since several formats look for their own in them."""
    with path.open("rb", buffering=0) as stream:
        return tuple(member.filename for member in _zip_directory(stream))


def list_starts(path: Path) -> list[int]:
    """Where a zip's members begin in the file; see [`list_members`]."""
    with path.open("rb", buffering=0) as stream:
        return [member.header_offset for member in _zip_directory(stream)]


class BoundedFile(io.RawIOBase):
    """A file for `zipfile` that refuses to read a central directory beyond [`MAX_DIRECTORY`]."""

    def __init__(self, stream: io.FileIO):
        self._stream = stream

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        found = self._stream.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1)) or b""
        if len(found) > MAX_DIRECTORY:
            raise InvalidPickleError(f"a zip with a directory of more than {MAX_DIRECTORY >> 20} MB")
        return found


def bounded_zip(stream: io.FileIO) -> zipfile.ZipFile:
    """A zip that is open for reading, with a directory of at most [`MAX_DIRECTORY`].

    Raises:
        [`InvalidPickleError`]: if it is no zip or has too many members.
    """
    try:
        return zipfile.ZipFile(BoundedFile(stream))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, UnicodeDecodeError, OverflowError):
        raise InvalidPickleError(TRUNCATED) from None


def _zip_directory(stream: Any) -> list[zipfile.ZipInfo]:
    return bounded_zip(stream).infolist()


class ZipMembers:
    """The members of a zip by name.

    Args:
        stream (binary file): the zip, unbuffered.
        data (`mmap` or `np.ndarray`): its bytes.
        unpack (`int`, *optional*): bytes that its compressed members may have together once they are unpacked; by
            default a multiple of its size.

    Raises:
        [`InvalidPickleError`]: if it is no zip, has too many members, or two of one name.
    """

    def __init__(self, stream: Any, data: mmap | np.ndarray, unpack: int | None = None):
        self._bytes = np.frombuffer(data, np.uint8)
        self._unpack_budget = len(data) * MAX_ZIP_RATIO + MAX_EXPANSION if unpack is None else unpack
        self._found: dict[str, zipfile.ZipInfo] = {}
        self._open: list[PackedMember] = []
        for info in _zip_directory(stream):
            if info.filename in self._found:
                raise InvalidPickleError("a zip with two members of one name")
            self._found[info.filename] = info

    def __iter__(self) -> Any:
        return iter(self._found)

    def read(self, name: str) -> np.ndarray | None:
        """The bytes of a member as `uint8`, a view of the file unless compressed; `None` if it doesn't exist.

        Raises:
            [`InvalidPickleError`]: if it is damaged, encrypted, or compressed too much or by another method.
        """
        found = self.open(name)
        return found.read(0, found.size) if isinstance(found, PackedMember) else found

    def open(self, name: str) -> "np.ndarray | PackedMember | None":
        """As [`read`], but a member that is compressed is unpacked as it is read."""
        info = self._found.get(name)
        if info is None:
            return None
        head = self._bytes[info.header_offset : info.header_offset + _LOCAL_HEADER].tobytes()
        if len(head) < _LOCAL_HEADER or head[:4] != ZIP_MAGIC or info.flag_bits & 1:
            raise InvalidPickleError(TRUNCATED)
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        begin = info.header_offset + _LOCAL_HEADER + lengths
        raw = self._bytes[begin : begin + info.compress_size]
        if len(raw) != info.compress_size:
            raise InvalidPickleError(TRUNCATED)
        if info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size:
            return raw
        if info.compress_type != zipfile.ZIP_DEFLATED:
            raise InvalidPickleError("a zip with an unsupported compression method")
        if info.file_size > min(self._unpack_budget, info.compress_size * MAX_ZIP_RATIO + (MAX_EXPANSION >> 4)):
            raise InvalidPickleError("a zip that unpacks to many times its size")
        self._unpack_budget -= info.file_size
        return PackedMember(raw, info.file_size, self._open)


class PackedMember:
    """A compressed member. Reading on from where the last read ended unpacks nothing twice.

    Args:
        raw (`np.ndarray`): its compressed bytes, `uint8`.
        size (`int`): its size, unpacked.
        opened (`list[PackedMember]`): the members of this zip that are open, of which the last few stay open: each
            takes 40 kB.
    """

    def __init__(self, raw: np.ndarray, size: int, opened: "list[PackedMember]"):
        self._raw, self.size, self._opened = raw, size, opened
        self._stream: Any = None
        self._at, self._left = 0, memoryview(raw)

    def _rewind(self) -> None:
        if self._stream is None:
            self._opened.append(self)
        if len(self._opened) > _MAX_OPEN:
            self._opened.pop(0)._stream = None
        self._stream, self._at, self._left = zlib.decompressobj(-15), 0, memoryview(self._raw)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes `start` to `stop` of it, unpacked, as `uint8`.

        Raises:
            [`InvalidPickleError`]: if it is damaged or too short.
        """
        if self._stream is None or start < self._at:
            self._rewind()
        while self._at < start:
            self._at += len(self._unpack(min(start - self._at, _PIECE)))
        found = np.frombuffer(self._unpack(stop - start), np.uint8)
        self._at = stop
        return found

    def _unpack(self, count: int) -> bytearray:
        """The next bytes."""
        found = bytearray()
        while len(found) < count:
            pending: bytes | memoryview = self._stream.unconsumed_tail
            if not pending:
                pending, self._left = self._left[:_PIECE], self._left[_PIECE:]
            try:
                piece = b"" if self._stream.eof else self._stream.decompress(pending, count - len(found))
            except zlib.error:
                raise InvalidPickleError(TRUNCATED) from None
            if not piece and (self._stream.eof or not pending):  # without input, it may still return output
                raise InvalidPickleError(TRUNCATED)
            found += piece
        return found
