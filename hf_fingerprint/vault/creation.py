"""A vault's folder, made so that a run that is cut off anywhere is completed by the same command.

The identity comes first, then the database, each written next to its place and given its name when it is complete. So
a folder holds nothing of a vault, an identity, or a vault. The folder may be there already and hold other things.
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
from hf_fingerprint.vault.storage import database_error, file_error


_LOGS = tuple(f"{DATABASE}-{kind}" for kind in ("wal", "journal"))


def unfinished_public_key(folder: Path, passphrase: str) -> str | None:
    """The public key of the identity that lies in a folder without a database: an earlier run was cut off before it
    made that. `None` if there is none.

    Raises:
        [`PassphraseError`]: if it doesn't open with this passphrase.
    """
    identity = folder / IDENTITY
    try:
        if identity.stat().st_size == 0:  # what earlier versions left behind; it never was an identity
            return None
    except OSError:
        return None
    try:
        return open_identity(identity, passphrase).public_key
    except PassphraseError as error:
        raise PassphraseError(
            f"{identity} is there already, so the vault would get this identity, but it can't be opened: give its "
            f"passphrase, or choose another folder ({str(error).rstrip('.')})."
        ) from None


def make_vault(folder: Path, public_key: str, sealed: bytes | None) -> None:
    """Makes an empty vault, or completes one.

    Args:
        folder (`Path`): a folder without a vault, there or not.
        public_key (`str`): of the tracing identity.
        sealed (`bytes` or `None`): the sealed identity, if it is to lie in the folder and does not yet.

    Raises:
        [`VaultError`]: if the folder holds a vault or the log of one, is a model's or lies in one, or the disk
            refuses.
    """
    check_public_key(public_key)
    check_outside_models(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with exclusive_lock(folder):
            for name in (DATABASE, IDENTITY):
                remove_leftovers(folder / name)
            check_no_vault(folder)
            if sealed is not None:
                _place_identity(folder / IDENTITY, sealed)
            _make_database(folder / DATABASE, public_key)
        sync(folder.parent)
    except OSError as error:
        raise file_error(f"A vault can't be made in {folder}", folder, error) from None


def check_no_vault(folder: Path) -> None:
    """Refuses a folder that holds a vault's database, or the log of one: SQLite would read it into a new database.

    Raises:
        [`VaultError`]: naming what is there.
    """
    if os.path.lexists(folder / DATABASE):
        raise VaultError(f"{folder} already holds a vault: it is left as it is; choose another folder.")
    for name in _LOGS:
        if os.path.lexists(folder / name):
            raise VaultError(
                f"{folder} holds {name}, the log of a vault whose {DATABASE} is gone: put that back, or move the log "
                f"away; nothing was changed."
            )


def _place_identity(identity: Path, sealed: bytes) -> None:
    if identity.is_file() and identity.stat().st_size == 0:
        identity.unlink()
    with partial_file(identity) as partial:
        write_private(partial, sealed)
        try:
            os.link(partial, identity)  # never takes another one's place, not even where there are no locks
        except FileExistsError:
            raise VaultError(f"{identity} was made by another process meanwhile: run the command again.") from None
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
                # the last step, since what a log holds is not in the file yet: on a full disk it would stay behind
                connection.execute("PRAGMA journal_mode = WAL")  # stays with the file
                connection.execute("SELECT count(*) FROM meta").fetchone()  # there is room for what opening it takes
        except sqlite3.DatabaseError as error:
            raise database_error(database, error) from None
        sync(partial)
        rename_into_place(partial, database)
