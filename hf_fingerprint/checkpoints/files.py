"""Create, copy and sync files and folders, keeping the permissions of their sources."""

import os
import shutil
import stat
from contextlib import suppress
from io import BytesIO, FileIO
from pathlib import Path

import numpy as np


_BLOCK = 1 << 20


def file_mode(path: Path) -> int:
    """Permission bits of a file or folder; follows links."""
    return stat.S_IMODE(path.stat().st_mode) & 0o777


def create_file(path: Path, mode: int) -> FileIO:
    """A new, empty file with these permissions, open for writing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with suppress(PermissionError):  # some file systems have no permissions
        os.fchmod(descriptor, mode)  # undoes the umask
    return FileIO(descriptor, "wb")


def copy_file(source: Path, target: Path, content: bytes | None = None) -> None:
    """Copies a file with its permissions, and with `content` instead of its own if given."""
    with create_file(target, file_mode(source)) as stream:
        if content is not None:
            write_all(stream, memoryview(content))
            return
        with source.open("rb") as opened:
            shutil.copyfileobj(opened, stream, _BLOCK)


def copy_mode(source: Path, folder: Path) -> None:
    """Gives `folder` the permissions of `source`; its owner can always write into it."""
    with suppress(PermissionError):
        folder.chmod(file_mode(source) | stat.S_IRWXU)


def make_folders(place: Path, top: Path, source: Path) -> None:
    """Creates the folders from `top` down to `place`, with the permissions of the same folders in `source`."""
    parts = place.relative_to(top).parts
    for count in range(1, len(parts) + 1):
        folder = top.joinpath(*parts[:count])
        if not folder.is_dir():
            folder.mkdir()
            copy_mode(source.joinpath(*parts[:count]), folder)


def allocate(stream: FileIO, count: int) -> None:
    """Reserves disk space for a file, so that a full disk fails early and writing is faster."""
    if hasattr(os, "posix_fallocate") and count:
        os.posix_fallocate(stream.fileno(), 0, count)


def write_all(stream: FileIO | BytesIO, block: np.ndarray | memoryview) -> None:
    """Writes a whole block, in several writes if needed."""
    view = memoryview(block)
    while view:
        view = view[stream.write(view) :]


def sync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
