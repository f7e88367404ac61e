"""Wipes the keys of copies in training from the database and its write-ahead log.

SQLite overwrites a deleted row (`secure_delete`), but the log keeps the old page until it is checkpointed and
truncated. That happens after the transaction, so the transaction notes in table `meta` that it is pending. If the
process ends in between, opening the vault completes it.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress

from hf_fingerprint.vault.storage import suppress_damage
from hf_fingerprint.vault.transactions import transaction


RECORDED_COPIES = "copy_id IN (SELECT copy_id FROM copies WHERE state != 'begun')"
_WIPE_PENDING = "forgetting"


def wipe_training_keys(connection: sqlite3.Connection, condition: str, *values: str) -> bool:
    """Deletes training keys in the caller's transaction.

    Args:
        condition, *values: a condition in SQL, and its parameters.

    Returns:
        `bool`: whether any were deleted; then call [`clear_journal`] after the transaction.
    """
    connection.execute("PRAGMA secure_delete = ON")
    found = connection.execute(f"DELETE FROM training WHERE {condition}", values).rowcount > 0
    if found:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, '1')", (_WIPE_PENDING,))
    return found


def clear_journal(connection: sqlite3.Connection) -> None:
    """Removes wiped keys from the log. This stays pending while another process reads the log or the disk is full."""
    with suppress(sqlite3.OperationalError):
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            connection.execute("DELETE FROM meta WHERE key = ?", (_WIPE_PENDING,))


def wipe_leftovers(connection: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Completes pending wipes, and wipes keys of recorded copies that an interrupted earlier version left."""
    # a vault that can't be written now, or is damaged, is read as far as possible
    with suppress(sqlite3.OperationalError), suppress_damage():
        leftover = connection.execute(f"SELECT 1 FROM training WHERE {RECORDED_COPIES}").fetchone()
        if leftover is None and _WIPE_PENDING not in meta:
            return
        with transaction(connection):
            wipe_training_keys(connection, RECORDED_COPIES)
        clear_journal(connection)
