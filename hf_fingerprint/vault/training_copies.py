"""Copies in training: their keys are kept in the vault until the copy is recorded, and then forgotten.

A training may take days and be resumed by another process, which must go on with the same codeword. Whoever has the
vault, the base and a checkpoint of the training could read the codeword off the weights, so keeping the key beside
the model secret until then gives nothing away; afterwards it is in the sealed record alone: [`Vault.mark_written`]
wipes it in the transaction that records the copy.
"""

from contextlib import ExitStack
from pathlib import Path

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.locks import acquire_lock
from hf_fingerprint.vault.records import Base, CopyRecord
from hf_fingerprint.vault.secure_delete import clear_journal, wipe_training_keys
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.transactions import transaction


def begin_training(vault: Vault, base: Base, recipient: str, out: Path | str = "") -> tuple[CopyRecord, bytes]:
    """The record and key of this recipient's copy in training: those of a training that was not finished, else new
    ones.

    Args:
        vault ([`Vault`]): the vault; it need not be unlocked.
        base ([`Base`]): the registered base.
        recipient (`str`): whose copy it will be.
        out (`Path`, *optional*): where it will be, if that is known.
    """
    known = _training_keys(vault)
    for record in reversed(vault.copies(base.base_id, recipient)):
        if record.copy_id in known and record.state == "begun":
            return record, known[record.copy_id]
    record, copy_key = vault.begin_copy(base, recipient, out)
    with vault.connect() as connection:
        connection.execute("INSERT INTO training VALUES (?, ?)", (record.copy_id, copy_key))
    return record, copy_key


def copies_in_training(vault: Vault) -> set[str]:
    """The ids of copies that are being trained, or were and never recorded."""
    return set(_training_keys(vault))


def forget_copy(vault: Vault, copy_id: str) -> CopyRecord:
    """Ends a record that was begun and whose copy will never be finished, such as a training's that was given up.

    Its key is wiped and the record is deleted, sealed key and all, so that no trace tests it any more: whatever a
    checkpoint of that training says of it can't be read again. A merge brings the record back only if it was finished
    in a copy of this vault's folder: then it names a copy that was made, and traces as such.

    Args:
        vault ([`Vault`]): the vault; it need not be unlocked.
        copy_id (`str`): the record's id, as `hf-fingerprint recipients` shows it.

    Returns:
        [`CopyRecord`]: what was on record.

    Raises:
        [`VaultError`]: if there is no such record, its copy is written, or it is being made right now.
    """
    record = next((copy for copy in vault.copies() if copy.copy_id == copy_id), None)
    if record is None:
        raise VaultError(f"{vault.folder} has no record {copy_id}: see `hf-fingerprint recipients` for the ids.")
    base = vault.base(record.base_id)
    refusal = f"The copy of record {copy_id} ({record.recipient}) is being worked on: wait, or end that process."
    with ExitStack() as held:
        for what in (f"training {record.recipient}", record.out):
            held.callback(acquire_lock(vault, base, what, refusal).release)
        with vault.connect() as connection:
            with transaction(connection):
                wipe_training_keys(connection, "copy_id = ?", copy_id)
                gone = connection.execute(
                    "DELETE FROM copies WHERE copy_id = ? AND state = 'begun'", (copy_id,)
                ).rowcount
            clear_journal(connection)
    if not gone:
        raise VaultError(
            f"Record {copy_id} ({record.recipient}) names a copy that was made and may be in somebody's hands: it is "
            f"kept, or that copy would not trace."
        )
    return record


def _training_keys(vault: Vault) -> dict[str, bytes]:
    with vault.connect() as connection:
        return dict(connection.execute("SELECT copy_id, copy_key FROM training").fetchall())
