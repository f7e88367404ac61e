"""The vault's rows as they are read: each for itself, so that one that can't be used is left out, named, and stops
nobody else's.

What a row says is checked as far as that takes no identity; whether a record's seal opens, [`open_copies`] finds out.
"""

import re
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
from hf_fingerprint.vault.schema import BASE_COLUMNS, COPY_COLUMNS, copy_from_row, read_base
from hf_fingerprint.vault.storage import is_damaged


BASE_ID_HASH_DIGITS = 8  # of its content hash, with which a base's id begins
MAX_NAMED = 1000
CHILD_TABLES = (
    ("questions", "base_id", "bases"),
    ("bundles", "base_id", "bases"),
    ("training", "copy_id", "copies"),
    ("publications", "copy_id", "copies"),
    ("bound", "copy_id", "copies"),
)
STATES = ("begun", "written", "issued")
_HASH = re.compile(r"[0-9a-f]{64}")
_LOST = "can't be read: the disk or the file system lost it"
_TEXT, _OPTIONAL_TEXT = (str,), (str, type(None))
_COLUMN_TYPES = (*(_TEXT,) * 5, _OPTIONAL_TEXT, _OPTIONAL_TEXT, _TEXT, (bytes,))


@dataclass(frozen=True)
class VaultRows:
    """The bases and records of copies that can be used, in their order, and what can't.

    Attributes:
        bases (`list[Base]`): the bases.
        copies (`list[CopyRecord]`): records of copies of these bases.
        faults (`list[Fault]`): rows that can't be used.
    """

    bases: list[Base]
    copies: list[CopyRecord]
    faults: list[Fault]

    def of(self, base_id: str) -> list[CopyRecord]:
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
        with suppress(sqlite3.DatabaseError):  # nothing was written, and a damaged one can't end well
            connection.execute("ROLLBACK")
    known = {base.base_id for base in bases}
    orphan_counts = Counter(copy.base_id for copy in copies if copy.base_id not in known)
    named = [
        replace(bad, problem=f"{bad.problem}, so its {orphan_counts[bad.key]} copies can't be tested")
        if orphan_counts[bad.key]
        else bad
        for bad in bad_bases
    ]
    lost = {bad.key for bad in bad_bases}
    orphans = [copy for copy in copies if copy.base_id not in known and copy.base_id not in lost]
    faults += [copy_fault(copy, f"is of base {short_repr(copy.base_id)}, which is not on record") for copy in orphans]
    return VaultRows(bases, [copy for copy in copies if copy.base_id in known], named + faults)


def orphan_faults(connection: sqlite3.Connection) -> list[Fault]:
    """What is noted of bases or copies that are not on record: its key was changed, or theirs was."""
    found = []
    for table, key, parent in CHILD_TABLES:
        try:
            statement = f"SELECT {key} FROM {table} WHERE {key} NOT IN (SELECT {key} FROM {parent}) LIMIT {MAX_NAMED}"
            found += [
                Fault(table, short_repr(name), "is of none on record") for (name,) in connection.execute(statement)
            ]
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            found.append(Fault(table, "(some, or more)", _LOST))
    return found


def read_usable_bases(connection: sqlite3.Connection) -> tuple[list[Base], list[Fault]]:
    """The bases that can be used, and the rows that can't."""
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
    """The records of copies that can be used as far as that shows without the identity, and the rows that can't."""
    rows, faults = read_table(connection, "copies", "copy_id", COPY_COLUMNS, where, values)
    copies = []
    for record in map(copy_from_row, rows):
        problem = _record_problem(record)
        if problem is None:
            copies.append(record)
        else:
            faults.append(copy_fault(record, problem))
    return copies, faults


def copy_fault(record: CopyRecord, problem: str) -> Fault:
    """What is wrong with the record of a copy."""
    return Fault("copies", f"{short_repr(record.copy_id)} ({short_repr(record.recipient)})", problem)


def read_table(
    connection: sqlite3.Connection,
    table: str,
    key: str,
    columns: str,
    where: str = "1",
    values: tuple[Any, ...] = (),
) -> tuple[list[Any], list[Fault]]:
    """Rows of a table in the order of their making, all at once; one by one if the database is damaged.

    Args:
        connection (`sqlite3.Connection`): the database.
        table (`str`): one that has row ids.
        key (`str`): the column that names a row.
        columns (`str`): what is read, in SQL.
        where (`str`, *optional*): a condition, in SQL, with its `values`.

    Returns:
        `(rows, faults)`: those that could be read, and those of the whole table that could not.
    """
    try:
        found = connection.execute(f"SELECT {columns} FROM {table} WHERE {where} ORDER BY rowid", values)
        return found.fetchall(), []
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
    rows, faults = [], []
    names, complete = _list_row_ids(connection, table, key)
    for number, name in sorted(names.items()):
        try:
            statement = f"SELECT {columns} FROM {table} WHERE rowid = {int(number)} AND ({where})"
            rows += connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            faults.append(Fault(table, short_repr(name) if name is not None else f"number {number}", _LOST))
    if not complete:
        faults.append(Fault(table, "(and perhaps more)", _LOST))
    return rows, faults


def is_content_hash(value: Any) -> bool:
    """Whether a value is a SHA-256 as content hashes are written."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def read_keyed_table(
    connection: sqlite3.Connection, table: str, key: str, columns: str
) -> tuple[list[Any], list[Fault]]:
    """Rows of a table without row ids, `key` the first of `columns`: all, or as far as they can be read from both of
    its ends."""
    rows: dict[Any, Any] = {}
    complete = False
    for order in ("ASC", "DESC"):
        try:
            for row in connection.execute(f"SELECT {columns} FROM {table} ORDER BY {key} {order}"):
                rows[row[0]] = row
            complete = True
            break
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
    return list(rows.values()), [] if complete else [Fault(table, "(some, or more)", _LOST)]


def _list_row_ids(connection: sqlite3.Connection, table: str, key: str) -> tuple[dict[int, str | None], bool]:
    """The row ids of a table with their keys, from its index and from itself, as far as each can be read; and whether
    one of the two could be read to the end."""
    names: dict[int, str | None] = {}
    complete = False
    index = f"INDEXED BY sqlite_autoindex_{table}_1"
    for problem, source, by in ((f"rowid, {key}", index, key), ("rowid, NULL", "NOT INDEXED", "rowid")):
        for order in ("ASC", "DESC"):  # each as far as it can be read, from its two ends
            statement = f"SELECT {problem} FROM {table} {source} ORDER BY {by} {order}"
            try:
                for number, name in connection.execute(statement):
                    names[number] = names.get(number) or name
                complete = True
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise
    return names, complete


def _record_problem(record: CopyRecord) -> str | None:
    """What is wrong with a record of a copy, if that shows without the identity."""
    if not all(isinstance(value, kind) for value, kind in zip(astuple(record), _COLUMN_TYPES, strict=True)):
        return "holds values of other kinds than a record has"
    if record.state not in STATES:
        return f"has the state {short_repr(record.state)}, which is none"
    finished = record.content_hash is not None or record.commitment is not None
    if record.state == "begun" and finished:
        return "says that its copy was never finished, and holds what only finished ones do"
    if record.state != "begun" and (record.content_hash is None or record.commitment is None):
        return "does not open its commitment"
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        return "has a date that is none"
    return None


def check_readable(connection: sqlite3.Connection, faults: Sequence[Fault], content_hash: str) -> None:
    """Refuses to go on as if a base were not on record when it is, in a row that can't be used.

    Raises:
        [`RowError`]: with the row.
    """
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
