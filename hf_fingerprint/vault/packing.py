"""A vault as it leaves its folder: a snapshot of what all its issuers share, encrypted.

A snapshot holds the bases with their secrets and questions, the records of copies that were written, which of these
answer the questions, where they were published, and the issuers. What belongs to one machine stays there:

* which files were hashed, and the bundles: shortcuts, made anew where they are needed;
* the keys of copies in training: another issuer could read that recipient's codeword;
* records of copies that were begun and never written: they mark nothing yet, and are resumed where they were begun;
* when another issuer's records arrived here.

A pack is an SQLite database of the vault's format with the snapshot's rows and nothing else, encrypted with age to the
tracing identity and to every issuer: `age -d -i KEY vault.age > vault.db` opens it too. Age says nothing about who
encrypted it, so what comes out is checked like anything from a stranger; see [`read_pack`] for how, and [`merge`] for
what it can't overwrite.
"""

import sqlite3
from contextlib import closing
from dataclasses import astuple

from hf_fingerprint.checkpoints.limits import MAX_PACK, megabytes
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.schema import FORMAT, TABLES
from hf_fingerprint.vault.sealing import AgeIdentity, seal_pack
from hf_fingerprint.vault.snapshots import Snapshot, insert_rows, take_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.untrusted_database import read_pack


def pack_vault(vault: Vault) -> bytes:
    """The vault as it may be kept on the Hub: a snapshot, encrypted to its tracing identity and its issuers."""
    return pack_snapshot(take_snapshot(vault))


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot encrypted to the tracing identity and the issuers that it names.

    Raises:
        [`VaultError`]: if it is larger than what is read again.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        meta = [("format", str(FORMAT)), ("public_key", snapshot.public_key)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        insert_rows(connection, "bases", snapshot.bases.values())
        insert_rows(connection, "questions", snapshot.questions.values())
        insert_rows(connection, "copies", [astuple(record) for record in snapshot.copies.values()])
        insert_rows(connection, "bound", snapshot.bound.values())
        insert_rows(connection, "publications", snapshot.publications.values())
        insert_rows(connection, "issuers", snapshot.issuers.items())
        connection.commit()
        content = connection.serialize()
    recipients = [public_key for public_key, name in snapshot.issuers.items() if name != REMOVED]
    packed = seal_pack(content, [snapshot.public_key, *recipients])
    if len(packed) > MAX_PACK:
        raise VaultError(
            f"Packed, the vault has {megabytes(len(packed), round_up=True)} MB, and at most {megabytes(MAX_PACK)} MB "
            f"are read: register further bases in another vault, and bring this one's folder to where it is needed."
        )
    return packed


def open_pack(content: bytes, age_identity: AgeIdentity, where: str) -> Snapshot:
    """Opens a pack.

    Args:
        content (`bytes`): the pack.
        age_identity ([`AgeIdentity`]): the tracing identity, or an issuer's key.
        where (`str`): where it was found, for what is refused.

    Raises:
        [`VaultError`]: if this key doesn't open it, or what comes out is no vault. What is wrong with single rows is
            in [`Snapshot.faults`].
    """
    if len(content) > MAX_PACK:
        raise VaultError(
            f"The vault in {where} has {megabytes(len(content), round_up=True)} MB, and packs of at most "
            f"{megabytes(MAX_PACK)} MB are read: restore an earlier commit of it, or push anew."
        )
    opened = age_identity.unseal_pack(content)
    if opened is None:
        raise VaultError(
            f"The vault in {where} does not open with the key of {age_identity.public_key}: give the tracing identity, or "
            f"add that key as an issuer's and push again."
        )
    return read_pack(opened, where)
