"""The vault's SQLite file and the files beside it: made, found, checked, connected to."""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from hf_fingerprint.checkpoints.contents import SQLITE, VAULT_DATABASE
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.forgetting import catch_up
from hf_fingerprint.vault.places import check_new_vault
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.sealing import check_public_key
from hf_fingerprint.vault.upgrading import UPGRADABLE, upgrade


DATABASE = VAULT_DATABASE
IDENTITY = "identity.age"
_WAIT_SECONDS = 60.0


def identity_name(kind: str, public_key: str) -> str:
    """The file name of a vault's `"new"` or `"old"` tracing identity."""
    return f"identity-{kind}-{public_key.removeprefix('age1')[:8]}.age"


class Database:
    """An existing vault's files.

    Args:
        folder (`str` or `Path`): the vault's folder.

    Raises:
        [`VaultError`]: if there is no vault, it is damaged, or its format is newer than this version reads.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.is_file():
            raise VaultError(
                f"{self.folder} is a file and not a vault's folder: give the folder with {DATABASE}; marking needs no "
                f"identity, and a tracing identity does not belong here."
            )
        if not (self.folder / DATABASE).is_file():
            raise VaultError(f"{self.folder} holds no vault: make one with `hf-fingerprint vault init {self.folder}`.")
        if _first_bytes(self.folder / DATABASE) != SQLITE:
            raise VaultError(f"{self.folder / DATABASE} is not a vault's database: restore a backup.")
        with self.connect() as connection:
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            if meta.get("format") in UPGRADABLE:
                upgrade(connection)
                meta = dict(connection.execute("SELECT key, value FROM meta"))
        if meta.get("format") != str(FORMAT):
            raise VaultError(
                f"{self.folder} has vault format {ascii(meta.get('format'))[:80]} and this version reads {FORMAT}: "
                f"upgrade hf-fingerprint."
            )
        if "public_key" not in meta:
            raise VaultError(f"{self.folder / DATABASE} lacks the vault's public key: restore a backup.")
        self.public_key = meta["public_key"]
        with self.connect() as connection:
            catch_up(connection, meta)

    @classmethod
    def make(cls, folder: Path, public_key: str, locked: bytes | None) -> Self:
        """Makes an empty vault, with its locked identity if that is to lie there.

        Raises:
            [`VaultError`]: if the folder is a model's or lies in one, or can't be made.
        """
        check_public_key(public_key)
        check_new_vault(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if locked is not None:
                write_private(folder / IDENTITY, locked)
            partial = folder / f".{DATABASE}.{secrets.token_hex(4)}"
            write_private(partial, b"")
            connection = sqlite3.connect(partial)
            try:
                connection.execute("PRAGMA journal_mode = WAL")  # stays with the file
                connection.executescript(TABLES)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)", [("format", str(FORMAT)), ("public_key", public_key)]
                )
                connection.commit()
            finally:
                connection.close()
            partial.rename(folder / DATABASE)
        except OSError as error:
            raise VaultError(f"A vault can't be made in {folder} ({error.strerror}): choose another folder.") from None
        return cls(folder)

    @contextmanager
    def connect(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection to the database, each statement a transaction of its own.

        Args:
            durable (`bool`, *optional*, defaults to `True`): whether a change is on the disk when its statement ends;
                `False` for what the next run finds out again if the power fails.
        """
        try:
            connection = sqlite3.connect(
                self.folder / DATABASE, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                connection.execute("PRAGMA foreign_keys = ON")
                yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise VaultError(
                f"{self.folder / DATABASE} can't be used as a vault ({error}): restore a backup."
            ) from None

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """While it lasts, a change costs one write to the disk and not several: the journal is not folded into the
        database whenever a connection ends."""
        with self.connect() as connection:
            connection.execute("SELECT count(*) FROM meta").fetchone()  # only now is the journal opened
            yield


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(SQLITE))
    except OSError as error:
        raise VaultError(f"{path} can't be read ({error.strerror}): restore it.") from None


def write_private(path: Path, content: bytes) -> None:
    """Writes a new file for its owner's eyes only, and sees it on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
