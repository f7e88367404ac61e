"""Reads the database of another vault as untrusted input.

Packs and folders are handled alike: the file's bytes, up to a limit, become a read-only database in memory. It is
refused as a whole if it is damaged, has another schema (a view or virtual table in place of a table would run code),
has an unknown format, or takes too long to read. Otherwise each row enters or is refused on its own; see
[`read_snapshot`].

The other vault's folder is never written to or upgraded. Formats 1 and 2 are read directly, since they only lack
tables.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from hf_fingerprint.checkpoints.contents import SQLITE, VAULT_DATABASE
from hf_fingerprint.checkpoints.limits import MAX_PACK, megabytes, read_bounded
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.migrations import UPGRADABLE
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.sealing import check_public_key
from hf_fingerprint.vault.snapshots import TABLE_KEYS, Snapshot, as_text, read_snapshot


MAX_STEPS = 200_000_000  # of SQLite's virtual machine: some seconds; a vault of 100,000 records takes 3 million
_STEPS_AT_ONCE = 100_000
_PAGES_AT_ONCE = 256
_ATTEMPTS = 3
_TABLES_ADDED_LATER = {"1": ("publications", "issuers", "questions", "bound"), "2": ("questions", "bound")}
_PLAIN_SCHEMA = re.compile(r"CREATE (TABLE|INDEX|UNIQUE INDEX) ", re.IGNORECASE)  # no view, trigger or virtual table
_VALUE_CHECK = re.compile(r"[A-Z-]+ value in ")  # a violated constraint of a row, which is validated later
_MakeError = Callable[[str], VaultError]


def read_vault_folder(folder: str | Path) -> Snapshot:
    """The snapshot of the vault in another folder, which is not changed.

    If the database has a log that is not checkpointed (another process has it open, or was killed), SQLite reads both,
    and may leave its index of the log, `vault.db-shm`, next to it.

    Args:
        folder (`str` or `Path`): the other vault's folder.

    Raises:
        [`VaultError`]: if there is no vault that can be read. Unusable rows are in [`Snapshot.faults`].
    """
    folder = Path(folder)
    file = folder / VAULT_DATABASE
    if not file.is_file():
        raise VaultError(f"{folder} holds no vault: give the folder that has {VAULT_DATABASE}.")

    def make_error(why: str) -> VaultError:
        return VaultError(f"{file} can't be merged, {why}: restore a backup of that vault.")

    with _memory_database(make_error) as connection:
        try:
            content = _read_stable(file)
        except OSError as error:
            raise VaultError(f"{file} can't be read ({error.strerror}): give this account access to it.") from None
        if content is None:
            _back_up_into(file, connection)
        else:
            _load_bytes(connection, content)
        del content
        return _read_database(connection, make_error, str(folder), allow_other_tables=True)


def read_pack(content: bytes, where: str) -> Snapshot:
    """The snapshot in a decrypted pack.

    Args:
        content (`bytes`): the pack's database.
        where (`str`): the name of the pack in messages.
    """

    def make_error(why: str) -> VaultError:
        return VaultError(
            f"The pack {where} does not hold a complete vault ({why}): restore an earlier commit of it, or push again."
        )

    with _memory_database(make_error) as connection:
        if not content.startswith(SQLITE):
            raise make_error("it is not a database")
        _load_bytes(connection, content)
        return _read_database(connection, make_error, where, allow_other_tables=False)


@contextmanager
def _memory_database(make_error: _MakeError) -> Iterator[sqlite3.Connection]:
    """An empty database in memory that runs no code from its content and stops after `MAX_STEPS`; turns SQLite's
    errors into ours."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        calls_left = MAX_STEPS // _STEPS_AT_ONCE

        def stop() -> bool:
            nonlocal calls_left
            calls_left -= 1
            return calls_left < 0

        connection.set_progress_handler(stop, _STEPS_AT_ONCE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_PACK)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1 << 20)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.text_factory = as_text
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "ignore_check_constraints = ON"):
            connection.execute(f"PRAGMA {pragma}")
        try:
            yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite quotes a schema that is not text
            interrupted = "interrupted" in str(error)
            raise make_error("it takes too long to read" if interrupted else "it is damaged") from None


