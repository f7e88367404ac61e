"""Copies in training, whose keys stay in the vault until the copy is recorded.

A training may take days and be resumed by another process, which needs the same codeword. So the vault keeps the copy
key, unencrypted. That reveals nothing new: with the model secret and a checkpoint of the training, the codeword can be
read from the weights anyway. [`Vault.mark_written`] wipes the key in the transaction that records the copy; then only
the sealed record holds it.
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
    """The record and key of a recipient's copy in training: those of an unfinished training, else new ones.

    Args:
        vault ([`Vault`]): the vault; it may be locked.
        base ([`Base`]): the registered base.
        recipient (`str`): the recipient.
        out (`Path`, *optional*): where the copy will be, if that is known.
    """
    known = _training_keys(vault)
    for record in reversed(vault.copies(base.base_id, recipient)):
        if record.copy_id in known and record.state == "begun":
            return record, known[record.copy_id]
    record, copy_key = vault.begin_copy(base, recipient, out)
    with vault.connect() as connection:
        connection.execute("INSERT INTO training VALUES (?, ?)", (record.copy_id, copy_key))
    return record, copy_key


def find_begun_copy(vault: Vault, base: Base, recipient: str, out: Path) -> CopyRecord | None:
    """The unfinished record of a recipient's further copy at this path, if an earlier attempt was interrupted."""
    known = _training_keys(vault)
    copies = [c for c in vault.copies(base.base_id, recipient) if c.state == "begun" and c.out == str(out)]
    return next((copy for copy in reversed(copies) if copy.copy_id not in known), None)


def copies_in_training(vault: Vault) -> set[str]:
    """The ids of copies in training, including abandoned ones."""
    return set(_training_keys(vault))


def forget_copy(vault: Vault, copy_id: str) -> CopyRecord:
    """Deletes the record and key of an unfinished copy, such as an abandoned training's, and returns the record.

    Checkpoints of that training can't be traced any more. A merge restores the record only if the copy was finished in
    another copy of the vault's folder; then it traces like any other.

    Args:
        vault ([`Vault`]): the vault; it may be locked.
        copy_id (`str`): the id of the record, as `hf-fingerprint recipients` shows it.

    Raises:
        [`VaultError`]: if there is no such record, its copy is finished, or a process is working on it.
    """
    record = next((copy for copy in vault.copies() if copy.copy_id == copy_id), None)
    if record is None:
        raise VaultError(f"{vault.folder} has no record {copy_id}: see `hf-fingerprint recipients` for the ids.")
    base = vault.base(record.base_id)
    message = f"Another process is working on copy {copy_id} ({record.recipient}): wait, or end that process."
    with ExitStack() as locks:
        for task in (f"training {record.recipient}", record.out):
            locks.callback(acquire_lock(vault, base, task, message).release)
        with vault.connect() as connection:
            with transaction(connection):
                wipe_training_keys(connection, "copy_id = ?", copy_id)
                statement = "DELETE FROM copies WHERE copy_id = ? AND state = 'begun'"
                deleted = connection.execute(statement, (copy_id,)).rowcount
            clear_journal(connection)
    if not deleted:
        raise VaultError(
            f"Copy {copy_id} ({record.recipient}) is finished and may have been delivered, so its record is kept: "
            f"only unfinished copies can be forgotten."
        )
    return record


def _training_keys(vault: Vault) -> dict[str, bytes]:
    with vault.connect() as connection:
        return dict(connection.execute("SELECT copy_id, copy_key FROM training").fetchall())
