"""Keys of copies in training, wiped from the database and from its journal.

A deleted row is overwritten (`secure_delete`), but the journal beside the database keeps the page as it was until it
is folded in and cut off. That comes after the transaction, so the transaction leaves a note that it is due: a process
that ends in between is caught up on when the vault is opened next.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress

from hf_fingerprint.vault.storage import is_damaged
from hf_fingerprint.vault.transactions import transaction


RECORDED_COPIES = "copy_id IN (SELECT copy_id FROM copies WHERE state != 'begun')"
_WIPE_PENDING = "forgetting"


def wipe_training_keys(connection: sqlite3.Connection, condition: str, *values: str) -> bool:
    """Deletes training keys, in the caller's transaction.

    Args:
        connection (`sqlite3.Connection`): with a transaction under way.
        condition (`str`): the condition, in SQL, with its `values`.

    Returns:
        `bool`: whether there were any; then call [`clear_journal`] when the transaction is committed.
    """
    connection.execute("PRAGMA secure_delete = ON")
    found = connection.execute(f"DELETE FROM training WHERE {condition}", values).rowcount > 0
    if found:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, '1')", (_WIPE_PENDING,))
    return found


def clear_journal(connection: sqlite3.Connection) -> None:
    """Leaves nothing of what was wiped in the journal. While another process reads it, or the disk is full, that stays
    due."""
    with suppress(sqlite3.OperationalError):
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            connection.execute("DELETE FROM meta WHERE key = ?", (_WIPE_PENDING,))


def wipe_leftovers(connection: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Wipes the keys of copies that are recorded, which earlier versions left where they were cut off, and what is due
    of the journal."""
    try:
        left = connection.execute(f"SELECT 1 FROM training WHERE {RECORDED_COPIES}").fetchone()
        if left is None and _WIPE_PENDING not in meta:
            return
        with transaction(connection):
            wipe_training_keys(connection, RECORDED_COPIES)
        clear_journal(connection)
    except sqlite3.OperationalError:
        pass  # a vault that can't be written to now is read all the same
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):  # what is left of a damaged one is read, too
            raise
