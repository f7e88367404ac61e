"""Reads the vault's rows one by one, so that an unusable row is reported and the others stay usable.

The checks here need no identity; [`open_copies`] checks whether a record's seal opens.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from typing import Any

from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Base, CopyRecord
from hf_fingerprint.vault.schema import BASE_COLUMNS, COPY_COLUMNS, read_base
from hf_fingerprint.vault.storage import suppress_damage


BASE_ID_HASH_DIGITS = 8  # a base's id begins with so many of its content hash
MAX_NAMED = 1000
CHILD_TABLES = (
    ("questions", "base_id", "bases"),
    ("bundles", "base_id", "bases"),
    ("training", "copy_id", "copies"),
    ("publications", "copy_id", "copies"),
    ("bound", "copy_id", "copies"),
)
STATES = ("begun", "written", "issued")
FoundRows = tuple[list[Any], list[Fault]]  # the readable rows of a table, and faults for the others
_LOST = "can't be read: the disk or the file system lost it"
_TEXT, _OPTIONAL_TEXT = (str,), (str, type(None))
_COLUMN_TYPES = (*(_TEXT,) * 5, _OPTIONAL_TEXT, _OPTIONAL_TEXT, _TEXT, (bytes,))


@dataclass(frozen=True)
class VaultRows:
    """The usable bases and records of copies, in order, and the unusable rows.

    Attributes:
        bases (`list[Base]`): the bases.
        copies (`list[CopyRecord]`): records of copies of these bases.
        faults (`list[Fault]`): the unusable rows.
    """

    bases: list[Base]
    copies: list[CopyRecord]
    faults: list[Fault]

    def copies_of(self, base_id: str) -> list[CopyRecord]:
        """The records of a base's copies."""
        return [copy for copy in self.copies if copy.base_id == base_id]


def read_rows(connection: sqlite3.Connection) -> VaultRows:
    """All bases and records of copies, at one moment."""
    connection.execute("BEGIN")
    try:
        bases, bad_bases = read_usable_bases(connection)
        copies, faults = read_usable_copies(connection)
        faults += orphan_faults(connection)
    finally:
        with suppress(sqlite3.DatabaseError):  # nothing was written; a damaged database may fail here
            connection.execute("ROLLBACK")
    known = {base.base_id for base in bases}
    counts = Counter(copy.base_id for copy in copies if copy.base_id not in known)
    base_faults = [
        replace(bad, problem=f"{bad.problem}, so its {counts[bad.key]} copies can't be traced")
        if counts[bad.key]
        else bad
        for bad in bad_bases
    ]
    lost = {bad.key for bad in bad_bases}
    orphans = [copy for copy in copies if copy.base_id not in known and copy.base_id not in lost]
    faults += [copy_fault(copy, f"belongs to base {short_repr(copy.base_id)}, which is missing") for copy in orphans]
    return VaultRows(bases, [copy for copy in copies if copy.base_id in known], base_faults + faults)


def orphan_faults(connection: sqlite3.Connection) -> list[Fault]:
    """The rows that belong to missing bases or copies, which happens if a key was changed."""
    found = []
    for table, key, parent in CHILD_TABLES:
        with suppress_damage():
            statement = f"SELECT {key} FROM {table} WHERE {key} NOT IN (SELECT {key} FROM {parent}) LIMIT {MAX_NAMED}"
            orphans = connection.execute(statement)
            found += [Fault(table, short_repr(name), "belongs to no record") for (name,) in orphans]
            continue
        found.append(Fault(table, "(some, or more)", _LOST))
    return found


def read_usable_bases(connection: sqlite3.Connection) -> tuple[list[Base], list[Fault]]:
    """The usable bases, and the unusable rows."""
    rows, faults = read_table(connection, "bases", "base_id", BASE_COLUMNS)
    bases = []
    for row in rows:
        try:
            bases.append(read_base(row))
        except RowError as error:
            faults.append(error.fault)
    return bases, faults


def read_usable_copies(
    connection: sqlite3.Connection, where: str = "1", values: tuple[Any, ...] = ()
) -> tuple[list[CopyRecord], list[Fault]]:
    """The usable records of copies, as far as that shows without the identity, and the unusable rows."""
    rows, faults = read_table(connection, "copies", "copy_id", COPY_COLUMNS, where, values)
    copies = []
    for record in (CopyRecord(*row) for row in rows):
        problem = _record_problem(record)
        if problem is None:
            copies.append(record)
        else:
            faults.append(copy_fault(record, problem))
    return copies, faults


