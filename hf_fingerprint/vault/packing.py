"""Packs a vault for the Hub: an encrypted snapshot of everything that its issuers share.

A snapshot holds the bases with their secrets and trigger sets, the records of written copies, which of them answer the
triggers, where they were published, and the issuers. It leaves out what belongs to one machine:

* cached content hashes and key caches, which other machines make again;
* the keys of copies in training, from which another issuer could read the recipient's codeword;
* records of unfinished copies, which mark nothing yet and are resumed where they began;
* the arrival times of other issuers' records.

A pack is an SQLite database of the vault's format with the snapshot's rows and nothing else, encrypted with age to the
tracing identity and to every issuer, so `age -d -i KEY vault.age > vault.db` decrypts it too. Age does not
authenticate the sender, so the content of a pack is untrusted: see [`read_pack`] for its checks, and [`merge`] for
what it can't overwrite.
"""

import sqlite3
from contextlib import closing
from dataclasses import astuple

from hf_fingerprint.checkpoints.limits import MAX_PACK, megabytes
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt
from hf_fingerprint.vault.snapshots import Snapshot, insert_rows, take_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.untrusted_database import read_pack


def pack_vault(vault: Vault) -> bytes:
    """The pack of a vault, which may be kept on the Hub: a snapshot, encrypted to its tracing identity and issuers."""
    return pack_snapshot(take_snapshot(vault))


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """The pack of a snapshot, encrypted to its tracing identity and issuers.

    Raises:
        [`VaultError`]: if the pack is too large to be read again.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        meta = [("format", str(FORMAT)), ("public_key", snapshot.public_key)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        insert_rows(connection, "bases", snapshot.bases.values())
        insert_rows(connection, "questions", snapshot.trigger_sets.values())
        insert_rows(connection, "copies", [astuple(record) for record in snapshot.copies.values()])
        insert_rows(connection, "bound", snapshot.answering.values())
        insert_rows(connection, "publications", snapshot.publications.values())
        insert_rows(connection, "issuers", snapshot.issuers.items())
        connection.commit()
        content = connection.serialize()
    issuers = [public_key for public_key, name in snapshot.issuers.items() if name != REMOVED]
    packed = encrypt(content, snapshot.public_key, *issuers)
    if len(packed) > MAX_PACK:
        raise VaultError(
            f"The packed vault has {megabytes(len(packed), round_up=True)} MB and may have at most "
            f"{megabytes(MAX_PACK)} MB: register further bases in another vault, and copy this one's folder yourself."
        )
    return packed


def open_pack(content: bytes, age_identity: AgeIdentity, where: str) -> Snapshot:
    """The snapshot in a pack.

    Args:
        content (`bytes`): the pack.
        age_identity ([`AgeIdentity`]): the tracing identity, or an issuer's key.
        where (`str`): the name of the pack in messages.

    Raises:
        [`VaultError`]: if this key doesn't open the pack, or it doesn't hold a vault. Unusable rows are in
            [`Snapshot.faults`].
    """
    if len(content) > MAX_PACK:
        raise VaultError(
            f"The vault in {where} has {megabytes(len(content), round_up=True)} MB and may have at most "
            f"{megabytes(MAX_PACK)} MB: restore an earlier commit of it, or push again."
        )
    opened = age_identity.decrypt(content)
    if opened is None:
        raise VaultError(
            f"The vault in {where} does not open with the key of {age_identity.public_key}: give the tracing "
            f"identity, or add that key as an issuer's and push again."
        )
    return read_pack(opened, where)
