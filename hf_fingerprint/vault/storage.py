"""Turns errors of SQLite and the file system into ours: disk full, read-only, in use, no access, failing, or damaged.

Only damage calls for a backup. All other errors leave the vault unchanged, and the same command works once the disk
does. SQLite reports some of them indirectly (a full disk may appear as an I/O error of the log's index), so the file
system is checked too.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.errors import StorageError, VaultError


WAIT_SECONDS = 60.0  # for another process to finish writing
_READ_ONLY = frozenset([errno.EROFS, errno.EACCES, errno.EPERM])
_MIN_FREE_BYTES = 128 << 10  # the initial size of SQLite's log and its index
FileSignature = tuple[int, int, int]


def database_error(database: Path, error: sqlite3.Error) -> VaultError:
    """The error to raise for SQLite's error about a database: a [`StorageError`] for problems of the disk, else a
    [`VaultError`]."""
    primary, folder = _primary_code(error), database.parent
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return StorageError(f"{database} is in use by another process: wait until it ends, then try again.")
    if primary == sqlite3.SQLITE_FULL:
        return disk_full_error(folder)
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        if not is_writable(database):
            return _not_writable_error(database, error)
        if is_disk_full(folder):
            return disk_full_error(folder)
        if primary == sqlite3.SQLITE_READONLY:
            return _read_only_error(database)
        name = getattr(error, "sqlite_errorname", primary)
        return StorageError(
            f"The disk of {folder} is full or failing ({error}, {name}): make room, check the disk, and run the same "
            f"command again."
        )
    return VaultError(f"{database} can't be used as a vault ({error}): restore a backup.")


class suppress_damage:
    """Ends the context without an error if SQLite finds within it that the database is damaged."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, sqlite3.DatabaseError) and _primary_code(error) == sqlite3.SQLITE_CORRUPT


def file_error(what: str, place: Path, error: OSError) -> VaultError:
    """The error to raise for a file in `place` that can't be written; the message starts with `what`."""
    if is_disk_full_error(error):
        return disk_full_error(place)
    if error.errno in _READ_ONLY:
        return StorageError(f"{what} ({error.strerror}): {place} is read-only, so make it writable or choose another.")
    return VaultError(f"{what} ({error.strerror}): choose another folder.")


@contextmanager
def translate_disk_errors(what: str, place: Path) -> Iterator[None]:
    """Turns an `OSError` within the context into one of our errors; see [`file_error`]."""
    try:
        yield
    except OSError as error:
        raise file_error(what, place, error) from None


def is_disk_full(folder: Path) -> bool:
    """Whether the disk of a folder has hardly any free space, or no free inode."""
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return disk.f_bavail * disk.f_frsize < _MIN_FREE_BYTES or (disk.f_files > 0 and disk.f_favail == 0)


def is_writable(database: Path) -> bool:
    """Whether a database, which may not exist yet, and the files that SQLite keeps next to it can be written."""
    database = database.resolve()
    exists = os.path.lexists(database)
    return _has_access(database.parent, os.W_OK | os.X_OK) and (not exists or _has_access(database, os.W_OK))


def database_uri(database: Path) -> tuple[str, FileSignature | None]:
    """The URI to open a database with, and its signature if it is opened as immutable.

    SQLite reads a database in WAL mode through two files next to it, which it creates if they are missing. If the
    folder is read-only, SQLite can read the database file alone, as `immutable`. That is correct only if the log is
    missing or empty. Otherwise the log is part of the content, and SQLite must read both (`mode=ro`) or fail. Since a
    process with write access may still start to write, the caller must call [`check_unchanged`] afterwards.
    """
    database = database.resolve()
    uri = database.as_uri()
    if is_writable(database):
        return f"{uri}?mode=rw", None
    if has_log(database):
        return f"{uri}?mode=ro", None
    return f"{uri}?mode=ro&immutable=1", file_signature(database)


def has_log(database: Path) -> bool:
    """Whether a database has a log or journal that is not empty."""
    database = database.resolve()
    for ending in ("-wal", "-journal"):
        try:
            if database.with_name(database.name + ending).stat().st_size:
                return True
        except OSError:
            continue
    return False


def file_signature(database: Path) -> FileSignature | None:
    """The inode, size and modification time of a database's file; `None` if it doesn't exist."""
    try:
        found = database.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(database: Path, before: FileSignature | None) -> None:
    """Raises an error if a database that was opened as immutable has changed.

    Args:
        database (`Path`): the database.
        before (`tuple` or `None`): its signature from [`database_uri`]; `None` if it wasn't opened as immutable.

    Raises:
        [`StorageError`]: if it has changed.
    """
    if before is not None and (file_signature(database) != before or has_log(database)):
        raise StorageError(f"{database} changed while it was read: run the command again.")


def _has_access(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _primary_code(error: sqlite3.Error) -> int:
    """The code of an error of SQLite without its details; 0 for errors of Python's module, which have none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _not_writable_error(database: Path, error: sqlite3.Error) -> StorageError:
    if not _has_access(database, os.R_OK):
        return StorageError(f"{database} can't be opened: give yourself access to it and to the folder's other files.")
    is_plain = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY  # an attempt to write
    if not is_plain and has_log(database):
        return StorageError(
            f"The vault {database.parent} is read-only, and its last changes are in a log that SQLite can't read "
            f"there: copy the folder, including {database.name}-wal, to a place that you can write to."
        )
    return _read_only_error(database)


def _read_only_error(database: Path) -> StorageError:
    return StorageError(
        f"The vault {database.parent} is read-only, which allows listing and tracing: to change it, make the folder "
        f"and {database.name} writable, or copy the folder elsewhere."
    )