def copy_fault(record: CopyRecord, problem: str) -> Fault:
    """A fault of a copy's record."""
    return Fault("copies", f"{short_repr(record.copy_id)} ({short_repr(record.recipient)})", problem)


def read_table(
    connection: sqlite3.Connection, table: str, key: str, columns: str, where: str = "1", values: tuple[Any, ...] = ()
) -> FoundRows:
    """The rows of a table in the order of insertion, and faults for those of the whole table that can't be read.

    Args:
        connection (`sqlite3.Connection`): the database; if it is damaged, rows are read one by one.
        table (`str`): a table with row ids.
        key (`str`): its key column.
        columns (`str`): the columns to read, in SQL.
        where, values (*optional*): a condition in SQL, and its parameters.
    """
    with suppress_damage():
        found = connection.execute(f"SELECT {columns} FROM {table} WHERE {where} ORDER BY rowid", values)
        return found.fetchall(), []
    rows, faults = [], []
    names, complete = _list_row_ids(connection, table, key)
    for number, name in sorted(names.items()):
        with suppress_damage():
            statement = f"SELECT {columns} FROM {table} WHERE rowid = {int(number)} AND ({where})"
            rows += connection.execute(statement, values).fetchall()
            continue
        faults.append(Fault(table, short_repr(name) if name is not None else f"number {number}", _LOST))
    if not complete:
        faults.append(Fault(table, "(and possibly more)", _LOST))
    return rows, faults


def read_keyed_table(connection: sqlite3.Connection, table: str, key: str, columns: str) -> FoundRows:
    """The rows of a table without row ids, and a fault if some can't be read. A damaged table is read from both ends.

    Args:
        connection, table, key, columns: see [`read_table`]; the first column must be `key`.
    """
    rows: dict[Any, Any] = {}
    for order in ("ASC", "DESC"):
        with suppress_damage():
            for row in connection.execute(f"SELECT {columns} FROM {table} ORDER BY {key} {order}"):
                rows[row[0]] = row
            return list(rows.values()), []
    return list(rows.values()), [Fault(table, "(some, or more)", _LOST)]


def _list_row_ids(connection: sqlite3.Connection, table: str, key: str) -> tuple[dict[int, str | None], bool]:
    """The readable row ids of a damaged table with their keys, from the table and its index, and whether one of the
    two could be read completely."""
    names: dict[int, str | None] = {}
    complete = False
    index = f"INDEXED BY sqlite_autoindex_{table}_1"
    for columns, source, by in ((f"rowid, {key}", index, key), ("rowid, NULL", "NOT INDEXED", "rowid")):
        for order in ("ASC", "DESC"):
            with suppress_damage():
                for number, name in connection.execute(
                    f"SELECT {columns} FROM {table} {source} ORDER BY {by} {order}"
                ):
                    names[number] = names.get(number) or name
                complete = True
    return names, complete


def _record_problem(record: CopyRecord) -> str | None:
    """What is wrong with a copy's record, if that shows without the identity, or `None`."""
    if not all(isinstance(value, kind) for value, kind in zip(astuple(record), _COLUMN_TYPES, strict=True)):
        return "has values of the wrong type"
    if record.state not in STATES:
        return f"has the unknown state {short_repr(record.state)}"
    finished = record.content_hash is not None or record.commitment is not None
    if record.state == "begun" and finished:
        return "is of an unfinished copy, but has the content hash or commitment of a finished one"
    if record.state != "begun" and (record.content_hash is None or record.commitment is None):
        return "does not open its commitment"
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        return "has an invalid date"
    return None


def check_readable(connection: sqlite3.Connection, faults: Sequence[Fault], content_hash: str) -> None:
    """Raises a [`RowError`] if an unusable row may be the base with a content hash, so that it is not registered
    twice."""
    bad = [fault for fault in faults if fault.table == "bases"]
    if not bad:
        return
    try:
        rows = connection.execute("SELECT base_id FROM bases WHERE content_hash = ?", (content_hash,)).fetchall()
    except sqlite3.DatabaseError:
        rows = []
    same = {short_repr(base_id) for (base_id,) in rows}
    for fault in bad:
        if fault.key in same or fault.key[:BASE_ID_HASH_DIGITS] == content_hash[:BASE_ID_HASH_DIGITS]:
            raise RowError(fault)
