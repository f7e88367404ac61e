"""All of several changes to the vault's database, or nothing of them."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Within it nobody else writes; what was done in it is undone if it ends by an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.OperationalError):  # SQLite has ended it by itself, on a full disk for one
            connection.execute("ROLLBACK")
        raise
