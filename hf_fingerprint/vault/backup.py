"""Whole copies of a vault's database: the backup that a user makes, and the original that an upgrade leaves behind.

Copying `vault.db` alone loses the changes that are in its log. SQLite's backup reads both, at one moment, while others
go on working. A copy holds all that the database does, model secrets and the keys of trainings under way included, and
not the tracing identity.
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
        file (`Path`): the new file, outside of every model's folder.

    Raises:
        [`VaultError`]: if the file exists or can't be written, or the vault is damaged.
    """
    check_outside_models(file.parent)
    if file.exists():
        raise VaultError(f"{file} exists already: choose another name for the backup.")
    try:
        remove_leftovers(file)
        with _verified_copy(folder / VAULT_DATABASE, file) as partial:
            _check_integrity(partial, folder / VAULT_DATABASE)
            rename_into_place(partial, file)
    except FileExistsError:
        raise VaultError(f"{file} exists already: choose another name for the backup.") from None
    except OSError as error:
        raise file_error(f"{file} can't be written", file.parent, error) from None


def check_upgradable(database: Path, found: str) -> None:
    """Refuses to upgrade a vault of an earlier format where it can't be written.

    Raises:
        [`StorageError`]: if it can't.
    """
    if not is_writable(database):
        raise StorageError(
            f"{database.parent} has vault format {found} and is read-only, and opening it would upgrade it: copy the "
            f"folder to where it can be written."
        )


def keep_original(folder: Path, found: str) -> None:
    """Copies a database of an earlier format to a file next to it, `vault.db.format-1`, before it is upgraded; once,
    also if the upgrade is cut off and begins anew. Another original that has this name keeps it.

    Raises:
        [`VaultError`]: if it can't be written; then the vault must stay as it is.
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
        f"{folder} is upgraded from vault format {found}; {original} keeps it as it was, secrets included: delete it "
        f"once no earlier version of hf-fingerprint needs it.",
        FingerprintWarning,
        stacklevel=2,
    )


@contextmanager
def _verified_copy(database: Path, target: Path) -> Iterator[Path]:
    """A whole copy of a database, synced, next to the place that it is for."""
    with partial_file(target) as partial:
        write_private(partial, b"")
        try:
            _copy_database(database, partial)
        except sqlite3.DatabaseError as error:
            refusal = database_error(target, error)
            raise refusal if isinstance(refusal, StorageError) else database_error(database, error) from None
        sync(partial)
        yield partial


def _copy_database(database: Path, partial: Path) -> None:
    uri, signature_before = database_uri(database)
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS)) as source,
        closing(sqlite3.connect(partial, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA journal_mode = OFF")  # nobody sees it before it is whole
        target.execute("PRAGMA synchronous = OFF")  # and it is synced as one file then
        source.backup(target)
    check_unchanged(database, signature_before)


def _check_integrity(partial: Path, database: Path) -> None:
    """Refuses a copy that is not whole; it is as good as what it was made from."""
    with closing(sqlite3.connect(f"{partial.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        try:
            found = [line for (line,) in copy.execute("PRAGMA integrity_check(1)")]
        except sqlite3.DatabaseError as error:
            raise database_error(database, error) from None
    if found != ["ok"]:
        raise VaultError(
            f"{database} is damaged, so no backup is made of it: restore an earlier one, or copy the folder as it is."
        )
