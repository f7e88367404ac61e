"""Snapshots: everything that the issuers of a vault share, at one moment.

A row that this package would not have written is left out and reported; see [`hf_fingerprint.vault.row_validation`].
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.row_validation import (
    base_row_problem,
    copy_row_problem,
    issuer_problem,
    publication_problem,
    trigger_set_problem,
)
from hf_fingerprint.vault.rows import copy_fault, read_keyed_table, read_table
from hf_fingerprint.vault.schema import BASE_COLUMNS, COPY_COLUMNS, BaseRow
from hf_fingerprint.vault.store import Vault


TriggerSetRow = tuple[str, bytes, str]
TABLE_KEYS = {  # the shared tables with their keys; rows depend only on rows of earlier tables
    "bases": "base_id",
    "questions": "base_id",
    "copies": "copy_id",
    "bound": "copy_id",
    "publications": "copy_id",
    "issuers": "public_key",
}
ORDERED_TABLES = ("bases", "copies")  # the order of rows matters


class PublicationRow(NamedTuple):
    """A row of table `publications`."""

    copy_id: str
    repo: str
    state: str
    files: str
    revision: str | None
    account: str | None
    created: str


@dataclass(frozen=True)
class Snapshot:
    """The shared rows of a vault by key. Equality ignores the order of rows.

    Attributes:
        public_key (`str`): the public key of the tracing identity.
        bases (`dict[str, tuple]`): rows of table `bases`, model secrets included.
        copies (`dict[str, CopyRecord]`): the records of written copies.
        publications (`dict[str, PublicationRow]`): the publications of these copies.
        issuers (`dict[str, str]`): the issuers' names by public key; empty for removed issuers.
        trigger_sets (`dict[str, tuple]`): the trigger sets, as rows of table `questions`.
        answering (`dict[str, tuple]`): the copies that answer triggers, as rows of table `bound`.
        faults (`tuple[Fault, ...]`): the rows that were left out.
    """

    public_key: str
    bases: Mapping[str, BaseRow] = field(repr=False)
    copies: Mapping[str, CopyRecord] = field(repr=False)
    publications: Mapping[str, PublicationRow] = field(repr=False)
    issuers: Mapping[str, str]
    trigger_sets: Mapping[str, TriggerSetRow] = field(default_factory=dict, repr=False)
    answering: Mapping[str, tuple[str]] = field(default_factory=dict, repr=False)
    faults: tuple[Fault, ...] = field(default=(), repr=False, compare=False)

    def rows(self, table: str) -> Mapping[str, Any]:
        """The rows of a table of the database by key."""
        rows: Mapping[str, Any] = getattr(self, {"questions": "trigger_sets", "bound": "answering"}.get(table, table))
        return rows


def take_snapshot(vault: Vault) -> Snapshot:
    """A snapshot of a vault, at one moment, while other processes may issue."""
    with vault.connect() as connection:
        connection.execute("BEGIN")
        return read_snapshot(connection)


def read_snapshot(connection: sqlite3.Connection, tables: Collection[str] | None = None) -> Snapshot:
    """A snapshot of an open database, in the caller's transaction.

    Args:
        connection (`sqlite3.Connection`): the database. Its `text_factory` is set to [`as_text`].
        tables (collection of `str`, *optional*): the tables of an undamaged database. By default it has all tables
            and may be damaged.
    """
    connection.text_factory = as_text
    reader = _SnapshotReader(connection, tables)
    bases = reader.take("bases", BASE_COLUMNS, tuple, base_row_problem)
    missing = "belongs to a base that is missing or can't be used"

    def trigger_row_problem(row: TriggerSetRow) -> str | None:
        return trigger_set_problem(row, bases[row[0]][4]) if row[0] in bases else missing

    def copy_problem(record: CopyRecord) -> str | None:
        return copy_row_problem(record) or (None if record.base_id in bases else missing)

    trigger_sets = reader.take("questions", "base_id, content, seal", tuple, trigger_row_problem)
    copies = reader.take("copies", COPY_COLUMNS, lambda row: CopyRecord(*row), copy_problem)

    def reference_problem(copy_id: Any) -> str | None:
        return None if copy_id in copies else "belongs to a copy that is missing or can't be used"

    answering = reader.take("bound", "copy_id", tuple, lambda row: reference_problem(row[0]))
    published = reader.take(
        "publications",
        ", ".join(PublicationRow._fields),
        lambda row: PublicationRow(*row),
        lambda row: publication_problem(row) or reference_problem(row.copy_id),
    )
    issuers = reader.take("issuers", "public_key, name", tuple, lambda row: issuer_problem(*row))
    meta = dict(connection.execute("SELECT key, value FROM meta NOT INDEXED"))
    return Snapshot(
        public_key=meta.get("public_key", ""),
        bases=bases,
        trigger_sets=trigger_sets,
        copies=copies,
        answering=answering,
        publications=published,
        issuers=dict(issuers.values()),
        faults=tuple(reader.faults),
    )


def read_shared_table(connection: sqlite3.Connection, table: str, columns: str) -> tuple[list[Any], list[Fault]]:
    """The readable rows of a shared table, and faults for the others; see [`read_table`]."""
    return (read_table if table in ORDERED_TABLES else read_keyed_table)(connection, table, TABLE_KEYS[table], columns)


def insert_rows(connection: sqlite3.Connection, table: str, rows: Any) -> None:
    """Inserts rows into a table; each has a value for every column."""
    for row in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", tuple(row))


def as_text(content: bytes) -> str:
    """Text from a column; bytes that are not UTF-8 become surrogates, so that different values stay different."""
    return content.decode(errors="surrogateescape")


class _SnapshotReader:
    """Reads the rows of one database.

    Attributes:
        faults (`list[Fault]`): the rows that were left out.
        begun (`set[str]`): the ids of unfinished copies, which are not shared, nor what belongs to them.
    """

    def __init__(self, connection: sqlite3.Connection, tables: Collection[str] | None):
        self.faults: list[Fault] = []
        self.begun: set[Any] = set()
        self._connection, self._tables = connection, tables

    def take(
        self, table: str, columns: str, make: Callable[[Any], Any], find_problem: Callable[[Any], str | None]
    ) -> dict[str, Any]:
        """The valid rows of a table by key, which is the first column, as `make` makes them from their columns.

        They are read one at a time, so that a large invalid row is not kept in memory.
        """
        taken: dict[str, Any] = {}
        for values in self._rows(table, columns):
            row, key = make(values), values[0]
            if key in self.begun and table in ("bound", "publications"):
                continue
            if isinstance(row, CopyRecord) and row.state == "begun":
                self.begun.add(key)
                continue
            problem = "has a key that another row has" if key in taken else find_problem(row)
            if problem is None:
                taken[key] = row
            elif isinstance(row, CopyRecord):
                self.faults.append(copy_fault(row, problem))
            else:
                self.faults.append(Fault(table, short_repr(key), problem))
        return taken

    def _rows(self, table: str, columns: str) -> Iterable[tuple[Any, ...]]:
        if self._tables is None:
            rows, faults = read_shared_table(self._connection, table, columns)
            self.faults += faults
            return rows
        if table not in self._tables:
            return []
        order = "ORDER BY rowid" if table in ORDERED_TABLES else ""
        return self._connection.execute(f"SELECT {columns} FROM {table} NOT INDEXED {order}")
