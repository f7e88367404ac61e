"""Upgrades vaults of an earlier format when they are opened, without loss.

Format 1 had no publications and no issuers, and allowed one registration per model. Format 2 had no trigger sets.
"""

import sqlite3
from collections.abc import Callable

from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.transactions import transaction


UPGRADABLE = ("1", "2")


def upgrade(connection: sqlite3.Connection, keep: Callable[[str], None] | None = None) -> None:
    """Upgrades an open database to the current format in one transaction, if it has an earlier one.

    Args:
        connection (`sqlite3.Connection`): the open database.
        keep (`Callable`, *optional*): called with the format found before anything changes, while no other process can
            write, to keep the original. If it raises, nothing is changed.
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
