"""Vaults of an earlier format, brought to the present one when they are opened; nothing in them is lost.

Format 1 had no record of publications, and could hold one registration of a model only; format 2 had no questions,
and no copies that answer any.
"""

import sqlite3
from collections.abc import Callable

from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.transactions import transaction


UPGRADABLE = ("1", "2")


def upgrade(connection: sqlite3.Connection, keep: Callable[[str], None] | None = None) -> None:
    """Brings an open database of an earlier format to the present one, in one transaction; again, it does nothing.

    Args:
        connection (`sqlite3.Connection`): the open database.
        keep (`Callable`, *optional*): is called with the format found before anything changes, while nobody else
            writes, to keep the original. If it raises, nothing is changed.
    """
    connection.execute("PRAGMA foreign_keys = OFF")
    with transaction(connection):
        found = dict(connection.execute("SELECT key, value FROM meta")).get("format")
        if found in UPGRADABLE:
            if keep is not None:
                keep(found)
            present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            tables = {statement.split()[2]: statement for statement in _statements() if "CREATE TABLE" in statement}
            if found == "1":
                connection.execute(tables["bases"].replace("CREATE TABLE bases", "CREATE TABLE bases_new"))
                connection.execute("INSERT INTO bases_new SELECT * FROM bases ORDER BY rowid")
                connection.execute("DROP TABLE bases")
                connection.execute("ALTER TABLE bases_new RENAME TO bases")
            for name in tables.keys() - present:
                connection.execute(tables[name])
            connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT),))


def _statements() -> list[str]:
    return [statement.strip() for statement in TABLES.split(";\n") if statement.strip()]
