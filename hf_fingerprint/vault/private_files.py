"""Files for their owner's eyes only, that are there whole or not at all: written next to their place, synced, renamed.

What a killed process leaves is a file whose name begins with a dot and ends in eight hexadecimal digits. The next one
that writes to the same place deletes it.
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


_SIDECARS = ("", "-journal", "-wal", "-shm")  # what SQLite adds to a database


def write_private(path: Path, content: bytes) -> None:
    """Writes a new file for its owner's eyes only, and sees it on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_new_private(path: Path, content: bytes) -> None:
    """Writes a private file whole, where there is none.

    Raises:
        [`FileExistsError`]: if there is one.
        [`OSError`]: if it can't be written; then nothing is left of it.
    """
    with partial_file(path) as partial:
        write_private(partial, content)
        rename_into_place(partial, path)


def replace_private(path: Path, content: bytes) -> None:
    """Puts a private file in the place of one that is there, or leaves that one.

    Raises:
        [`OSError`]: if it can't be written.
    """
    with partial_file(path) as partial:
        write_private(partial, content)
        partial.replace(path)
        sync(path.parent)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """The name of a file next to a place, to be made and then put there; nothing of it is left afterwards."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield partial
    finally:
        for ending in _SIDECARS:
            with suppress(OSError):
                partial.with_name(partial.name + ending).unlink(missing_ok=True)


def rename_into_place(partial: Path, path: Path) -> None:
    """Gives a complete file its name, and makes that durable.

    Raises:
        [`FileExistsError`]: if something has this name.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    partial.rename(path)
    sync(path.parent)


def unused_path(path: Path) -> Path:
    """This path, or one like it where there is nothing yet."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(place for place in chain([path], others) if not place.exists())


def remove_leftovers(path: Path) -> None:
    """Deletes what processes that were killed left when they wrote to a place. Nobody else may be writing to it."""
    endings = "|".join(map(re.escape, _SIDECARS))
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}({endings})")
    for found in path.parent.iterdir():
        if leftover.fullmatch(found.name) and not found.is_dir():
            found.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from making a vault in a folder, or from sealing its identity, at the same time. The lock
    is on the folder itself, so it leaves no file, and goes with its process.

    Raises:
        [`VaultError`]: if another one has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VaultError(
                f"Another process is making a vault in {folder}, or sealing its identity: try again when it has ended."
            ) from None
        except OSError:
            pass  # a disk that knows no locks
        yield
    finally:
        os.close(descriptor)
