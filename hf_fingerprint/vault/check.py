"""Everything that is wrong with a vault, as `hf-fingerprint vault check` lists it."""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace

from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.base_validation import is_content_hash, short_repr
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.publications import publication_faults
from hf_fingerprint.vault.rows import read_keyed_table
from hf_fingerprint.vault.sealing import check_public_key
from hf_fingerprint.vault.snapshots import take_snapshot
from hf_fingerprint.vault.storage import suppress_damage
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.unsealing import find_unusable_rows


_MAX_LINES = 20
_LEFTOVER = re.compile(rf"\.{re.escape(DATABASE)}\..*|identity-new-.*|\..*\.partial")


def check_vault(vault: Vault) -> list[Fault]:
    """Everything that is wrong with a vault's rows, database and folder.

    Args:
        vault ([`Vault`]): the vault. Sealed keys are checked only if it is unlocked.
    """
    faults = [*vault.meta_faults, *(find_unusable_rows(vault) if vault.unlocked else vault.rows().faults)]
    with vault.connect() as connection:
        for check in (_database_faults, _meta_faults, publication_faults, _training_faults, _verified_faults):
            with suppress_damage():
                faults += check(connection)
                continue
            faults.append(Fault("database", "", "is damaged"))
    if vault.unlocked:
        faults += _key_cache_faults(vault)
    listed = {(fault.table, fault.key) for fault in faults}
    # the snapshot checks trigger sets and issuers, by the rules for a merge
    unshared = (fault for fault in take_snapshot(vault).faults if (fault.table, fault.key) not in listed)
    faults += [replace(fault, problem=f"{fault.problem}, so it is not shared with other vaults") for fault in unshared]
    return list(dict.fromkeys([*faults, *_folder_faults(vault)]))


def _database_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({_MAX_LINES})").fetchall():
        if line != "ok":
            yield Fault("database", "", f"is damaged: {short_repr(line)}")


def _meta_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    try:
        check_public_key(str(meta.get("public_key")))
    except VaultError:
        yield Fault("meta", "public key", "is not a public key")


def _training_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    rows, faults = read_keyed_table(connection, "training", "copy_id", "copy_id, copy_key")
    yield from faults
    for copy_id, key in rows:
        if not isinstance(key, bytes) or len(key) != SECRET_BYTES:
            yield Fault("training", short_repr(copy_id), f"is not {SECRET_BYTES} bytes")


def _verified_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    rows, faults = read_keyed_table(connection, "verified", "place", "place, content_hash")
    yield from faults
    for place, content in rows:
        if not is_content_hash(content):
            yield Fault("verified", short_repr(place), "is not a content hash")


def _key_cache_faults(vault: Vault) -> Iterator[Fault]:
    with vault.connect() as connection:
        rows, faults = read_keyed_table(connection, "bundles", "base_id", "base_id, sealed")
    yield from faults
    for base_id, sealed in rows:
        if not vault.age_identity().decrypt(sealed):
            yield Fault("bundles", short_repr(base_id), "does not open; the next trace makes a new one")


def _folder_faults(vault: Vault) -> Iterator[Fault]:
    for path in sorted(vault.folder.iterdir()):
        if _LEFTOVER.fullmatch(path.name) and path != vault.identity:
            yield Fault("folder", short_repr(path.name), "was left by an interrupted command; it may be deleted")
    for path in (vault.folder, vault.folder / DATABASE, vault.identity):
        if path.exists() and path.stat().st_mode & 0o007:
            yield Fault("folder", short_repr(path.name), "is open to every user of this machine")
