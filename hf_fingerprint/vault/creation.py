"""Creates a vault's folder. If the command is interrupted, running it again completes the vault.

The identity is written first, then the database, each under a temporary name and renamed when it is complete. So a
folder holds no part of a vault, an identity only, or a vault. The folder may exist and hold other files.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.vault.database import DATABASE, IDENTITY
from hf_fingerprint.vault.locations import check_outside_models
from hf_fingerprint.vault.private_files import (
    exclusive_lock,
    partial_file,
    remove_leftovers,
    rename_into_place,
    write_private,
)
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.sealing import check_public_key, open_identity
from hf_fingerprint.vault.storage import database_error, translate_disk_errors


_LOGS = tuple(f"{DATABASE}-{kind}" for kind in ("wal", "journal"))


def unfinished_public_key(folder: Path, passphrase: str) -> str | None:
    """The public key of an identity in a folder without a database, which an interrupted run left; `None` if there is
    none.

    Raises:
        [`PassphraseError`]: if the identity doesn't open with this passphrase.
    """
    identity = folder / IDENTITY
    try:
        if identity.stat().st_size == 0:  # earlier versions could leave an empty file
            return None
    except OSError:
        return None
    try:
        return open_identity(identity, passphrase).public_key
    except PassphraseError as error:
        raise PassphraseError(
            f"{identity} already exists, so the vault would use this identity, but it can't be opened: give its "
            f"passphrase, or choose another folder ({str(error).rstrip('.')})."
        ) from None


def make_vault(folder: Path, public_key: str, sealed: bytes | None) -> None:
    """Creates an empty vault, or completes an interrupted one.

    Args:
        folder (`Path`): a folder without a vault; created if it doesn't exist.
        public_key (`str`): the public key of the tracing identity.
        sealed (`bytes` or `None`): the sealed identity to write into the folder, if any.

    Raises:
        [`VaultError`]: if the folder holds a vault or the log of one, is in a model folder, or can't be written.
    """
    check_public_key(public_key)
    check_outside_models(folder)
    with translate_disk_errors(f"A vault can't be created in {folder}", folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive_lock(folder):
            for name in (DATABASE, IDENTITY):
                remove_leftovers(folder / name)
            check_no_vault(folder)
            if sealed is not None:
                _place_identity(folder / IDENTITY, sealed)
            _make_database(folder / DATABASE, public_key)
        sync(folder.parent)


def check_no_vault(folder: Path) -> None:
    """Raises a [`VaultError`] if a folder holds a vault's database, or the log of one, which SQLite would apply to a
    new one."""
    if os.path.lexists(folder / DATABASE):
        raise VaultError(f"{folder} already holds a vault, which was not changed: choose another folder.")
    for name in _LOGS:
        if os.path.lexists(folder / name):
            raise VaultError(
                f"{folder} holds {name}, the log of a vault whose {DATABASE} is missing: restore that file, or move "
                f"the log away; nothing was changed."
            )


def _place_identity(identity: Path, sealed: bytes) -> None:
    if identity.is_file() and identity.stat().st_size == 0:
        identity.unlink()
    with partial_file(identity) as partial:
        write_private(partial, sealed)
        try:
            os.link(partial, identity)  # never overwrites a file, even on disks without locks
        except FileExistsError:
            raise VaultError(f"{identity} was made by another process at the same time: try again.") from None
        except OSError:
            rename_into_place(partial, identity)  # a disk without links
    sync(identity.parent)


def _make_database(database: Path, public_key: str) -> None:
    with partial_file(database) as partial:
        write_private(partial, b"")
        try:
            with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(f"BEGIN; {TABLES}")
                meta = [("format", str(FORMAT)), ("public_key", public_key)]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
                connection.execute("COMMIT")
                # last, since on a full disk the content of a log might never reach the file
                connection.execute("PRAGMA journal_mode = WAL")  # stored in the file
                connection.execute("SELECT count(*) FROM meta").fetchone()  # fails if a log doesn't fit on the disk
        except sqlite3.DatabaseError as error:
            raise database_error(database, error) from None
        sync(partial)
        rename_into_place(partial, database)
