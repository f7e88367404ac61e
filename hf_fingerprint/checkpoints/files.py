"""New files and folders with the rights of those that they are copies of, written whole and seen on the disk."""

import os
import shutil
import stat
from contextlib import suppress
from io import BytesIO, FileIO
from pathlib import Path

import numpy as np


_BLOCK = 1 << 20


def file_mode(path: Path) -> int:
    """The rights to a file or folder, links followed."""
    return stat.S_IMODE(path.stat().st_mode) & 0o777


def create_file(path: Path, mode: int) -> FileIO:
    """A new file with these rights before anything is in it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with suppress(PermissionError):  # some disks know no rights
        os.fchmod(descriptor, mode)  # the umask may have taken some
    return FileIO(descriptor, "wb")


def copy_file(source: Path, target: Path, content: bytes | None = None) -> None:
    """A copy of a file with its rights, and with other content if that is given."""
    with create_file(target, file_mode(source)) as stream:
        if content is not None:
            write_all(stream, memoryview(content))
            return
        with source.open("rb") as opened:
            shutil.copyfileobj(opened, stream, _BLOCK)


def copy_mode(source: Path, folder: Path) -> None:
    """Gives a folder the rights that another one has; its owner may still write into it."""
    with suppress(PermissionError):
        folder.chmod(file_mode(source) | stat.S_IRWXU)


def make_folders(place: Path, top: Path, source: Path) -> None:
    """Makes the folders from `top` down to a place, with the rights of their namesakes in `source`."""
    parts = place.relative_to(top).parts
    for count in range(1, len(parts) + 1):
        folder = top.joinpath(*parts[:count])
        if not folder.is_dir():
            folder.mkdir()
            copy_mode(source.joinpath(*parts[:count]), folder)


def allocate(stream: FileIO, count: int) -> None:
    """Has the disk keep room for a file: a full one shows at once, and writing is faster."""
    if hasattr(os, "posix_fallocate") and count:
        os.posix_fallocate(stream.fileno(), 0, count)


def write_all(stream: FileIO | BytesIO, block: np.ndarray | memoryview) -> None:
    """Writes all of a block, in as many writes as it takes."""
    view = memoryview(block)
    while view:
        view = view[stream.write(view) :]


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
