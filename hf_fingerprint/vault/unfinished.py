"""Copies in training: their keys are kept in the vault until the copy is recorded, and then forgotten.

A training may take days and be resumed by another process, which must go on with the same codeword. Whoever has the
vault, the base and a checkpoint of the training could read the codeword off the weights, so keeping the key beside
the model secret until then gives nothing away; afterwards it is in the sealed record alone.
"""

from pathlib import Path

from hf_fingerprint.vault.records import Base, CopyRecord
from hf_fingerprint.vault.store import Vault


def begin_training(vault: Vault, base: Base, recipient: str, out: Path | str = "") -> tuple[CopyRecord, bytes]:
    """The record and key of this recipient's copy in training: those of a training that was not finished, else new
    ones.

    Args:
        vault ([`Vault`]): the vault; it need not be unlocked.
        base ([`Base`]): the registered base.
        recipient (`str`): whose copy it will be.
        out (`Path`, *optional*): where it will be, if that is known.
    """
    _forget_recorded(vault)
    known = _keys(vault)
    for record in reversed(vault.copies(base.base_id, recipient)):
        if record.copy_id in known and record.state == "begun":
            return record, known[record.copy_id]
    record, copy_key = vault.begin_copy(base, recipient, out)
    with vault.connect() as connection:
        connection.execute("INSERT INTO training VALUES (?, ?)", (record.copy_id, copy_key))
    return record, copy_key


def finish_training(vault: Vault, record: CopyRecord) -> None:
    """Forgets the key of a copy that is recorded; nothing of it stays in the database's files."""
    _forget(vault, "copy_id = ?", record.copy_id)


def copies_in_training(vault: Vault) -> set[str]:
    """The ids of copies that are being trained, or were and never recorded."""
    return set(_keys(vault))


def _forget_recorded(vault: Vault) -> None:
    """Catches up on copies whose training ended between their record and the end of [`finish_training`]."""
    recorded = "copy_id IN (SELECT copy_id FROM copies WHERE state != 'begun')"
    with vault.connect() as connection:
        left = connection.execute(f"SELECT 1 FROM training WHERE {recorded}").fetchone()
    if left:
        _forget(vault, recorded)


def _forget(vault: Vault, which: str, *values: str) -> None:
    with vault.connect() as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"DELETE FROM training WHERE {which}", values)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _keys(vault: Vault) -> dict[str, bytes]:
    with vault.connect() as connection:
        return dict(connection.execute("SELECT copy_id, copy_key FROM training").fetchall())