def _load_bytes(connection: sqlite3.Connection, content: bytes) -> None:
    """Loads a database file into memory, out of WAL mode, which a database in memory can't have."""
    if content[18:20] != b"\x01\x01":
        content = content[:18] + b"\x01\x01" + content[20:]
    connection.deserialize(content)


def _read_stable(file: Path) -> bytes | None:
    """The bytes of a database, or `None` if it has a log or keeps changing."""
    for _ in range(_ATTEMPTS):
        before = _file_state(file)
        if before[-1]:
            return None
        content = read_bounded(file, MAX_PACK, "a vault that is merged", VaultError)
        if _file_state(file) == before:
            if not content.startswith(SQLITE):
                raise sqlite3.DatabaseError("file is not a database")
            return content
    return None


def _file_state(file: Path) -> tuple[int, int, int]:
    """The modification time and size of a database, and the size of its log."""
    found, log = file.stat(), Path(f"{file}-wal")
    return found.st_mtime_ns, found.st_size, log.stat().st_size if log.is_file() else 0


def _back_up_into(file: Path, connection: sqlite3.Connection) -> None:
    """Copies a database with its log into memory through a read-only connection."""

    def watch(status: int, remaining: int, total: int) -> None:
        if total * page > MAX_PACK:
            raise VaultError(f"{file} has over {megabytes(MAX_PACK)} MB and can't be merged: trace with that vault.")

    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as source:
        (page,) = source.execute("PRAGMA page_size").fetchone()
        source.backup(connection, pages=_PAGES_AT_ONCE, progress=watch)


def _read_database(
    connection: sqlite3.Connection, make_error: _MakeError, where: str, allow_other_tables: bool
) -> Snapshot:
    schema = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    tables = {name for name, sql in schema if isinstance(sql, str) and sql.upper().startswith("CREATE TABLE ")}
    plain = all(sql is None or _PLAIN_SCHEMA.match(str(sql)) for _, sql in schema)  # automatic indexes have no SQL
    own = _vault_tables()
    if not plain or "meta" not in tables or _columns(connection, "meta") != own["meta"]:
        raise make_error("its tables are not those of a vault")
    meta = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('format', 'public_key')"))
    found = meta.get("format")
    if found not in (str(FORMAT), *UPGRADABLE):
        if found is None:
            raise make_error("it has no format")
        raise VaultError(
            f"The vault in {where} has format {short_repr(found)} and this version reads {FORMAT}: upgrade "
            f"hf-fingerprint everywhere, and push again."
        )
    needed = own.keys() - _TABLES_ADDED_LATER.get(found, ()) - {"training"}  # format 1 made `training` when needed
    more = tables - needed - {"training"} if not allow_other_tables else set()
    fitting = all(_columns(connection, table) == own[table] for table in tables & own.keys())
    if needed - tables or more or not fitting:
        raise make_error("its tables are not those of a vault")
    for (line,) in connection.execute("PRAGMA quick_check(1000000)"):
        if line != "ok" and not _VALUE_CHECK.match(line):
            raise make_error("it is damaged")
    try:
        check_public_key(str(meta.get("public_key")))
    except VaultError:
        raise make_error("it has no tracing identity's public key") from None
    return read_snapshot(connection, TABLE_KEYS.keys() & tables)


def _columns(connection: sqlite3.Connection, table: str) -> tuple[tuple[str, str, int], ...]:
    """The columns of a table, with those that SQLite generates."""
    found = connection.execute(f"PRAGMA main.table_xinfo({table})")
    return tuple((name, kind, hidden) for _, name, kind, _, _, _, hidden in found)


@cache
def _vault_tables() -> dict[str, tuple[tuple[str, str, int], ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: _columns(connection, name) for name in names}
