"""Private files that are complete or absent: written under a temporary name, synced, then renamed.

A killed process may leave a temporary file, whose name begins with a dot and ends in eight hexadecimal digits. The
next process that writes the same file deletes it.
"""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import VaultError


_SIDECARS = ("", "-journal", "-wal", "-shm")  # SQLite's files next to a database


def write_private(path: Path, content: bytes) -> None:
    """Writes a new file that only its owner can read, and syncs it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_new_private(path: Path, content: bytes) -> None:
    """Writes a new private file, completely or not at all.

    Raises:
        [`FileExistsError`]: if the file exists.
        [`OSError`]: if it can't be written.
    """
    with partial_file(path) as partial:
        write_private(partial, content)
        rename_into_place(partial, path)


def replace_private(path: Path, content: bytes) -> None:
    """Replaces a private file, completely or not at all.

    Raises:
        [`OSError`]: if it can't be written.
    """
    with partial_file(path) as partial:
        write_private(partial, content)
        partial.replace(path)
        sync(path.parent)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A temporary name next to a path, to write to and then rename; what is left of it is deleted."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
    finally:
        for ending in _SIDECARS:
            with suppress(OSError):
                partial.with_name(partial.name + ending).unlink(missing_ok=True)


def rename_into_place(partial: Path, path: Path) -> None:
    """Renames a complete file to its final name, and syncs the folder.

    Raises:
        [`FileExistsError`]: if the name is taken.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    partial.rename(path)
    sync(path.parent)


def unused_path(path: Path) -> Path:
    """This path, or the first like it (`name-2`, `name-3`) that doesn't exist."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(place for place in chain([path], others) if not place.exists())


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files that killed processes left for a path. No other process may be writing it."""
    endings = "|".join(map(re.escape, _SIDECARS))
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}({endings})")
    for found in path.parent.iterdir():
        if leftover.fullmatch(found.name) and not found.is_dir():
            found.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from creating a vault in a folder, or sealing its identity, at the same time.

    The lock is on the folder itself, so it leaves no file, and is released when its process ends.

    Raises:
        [`VaultError`]: if another process has the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VaultError(
                f"Another process is creating a vault in {folder}, or sealing its identity: wait, then try again."
            ) from None
        except OSError:
            pass  # this disk has no locks
        yield
    finally:
        os.close(descriptor)
