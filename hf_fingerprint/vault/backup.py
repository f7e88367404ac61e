"""Complete copies of a vault's database: a user's backup, and the original that an upgrade keeps.

Copying `vault.db` alone loses the changes in its write-ahead log. SQLite's backup reads both at one moment, while
other processes continue. A backup holds everything in the database, including model secrets and the keys of copies in
training, but not the tracing identity.
"""

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from filecmp import cmp
from pathlib import Path

from hf_fingerprint.checkpoints import sync
from hf_fingerprint.checkpoints.contents import VAULT_DATABASE
from hf_fingerprint.errors import FingerprintWarning, StorageError, VaultError
from hf_fingerprint.vault.locations import check_outside_models
from hf_fingerprint.vault.private_files import (
    partial_file,
    remove_leftovers,
    rename_into_place,
    unused_path,
    write_private,
)
from hf_fingerprint.vault.storage import (
    WAIT_SECONDS,
    check_unchanged,
    database_error,
    database_uri,
    file_error,
    is_writable,
)


def back_up(folder: Path, file: Path) -> None:
    """Copies a vault's database to a new file, and checks the copy.

    Args:
        folder (`Path`): the vault's folder.
        file (`Path`): the new file, outside every model folder.

    Raises:
        [`VaultError`]: if the file exists or can't be written, or the vault is damaged.
    """
    check_outside_models(file.parent)
    already_there = f"{file} already exists: choose another name for the backup."
    if file.exists():
        raise VaultError(already_there)
    try:
        remove_leftovers(file)
        with _verified_copy(folder / VAULT_DATABASE, file) as partial:
            _check_integrity(partial, folder / VAULT_DATABASE)
            rename_into_place(partial, file)
    except FileExistsError:
        raise VaultError(already_there) from None
    except OSError as error:
        raise file_error(f"{file} can't be written", file.parent, error) from None


def check_upgradable(database: Path, found: str) -> None:
    """Raises a [`StorageError`] if a vault of an earlier format is read-only, since opening it upgrades it."""
    if not is_writable(database):
        raise StorageError(
            f"{database.parent} has vault format {found}, which must be upgraded, but is read-only: copy the folder "
            f"to a place that you can write to."
        )


def keep_original(folder: Path, found: str) -> None:
    """Copies a database of an earlier format to `vault.db.format-1` next to it, before an upgrade.

    A repeated upgrade makes no second copy of the same content, and never overwrites another file.

    Raises:
        [`VaultError`]: if the copy can't be written; then the vault must not be upgraded.
    """
    original = folder / f"{VAULT_DATABASE}.format-{found}"
    try:
        remove_leftovers(original)
        with _verified_copy(folder / VAULT_DATABASE, original) as partial:
            if original.is_file() and cmp(partial, original, shallow=False):
                return
            original = unused_path(original)
            rename_into_place(partial, original)
    except OSError as error:
        raise file_error(f"{original} can't be written, so the vault is not upgraded", folder, error) from None
    warnings.warn(
        f"{folder} is upgraded from vault format {found}; {original} keeps the original with its secrets: delete it "
        f"once no earlier version of hf-fingerprint needs it.",
        FingerprintWarning,
        stacklevel=2,
    )


@contextmanager
def _verified_copy(database: Path, target: Path) -> Iterator[Path]:
    """A complete, synced copy of a database under a temporary name next to the target."""
    with partial_file(target) as partial:
        write_private(partial, b"")
        try:
            _copy_database(database, partial)
        except sqlite3.DatabaseError as error:
            disk_error = database_error(target, error)
            raise disk_error if isinstance(disk_error, StorageError) else database_error(database, error) from None
        sync(partial)
        yield partial


def _copy_database(database: Path, partial: Path) -> None:
    uri, signature_before = database_uri(database)
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS)) as source,
        closing(sqlite3.connect(partial, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA journal_mode = OFF")  # an incomplete copy is deleted
        target.execute("PRAGMA synchronous = OFF")  # the complete file is synced once
        source.backup(target)
    check_unchanged(database, signature_before)


def _check_integrity(partial: Path, database: Path) -> None:
    """Raises an error if the copy is damaged, which means that the original is."""
    with closing(sqlite3.connect(f"{partial.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        try:
            found = [line for (line,) in copy.execute("PRAGMA integrity_check(1)")]
        except sqlite3.DatabaseError as error:
            raise database_error(database, error) from None
    if found != ["ok"]:
        raise VaultError(f"{database} is damaged, so no backup is made: restore an earlier one, or copy the folder.")
