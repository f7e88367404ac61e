"""What is wrong with a vault, all of it: what `hf-fingerprint vault check` lists."""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace

from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.base_validation import shown
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.publications import publication_faults
from hf_fingerprint.vault.rows import is_content_hash, sift_keyed
from hf_fingerprint.vault.sealing import check_public_key
from hf_fingerprint.vault.snapshots import take_snapshot
from hf_fingerprint.vault.storage import damaged
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.unsealing import unused_rows


_MOST_LINES = 20
_PARTIAL = re.compile(rf"\.{re.escape(DATABASE)}\..*|identity-new-.*|\..*\.partial")


def check_vault(vault: Vault) -> list[Fault]:
    """All that is wrong with a vault's rows, database and folder.

    Args:
        vault ([`Vault`]): the vault. If it is unlocked, every record of a copy is opened; else only what shows
            without the tracing identity is found.
    """
    faults = [*vault.meta_faults, *(unused_rows(vault) if vault.unlocked else vault.rows().faults)]
    with vault.connect() as connection:
        for check in (_database, _meta, publication_faults, _training, _verified):
            try:
                faults += check(connection)
            except sqlite3.DatabaseError as error:
                if not damaged(error):
                    raise
                faults.append(Fault("database", "", "is damaged"))
    if vault.unlocked:
        faults += _bundles(vault)
    listed = {(fault.table, fault.key) for fault in faults}
    # questions and issuers are looked at there, by the rules for what enters a vault
    kept = (fault for fault in take_snapshot(vault).faults if (fault.table, fault.key) not in listed)
    faults += [replace(fault, what=f"{fault.what}, so it is not shared with other vaults") for fault in kept]
    return list(dict.fromkeys([*faults, *_folder(vault)]))


def _database(connection: sqlite3.Connection) -> Iterator[Fault]:
    found = connection.execute(f"PRAGMA integrity_check({_MOST_LINES})").fetchall()
    for (line,) in found:
        if line != "ok":
            yield Fault("database", "", f"is damaged: {shown(line)}")


def _meta(connection: sqlite3.Connection) -> Iterator[Fault]:
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    try:
        check_public_key(str(meta.get("public_key")))
    except VaultError:
        yield Fault("meta", "public key", "is no public key")


def _training(connection: sqlite3.Connection) -> Iterator[Fault]:
    rows, faults = sift_keyed(connection, "training", "copy_id", "copy_id, copy_key")
    yield from faults
    for copy_id, key in rows:
        if not isinstance(key, bytes) or len(key) != SECRET_BYTES:
            yield Fault("training", shown(copy_id), "is none")


def _verified(connection: sqlite3.Connection) -> Iterator[Fault]:
    rows, faults = sift_keyed(connection, "verified", "place", "place, content_hash")
    yield from faults
    for place, content in rows:
        if not is_content_hash(content):
            yield Fault("verified", shown(place), "is no content hash")


def _bundles(vault: Vault) -> Iterator[Fault]:
    with vault.connect() as connection:
        rows, faults = sift_keyed(connection, "bundles", "base_id", "base_id, sealed")
    yield from faults
    for base_id, sealed in rows:
        if not vault.opener().unseal_bundle(sealed):
            yield Fault("bundles", shown(base_id), "does not open; it is made anew as it is needed")


def _folder(vault: Vault) -> Iterator[Fault]:
    for path in sorted(vault.folder.iterdir()):
        if _PARTIAL.fullmatch(path.name) and path != vault.identity:
            yield Fault("folder", shown(path.name), "was left by a command that was cut off; it may be deleted")
    for path in (vault.folder, vault.folder / DATABASE, vault.identity):
        if path.exists() and path.stat().st_mode & 0o007:
            yield Fault("folder", shown(path.name), "may be read or entered by everybody on this machine")
