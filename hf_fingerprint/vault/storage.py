"""What a vault's disk refuses, said as what it is: full, read-only, in use, out of reach, failing, or damaged.

Only damage calls for a backup. Everything else leaves the vault as it was, and the same command works once the disk
does. SQLite names some of it by side effects (a full disk may show as an I/O error of the log's index), so the disk is
asked too.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.errors import StorageError, VaultError


WAIT_SECONDS = 60.0  # for another process that writes
_READ_ONLY = frozenset([errno.EROFS, errno.EACCES, errno.EPERM])
_MIN_FREE_BYTES = 128 << 10  # SQLite's log and its index take this at once
FileSignature = tuple[int, int, int]


def database_error(database: Path, error: sqlite3.Error) -> VaultError:
    """The sentence for an error of SQLite.

    Args:
        database (`Path`): the vault's database.
        error (`sqlite3.Error`): what it raised.

    Returns:
        [`StorageError`] for what the disk refuses, a plain [`VaultError`] for damage and the rest.
    """
    code = getattr(error, "sqlite_errorcode", None)  # absent from what the module itself raises
    primary, folder = (code or 0) & 0xFF, database.parent
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return StorageError(f"{database} is in use by another process: run the command again when that has ended.")
    if primary == sqlite3.SQLITE_FULL:
        return disk_full_error(folder)
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        if not is_writable(database):
            return _not_writable_error(database, code)
        if is_disk_full(folder):
            return disk_full_error(folder)
        if primary == sqlite3.SQLITE_READONLY:
            return _read_only_error(database)
        name = getattr(error, "sqlite_errorname", primary)  # the rights are there, so a file found no room, or worse
        return StorageError(
            f"The disk of {folder} is full or failing ({error}, {name}): make room there, see that it is whole, and "
            f"run the same command again."
        )
    return VaultError(f"{database} can't be used as a vault ({error}): restore a backup.")


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether SQLite found that a part of the database is not what it wrote."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_CORRUPT


def file_error(what: str, place: Path, error: OSError) -> VaultError:
    """The sentence for a file or folder that can't be written.

    Args:
        what (`str`): what can't be done, as the start of a sentence.
        place (`Path`): the folder.
        error (`OSError`): the reason.
    """
    if is_disk_full_error(error):
        return disk_full_error(place)
    if error.errno in _READ_ONLY:
        return StorageError(f"{what} ({error.strerror}): {place} is read-only, so make it writable or choose another.")
    return VaultError(f"{what} ({error.strerror}): choose another folder.")


@contextmanager
def translate_disk_errors(what: str, place: Path) -> Iterator[None]:
    """Says in a sentence what the disk has against a file or folder; see [`file_error`]."""
    try:
        yield
    except OSError as error:
        raise file_error(what, place, error) from None


def is_disk_full(folder: Path) -> bool:
    """Whether the disk of a folder has hardly any room left, or no room for another file."""
    try:
        disk = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return disk.f_bavail * disk.f_frsize < _MIN_FREE_BYTES or (disk.f_files > 0 and disk.f_favail == 0)


def is_writable(database: Path) -> bool:
    """Whether a database, there or not, and the files that SQLite keeps next to it can be written."""
    database = database.resolve()
    there = os.path.lexists(database)
    return _has_access(database.parent, os.W_OK | os.X_OK) and (not there or _has_access(database, os.W_OK))


def database_uri(database: Path) -> tuple[str, FileSignature | None]:
    """The URI that SQLite opens a database by, and for one that is opened as unchangeable, what it is like now.

    A database with a log is read with the help of two files next to it, which must be made first if they are not
    there. Where nothing may be made, SQLite reads the database alone if it is told that nobody changes it
    (`immutable`). That is so only if there is no log: one that holds something belongs to the content, and then SQLite
    reads both (`mode=ro`), or refuses. Somebody else, with the right to, may still start to write after that look, so
    the caller compares what the database is like before and after.
    """
    database = database.resolve()
    uri = database.as_uri()
    if is_writable(database):
        return f"{uri}?mode=rw", None
    if has_log(database):
        return f"{uri}?mode=ro", None
    return f"{uri}?mode=ro&immutable=1", file_signature(database)


def has_log(database: Path) -> bool:
    """Whether there is a log or a journal next to a database that holds something."""
    database = database.resolve()
    for ending in ("-wal", "-journal"):
        try:
            if database.with_name(database.name + ending).stat().st_size:
                return True
        except OSError:
            continue
    return False


def file_signature(database: Path) -> FileSignature | None:
    """What changes when a database's file does; `None` if there is none."""
    try:
        found = database.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(database: Path, before: FileSignature | None) -> None:
    """Refuses what was read from a database as unchangeable if it changed meanwhile; `None` if it wasn't opened so.

    Raises:
        [`StorageError`]: if it was.
    """
    if before is not None and (file_signature(database) != before or has_log(database)):
        raise StorageError(f"{database} was changed while it was read: run the command again.")


def _has_access(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _not_writable_error(database: Path, code: int | None) -> StorageError:
    if not _has_access(database, os.R_OK):
        return _no_access_error(database)
    if code != sqlite3.SQLITE_READONLY and has_log(database):  # that code alone is an attempt to write
        return StorageError(
            f"The vault {database.parent} is read-only, and its last changes are in a log that can be read only where "
            f"it can be written: copy the folder elsewhere, {database.name}-wal included."
        )
    return _read_only_error(database)


def _read_only_error(database: Path) -> StorageError:
    return StorageError(
        f"The vault {database.parent} is read-only: it can be listed and traced with; to change it, make the folder "
        f"and {database.name} writable, or copy the folder elsewhere."
    )


def _no_access_error(database: Path) -> StorageError:
    return StorageError(
        f"{database} can't be opened here: give yourself the right to read and write it, and the folder's other files."
    )
