"""Rotates the tracing identity of a vault, in case the old one leaked.

The key of every record is unsealed with the old identity, checked against its commitment and sealed to the new one;
key caches are dropped. A record that does not open is reported and stays unchanged. One transaction does all of this,
so at every moment a single identity opens every record:

1. the new identity is written next to the old one, as `identity-new-<digits>.age`;
2. one transaction seals the records to it and replaces the vault's public key;
3. the old file is renamed to `identity-old-<digits>.age` and the new one to `identity.age`.

Between steps 2 and 3 the vault uses the new file; see [`Vault.identity`]. If step 2 never happens, the file of step 1
opens nothing and may be deleted.

A rotation can't protect old copies of the vault (a backup, another issuer's folder, an earlier commit of its repo):
with one of these and the old identity, an attacker reads the codewords in it. So delete those copies, and push the
vault to a new repo. The old identity file is kept, since it is needed to merge packs and folders from before the
rotation. It opens nothing in the rotated vault; delete it when no such packs and folders are left.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import PassphraseError, StorageError, VaultError
from hf_fingerprint.vault.database import IDENTITY, identity_name
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.private_files import unused_path, write_new_private
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.rows import read_usable_copies
from hf_fingerprint.vault.sealing import AgeIdentity, check_public_key, encrypt_identity, new_identity, seal
from hf_fingerprint.vault.storage import suppress_damage, translate_disk_errors
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.transactions import transaction
from hf_fingerprint.vault.unsealing import unseal_copy_key


_PREVIOUS = "previous_public_key"


@dataclass(frozen=True)
class VaultRotation:
    """The result of a rotation.

    Attributes:
        vault ([`Vault`]): the vault, locked.
        records (`int`): the number of records that were sealed again.
        identity (`Path` or `None`): the file of the new identity; `None` if it is kept elsewhere.
        old_identity_file (`Path` or `None`): the file of the old identity, if it was in the vault's folder.
        old_seals_erased (`bool`): whether the database file holds no trace of the old seals. It may if another process
            was reading it, the disk is full, or the database is damaged.
        faults (`tuple[Fault, ...]`): records that don't open; they are unchanged.
    """

    vault: Vault
    records: int
    identity: Path | None
    old_identity_file: Path | None
    old_seals_erased: bool
    faults: tuple[Fault, ...] = ()


def rotate(vault: Vault, passphrase: str = "", public_key: str | None = None) -> VaultRotation:
    """Gives a vault a new tracing identity, and returns the vault to use from now on.

    Args:
        vault ([`Vault`]): the vault, unlocked; use the one in the result afterwards.
        passphrase (`str`): the passphrase of the new identity.
        public_key (`str`, *optional*): the public key (`age1...`) of a new identity that is kept elsewhere.

    Raises:
        [`VaultError`]: if the vault can't be written, or the open identity is not its current one; nothing is changed.
    """
    vault.age_identity()
    with vault.keep_open():  # so that a disk that fills up doesn't keep the vault from being opened again
        return _rotate(vault, passphrase, public_key)


def _rotate(vault: Vault, passphrase: str, public_key: str | None) -> VaultRotation:
    age_identity, folder = vault.age_identity(), vault.folder
    _place_identity_files(Vault(folder), kept_elsewhere=False)
    locked = None
    if public_key is None:
        identity, public_key = new_identity()
        locked = encrypt_identity(identity, passphrase)
    check_public_key(public_key)
    if public_key == age_identity.public_key:
        raise VaultError(f"{public_key} is the current tracing identity of {folder}: give the public key of another.")
    new_file = folder / identity_name("new", public_key)
    if locked is not None:
        with translate_disk_errors(f"{new_file} can't be written", folder):
            write_new_private(new_file, locked)
    try:
        records, faults = _reseal_copies(vault, age_identity, public_key)
    except BaseException:
        if Vault(folder).public_key != public_key:
            new_file.unlink(missing_ok=True)
        raise
    old_seals_erased, renewed = _erase_old_seals(vault), Vault(folder)
    old = _place_identity_files(renewed, kept_elsewhere=locked is None)
    identity_file = renewed.identity if locked is not None else None
    return VaultRotation(renewed, records, identity_file, old, old_seals_erased, tuple(faults))


def reseal_copy(record: CopyRecord, age_identity: AgeIdentity, public_key: str) -> CopyRecord:
    """The record with its key sealed to another identity.

    Raises:
        [`VaultError`]: if the record was tampered with.
    """
    key = unseal_copy_key(record, age_identity)
    return replace(record, sealed=seal(key, record.copy_id, record.base_id, record.recipient, public_key))


def _reseal_copies(vault: Vault, age_identity: AgeIdentity, public_key: str) -> tuple[int, list[Fault]]:
    with vault.connect() as connection:
        connection.execute("PRAGMA secure_delete = ON")
        with transaction(connection):
            (now,) = connection.execute("SELECT value FROM meta WHERE key = 'public_key'").fetchone()
            if now != age_identity.public_key:
                raise PassphraseError(f"{vault.folder} was rotated since you unlocked it: unlock it again.")
            copies, faults = read_usable_copies(connection)
            count = 0
            for record in copies:
                try:
                    sealed = reseal_copy(record, age_identity, public_key).sealed
                except RowError as error:
                    faults.append(error.fault)
                    continue
                connection.execute("UPDATE copies SET sealed = ? WHERE copy_id = ?", (sealed, record.copy_id))
                count += 1
            connection.execute("DELETE FROM bundles")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'public_key'", (public_key,))
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_PREVIOUS, age_identity.public_key))
    return count, faults


def _erase_old_seals(vault: Vault) -> bool:
    """Erases old seals from the database's files, and returns whether that succeeded."""
    try:
        with vault.connect() as connection:
            connection.execute("PRAGMA temp_store = MEMORY")  # no seals in temporary files
            connection.execute("PRAGMA secure_delete = ON")
            with suppress_damage():
                connection.execute("VACUUM")
                (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
    except StorageError:  # the rotation itself is complete
        pass
    return False


def _place_identity_files(vault: Vault, kept_elsewhere: bool) -> Path | None:
    """Renames the identity files after a rotation, unless that is done; returns the new path of the old identity.

    Args:
        vault ([`Vault`]): the rotated vault.
        kept_elsewhere (`bool`): whether the new identity is not in the vault's folder.
    """
    current, new_file = vault.folder / IDENTITY, vault.folder / identity_name("new", vault.public_key)
    old = None
    if current.is_file() and (new_file.is_file() or kept_elsewhere):
        with vault.connect() as connection:
            previous = dict(connection.execute("SELECT key, value FROM meta")).get(_PREVIOUS, "")
        old = unused_path(vault.folder / identity_name("old", previous))
        _rename(current, old)
    if new_file.is_file():
        _rename(new_file, current)
    return old


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
        sync(source.parent)
    except OSError as error:
        raise VaultError(
            f"The vault is rotated, but {source} can't be renamed to {target} ({error.strerror}): rename it yourself."
        ) from None
