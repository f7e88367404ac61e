"""The vault's SQLite file: finds it, checks its format and connects to it."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from hf_fingerprint.checkpoints.contents import SQLITE, VAULT_DATABASE
from hf_fingerprint.errors import VaultError
from hf_fingerprint.printable import printable
from hf_fingerprint.vault.backup import check_upgradable, keep_original
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.migrations import UPGRADABLE, upgrade
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.secure_delete import wipe_leftovers
from hf_fingerprint.vault.storage import WAIT_SECONDS, check_unchanged, database_error, database_uri, is_writable


DATABASE = VAULT_DATABASE
IDENTITY = "identity.age"
_TABLES = frozenset(re.findall(r"CREATE TABLE (\w+)", TABLES))


def identity_name(kind: str, public_key: str) -> str:
    """The file name of a vault's `"new"` or `"old"` tracing identity."""
    return f"identity-{kind}-{public_key.removeprefix('age1')[:8]}.age"


class Database:
    """An existing vault's database.

    Args:
        folder (`str` or `Path`): the vault's folder.

    Attributes:
        public_key (`str`): the public key of the tracing identity; empty if it is lost.
        meta_faults (`list[Fault]`): what is wrong with table `meta`.

    Raises:
        [`VaultError`]: if there is no vault, it is damaged, or its format is newer than this version reads.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.is_file():
            raise VaultError(
                f"{self.folder} is a file, not a vault's folder: give the folder with {DATABASE}. Marking copies "
                f"needs no tracing identity."
            )
        if not (self.folder / DATABASE).is_file():
            raise VaultError(f"{self.folder} holds no vault: run `hf-fingerprint vault init {self.folder}` for one.")
        if _first_bytes(self.folder / DATABASE) != SQLITE:
            raise VaultError(f"{self.folder / DATABASE} is not a vault's database: restore a backup.")
        with self.connect() as connection:
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            if meta.get("format") in UPGRADABLE:
                check_upgradable(self.folder / DATABASE, meta["format"])
                upgrade(connection, partial(keep_original, self.folder))
                meta = dict(connection.execute("SELECT key, value FROM meta"))
            has_all_tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")} >= _TABLES
        self.meta_faults: list[Fault] = []
        found = str(meta.get("format"))
        if found != str(FORMAT):
            if found.isdecimal() or not has_all_tables:
                raise VaultError(
                    f"{self.folder} has vault format {printable(found[:20])} and this version reads {FORMAT}: upgrade "
                    f"hf-fingerprint."
                )
            self.meta_faults.append(Fault("meta", "format", "was changed"))
        self.public_key = str(meta.get("public_key", ""))
        if not self.public_key:
            self.meta_faults.append(Fault("meta", "public key", "is missing, so no copy can be marked"))
        with self.connect() as connection:
            wipe_leftovers(connection, meta)

    @contextmanager
    def connect(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection to the database in autocommit mode.

        Args:
            durable (`bool`, *optional*, defaults to `True`): whether a change is on the disk when its statement ends.
                `False` is for what the next run can recover after a power failure.

        Raises:
            [`StorageError`]: if the disk is full, read-only or in use; see [`database_error`].
            [`VaultError`]: if the database is damaged.
        """
        database = self.folder / DATABASE
        uri, signature_before = database_uri(database)
        try:
            connection = sqlite3.connect(uri, WAIT_SECONDS, uri=True, isolation_level=None, check_same_thread=False)
            with closing(connection):
                try:
                    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                except UnicodeDecodeError:  # SQLite quotes a schema that is not text
                    raise VaultError(f"{database} can't be used as a vault (damaged): restore a backup.") from None
                connection.execute("PRAGMA foreign_keys = ON")
                connection.text_factory = _decode_text
                yield connection
        except sqlite3.DatabaseError as error:
            check_unchanged(database, signature_before)
            raise database_error(database, error) from None
        check_unchanged(database, signature_before)

    @contextmanager
    def keep_open(self) -> Iterator[None]:
        """Makes changes cheaper while it is open: SQLite doesn't checkpoint the log whenever a connection closes."""
        if not is_writable(self.folder / DATABASE):
            yield
            return
        with self.connect() as connection:
            connection.execute("SELECT count(*) FROM meta").fetchone()  # a first query opens the log
            yield


def _decode_text(value: bytes) -> str:
    """Text from a column. Bytes that are not UTF-8 are replaced, so that the row can be read."""
    return value.decode(errors="replace")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(SQLITE))
    except OSError as error:
        raise VaultError(f"{path} can't be read ({error.strerror}): get access to it, or restore a backup.") from None
