"""Reads the vault's rows one by one, so that an unusable row is reported and the others stay usable.

The checks here need no identity; [`open_copies`] checks whether a record's seal opens.
"""

import math
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.copy_table import Connect, CopyTable
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
_ROW_TYPES = {(*(str,) * 5, one, other, str, bytes) for one in (str, type(None)) for other in (str, type(None))}


@dataclass(frozen=True)
class VaultRows:
    """The usable bases and records of copies, in order, and the unusable rows.

    Attributes:
        bases (`list[Base]`): the bases.
        copies ([`CopyTable`]): records of copies of these bases.
        faults (`list[Fault]`): the unusable rows.
        base_of (`np.ndarray` of shape `(n,)`): the index of each copy's base.
    """

    bases: list[Base]
    copies: CopyTable
    faults: list[Fault]
    base_of: np.ndarray

    def copies_of(self, base_id: str) -> CopyTable:
        """The records of a base's copies."""
        chosen = [number for number, base in enumerate(self.bases) if base.base_id == base_id]
        return self.copies.take(np.flatnonzero(np.isin(self.base_of, chosen)))


def read_rows(connect: Connect) -> VaultRows:
    """All bases and records of copies, at one moment.

    Args:
        connect (callable): opens the vault's database, and again for each record that is read later.
    """
    with connect() as connection:
        return _read_rows(connection, connect)


def _read_rows(connection: sqlite3.Connection, connect: Connect) -> VaultRows:
    connection.execute("BEGIN")
    try:
        bases, bad_bases = read_usable_bases(connection)
        numbers_of = {base.base_id: number for number, base in enumerate(bases)}
        lost = {bad.key for bad in bad_bases}
        numbers, base_of, begun, counts = array("q"), array("q"), bytearray(), Counter[str]()
        faults: list[Fault] = []
        for number, *row in iterate_usable_copies(connection, faults):
            base = numbers_of.get(row[1])
            if base is not None:
                numbers.append(number)
                base_of.append(base)
                begun.append(row[3] == "begun")
                continue
            counts[row[1]] += 1
            if row[1] not in lost:
                missing = f"belongs to base {short_repr(row[1])}, which is missing"
                faults.append(copy_fault(CopyRecord(*row), missing))
        faults += orphan_faults(connection)
    finally:
        with suppress(sqlite3.DatabaseError):  # nothing was written; a damaged database may fail here
            connection.execute("ROLLBACK")
    base_faults = [
        replace(bad, problem=f"{bad.problem}, so its {counts[bad.key]} copies can't be traced")
        if counts[bad.key]
        else bad
        for bad in bad_bases
    ]
    table = CopyTable(connect, np.array(numbers, np.int64), np.frombuffer(begun, bool))
    return VaultRows(bases, table, base_faults + faults, np.array(base_of, np.int64))


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
    faults: list[Fault] = []
    copies = [CopyRecord(*row) for _, *row in iterate_usable_copies(connection, faults, where, values)]
    return copies, faults


def iterate_usable_copies(
    connection: sqlite3.Connection, faults: list[Fault], where: str = "1", values: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yields the usable rows of copies, each after its number, and adds the unusable ones to `faults`."""
    for row in iterate_table(connection, faults, "copies", "copy_id", COPY_COLUMNS, where, values):
        problem = _row_problem(row[1:])
        if problem is None:
            yield row
        else:
            faults.append(copy_fault(CopyRecord(*row[1:]), problem))


def copy_fault(record: CopyRecord, problem: str) -> Fault:
    """A fault of a copy's record."""
    return Fault("copies", f"{short_repr(record.copy_id)} ({short_repr(record.recipient)})", problem)


def read_table(
    connection: sqlite3.Connection, table: str, key: str, columns: str, where: str = "1", values: tuple[Any, ...] = ()
) -> FoundRows:
    """The rows of a table in the order of insertion, and faults; see [`iterate_table`]."""
    faults: list[Fault] = []
    return [row[1:] for row in iterate_table(connection, faults, table, key, columns, where, values)], faults


def iterate_table(
    connection: sqlite3.Connection,
    faults: list[Fault],
    table: str,
    key: str,
    columns: str,
    where: str = "1",
    values: tuple[Any, ...] = (),
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a table in the order of insertion, each after its number.

    Args:
        connection (`sqlite3.Connection`): the database; if it is damaged, rows are read one by one.
        faults (`list[Fault]`): gets a fault for each row of the whole table that can't be read.
        table (`str`): a table with row ids.
        key (`str`): its key column.
        columns (`str`): the columns to read, in SQL.
        where, values (*optional*): a condition in SQL, and its parameters.
    """
    last = -math.inf
    with suppress_damage():
        for row in connection.execute(f"SELECT rowid, {columns} FROM {table} WHERE {where} ORDER BY rowid", values):
            last = row[0]
            yield row
        return
    names, complete = _list_row_ids(connection, table, key)
    for number, name in sorted(names.items()):
        if number <= last:
            continue
        with suppress_damage():
            statement = f"SELECT rowid, {columns} FROM {table} WHERE rowid = {int(number)} AND ({where})"
            yield from connection.execute(statement, values).fetchall()
            continue
        faults.append(Fault(table, short_repr(name) if name is not None else f"number {number}", _LOST))
    if not complete:
        faults.append(Fault(table, "(and possibly more)", _LOST))


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


def _row_problem(row: tuple[Any, ...]) -> str | None:
    """What is wrong with a copy's row, if that shows without the identity, or `None`."""
    if tuple(map(type, row)) not in _ROW_TYPES:
        return "has values of the wrong type"
    _, _, _, state, _, content_hash, commitment, created, _ = row
    if state not in STATES:
        return f"has the unknown state {short_repr(state)}"
    if state == "begun" and not content_hash is commitment is None:
        return "is of an unfinished copy, but has the content hash or commitment of a finished one"
    if state != "begun" and (content_hash is None or commitment is None):
        return "does not open its commitment"
    try:
        datetime.fromisoformat(created)
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
