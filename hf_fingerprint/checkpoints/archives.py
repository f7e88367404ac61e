"""Unpack archives and apps (.zip, .apk, .aab, .ipa, .tar.gz, ...) to look for models inside.

An archive is hostile: its members' names decide nothing but the names of new files in a new temporary folder, links
and special files are passed over, and each byte is counted as it is unpacked, whatever the archive says of its size.
"""

import bz2
import gzip
import io
import lzma
import re
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hf_fingerprint.checkpoints.folders import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.recognition import inspect_file, is_packed
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC, BoundedFile, bounded_zip
from hf_fingerprint.checkpoints.limits import MAX_ARCHIVE_MEMBERS, MAX_DIRECTORY, MAX_EXPANSION, MAX_ZIP_RATIO
from hf_fingerprint.errors import CheckpointError


ARCHIVE = "archive"
ARCHIVE_NAMES = re.compile(r"\.(zip|apk|aab|xapk|apks|ipa|mar|task|jar|tar|tgz|tbz2|txz|gz|bz2|xz)$", re.IGNORECASE)
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_TAR = b"ustar"
_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, IndexError,
)  # fmt: skip
_BLOCK = 1 << 20
_SMALLEST = 64  # bytes of a file that may hold weights
_MAX_PARTS, _MAX_PART = 16, 80
_OTHER_CONTENT = re.compile(  # pictures, sounds, fonts, code: most of an app's files
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|OggS|ID3|dex\n|\x7fELF|\xca\xfe\xba\xbe|\x03\x00\x08\x00|\x02\x00\x0c\x00|OTTO"
    rb"|\x00\x01\x00\x00\x00|%PDF|....ftyp",
    re.DOTALL,
)


class UnpackedArchive:
    """The files of an archive in a temporary folder, which is deleted with this object.

    Attributes:
        folder (`Path`): the folder.
        problem (`str` or `None`): why not all of it was unpacked, to follow the archive's name.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hf-fingerprint-"))
        self.problem: str | None = None
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive or packed in a way that [`unpack_archive`] undoes, and no weight file."""
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
        if head[:4] == ZIP_MAGIC or head[257:262] == _TAR or any(head.startswith(magic) for magic, _ in _PACKED):
            return is_packed(inspect_file(path))
        return False
    except (OSError, CheckpointError):
        return False


def unpack_archive(path: Path, name: str) -> UnpackedArchive:
    """Unpacks what may hold weights in an archive.

    Args:
        path (`Path`): the archive.
        name (`str`): its name, from which the name of a single packed file is made.

    Raises:
        [`StorageError`]: if the disk is full.
        [`OSError`]: if it can't be read.
    """
    found = UnpackedArchive()
    budget = _Budget(path.stat().st_size * MAX_ZIP_RATIO + MAX_EXPANSION)
    try:
        _unpack_into(path, name, found.folder, budget)
    except InvalidFileError as error:
        found.problem = str(error)
    except _ERRORS:
        found.problem = "is damaged, or packed in a way that is not supported: download it again, or unpack it"
    except OSError as error:
        if is_disk_full_error(error):
            raise disk_full_error(found.folder) from None
        raise
    return found


class _Budget:
    """Counts the members and bytes unpacked from one archive."""

    def __init__(self, count: int):
        self._left, self._members = count, MAX_ARCHIVE_MEMBERS

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise InvalidFileError("unpacks to many times its size: unpack it yourself, and give the folder")

    def add_member(self) -> None:
        self._members -= 1
        if self._members < 0:
            raise InvalidFileError(f"holds more than {MAX_ARCHIVE_MEMBERS:,} files: unpack it, and give the folder")


def _unpack_into(path: Path, name: str, folder: Path, budget: _Budget) -> None:
    with path.open("rb", buffering=0) as stream:
        head = stream.read(512)
        stream.seek(0)
        packing = next((unpacker for magic, unpacker in _PACKED if head.startswith(magic)), None)
        if packing is None:
            _write_members(
                _zip_members(stream, budget) if head[:4] == ZIP_MAGIC else _tar_members(stream, budget), folder, budget
            )
            return
        inner = folder / "0" / _safe_name(re.sub(r"\.(gz|bz2|xz)$", "", re.sub(r"\.t(gz|bz2|xz)$", ".tar", name)))
        _write(packing(stream), inner, budget)
        if _is_tar(inner):
            tar = inner.rename(folder / "tar")
            with tar.open("rb", buffering=0) as unpacked:
                _write_members(_tar_members(unpacked, budget), folder, budget)
            tar.unlink()


def _is_tar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(512)[257:262] == _TAR


def _zip_members(stream: io.FileIO, budget: _Budget) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yields the names of a zip's members, each with its open content, or `None` if it is encrypted."""
    archive = bounded_zip(stream)
    for info in archive.infolist():
        budget.add_member()
        if not info.is_dir():
            yield info.filename, None if info.flag_bits & 1 else archive.open(info)


def _tar_members(stream: io.FileIO, budget: _Budget) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yields the names of a tar's regular files, each with its open content, or `None` if it is sparse."""
    with tarfile.open(fileobj=cast(IO[bytes], _BoundedReads(stream)), mode="r:") as archive:
        for info in archive:
            budget.add_member()
            if info.isreg():  # what a sparse file expands to can't be bounded by what is read
                yield info.name, None if info.issparse() else archive.extractfile(info)


class _BoundedReads(BoundedFile):
    """A file for `tarfile`, which reads a header of any size that it claims in one go."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_DIRECTORY:
            raise InvalidFileError("is a tar with a header that is too large: unpack it yourself")
        return super().read(size)


def _write_members(members: Iterator[tuple[str, IO[bytes] | None]], folder: Path, budget: _Budget) -> None:
    """Writes what may hold weights, under safe names: into folder "0", or one of its own if its name is taken."""
    unread = 0
    for number, (name, content) in enumerate(members, 1):
        if content is None:
            unread += 1
            continue
        parts = [_safe_name(part) for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".")]
        parts = parts[-_MAX_PARTS:] or ["unnamed"]
        _write(content, folder.joinpath("0", *parts), budget, folder / str(number) / parts[-1])
    if unread:
        raise InvalidFileError(f"holds {unread} encrypted or sparse files: unpack it, and give the folder")


def _write(content: IO[bytes], target: Path, budget: _Budget, spare: Path | None = None) -> None:
    """Writes a file; with `spare`, the path if the other is taken, only if its first bytes may be those of weights."""
    with content:
        block = content.read(_BLOCK)
        budget.spend(len(block))
        is_safetensors = block[8:9] == b"{"  # the size of its header, which comes first, may look like anything
        if spare is not None and (len(block) < _SMALLEST or (_OTHER_CONTENT.match(block) and not is_safetensors)):
            return
        with _create(target, spare) as out:
            while block:
                out.write(block)
                block = content.read(_BLOCK)
                budget.spend(len(block))


def _create(target: Path, spare: Path | None) -> IO[bytes]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        if spare is None:
            raise
        return _create(spare, None)


def _safe_name(part: str) -> str:
    """A part of a member's name as a file's name on any disk."""
    kept = re.sub(r"[^\w.+=@ -]", "_", part, flags=re.ASCII).strip(" ")
    kept = kept if len(kept) <= _MAX_PART else kept[: _MAX_PART // 2] + kept[-_MAX_PART // 2 :]
    return kept if kept.strip(".") else "_"
