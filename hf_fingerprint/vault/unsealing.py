"""Unseals copy keys with the tracing identity and checks each against its record's commitment.

The unsealed keys of a base are cached, which makes the next trace faster; see [`hf_fingerprint.vault.key_cache`].
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.errors import StorageError
from hf_fingerprint.keys import commitment
from hf_fingerprint.vault.copy_table import CopyTable
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.key_cache import KeyCache, pack_keys, record_digest
from hf_fingerprint.vault.key_table import KeyTable
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.rows import copy_fault, read_usable_copies
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt


if TYPE_CHECKING:
    from hf_fingerprint.vault.store import Vault


KEY_CACHE_MIN, SAMPLED_RECORDS = 64, 64
# a condition for inserts, so that nothing is sealed to an old identity after a rotation
SAME_PUBLIC_KEY = "(SELECT value FROM meta WHERE key = 'public_key') = ?"


@dataclass(frozen=True)
class OpenedCopies:
    """Records with their copy keys.

    Attributes:
        copies (sequence of [`CopyRecord`]): the records, in order.
        keys ([`KeyTable`]): their copy keys.
        faults (`list[Fault]`): the records that don't open.
    """

    copies: Sequence[CopyRecord]
    keys: KeyTable = field(repr=False)
    faults: list[Fault]


def open_copies(vault: "Vault", records: Sequence[CopyRecord]) -> OpenedCopies:
    """The copy keys of records of one base.

    Args:
        vault ([`Vault`]): the vault, unlocked.
        records (sequence of [`CopyRecord`]): the records.

    Raises:
        [`PassphraseError`]: if the vault is locked, or was rotated since it was unlocked.
    """
    age_identity = vault.age_identity()
    if not records:
        return OpenedCopies(records, KeyTable(b""), [])
    base_id = records[0].base_id
    cached = _load_key_cache(vault, age_identity, base_id)
    numbers, digests, keys, fresh = array("q"), bytearray(), bytearray(), 0
    faults: list[Fault] = []
    for number, record in enumerate(records):
        digest = record_digest(record)
        try:
            key = _cached_key(cached, record, digest)
            if key is None:
                key = unseal_copy_key(record, age_identity)
                fresh += record.commitment is not None
        except RowError as error:
            faults.append(error.fault)
            continue
        numbers.append(number)
        digests += digest
        keys += key
    table, known = KeyTable(keys), np.frombuffer(digests, np.uint8).reshape(-1, len(digest))
    if faults:
        vault.check_identity_unchanged()
    if fresh >= KEY_CACHE_MIN:
        _store_key_cache(vault, base_id, pack_keys(known, table))
    if isinstance(records, CopyTable):
        return OpenedCopies(records.take(np.array(numbers, np.int64), known), table, faults)
    return OpenedCopies([records[number] for number in numbers], table, faults)


def find_unusable_rows(vault: "Vault") -> tuple[Fault, ...]:
    """All unusable bases and records of copies. The vault must be unlocked, since every record is opened."""
    rows = vault.rows()
    opened = [open_copies(vault, rows.copies_of(base.base_id)) for base in rows.bases]
    return tuple(chain(rows.faults, *(copies.faults for copies in opened)))


def opens_most_records(vault: "Vault", age_identity: AgeIdentity) -> bool:
    """Whether an identity opens most of a vault's first records, and so is its own even with another public key."""
    with vault.connect() as connection:
        records, _ = read_usable_copies(connection, "rowid IN (SELECT rowid FROM copies LIMIT ?)", (SAMPLED_RECORDS,))
    opened = 0
    for record in records:
        with suppress(RowError):
            unseal_copy_key(record, age_identity)
            opened += 1
    return 2 * opened > len(records)


def unseal_copy_key(record: CopyRecord, age_identity: AgeIdentity) -> bytes:
    """A record's copy key, checked against its commitment.

    Raises:
        [`RowError`]: if the record was tampered with.
    """
    key = age_identity.unseal(record.sealed, record.copy_id, record.base_id, record.recipient)
    check_commitment(record, key)
    return key


def check_commitment(record: CopyRecord, copy_key: bytes) -> None:
    """Raises a [`RowError`] if a record's key, recipient and content hash don't open its commitment."""
    if record.state == "begun" and record.content_hash is None and record.commitment is None:
        return
    try:
        opened = commitment(copy_key, record.recipient, record.content_hash or "")
    except (ValueError, TypeError):
        opened = ""
    if not record.content_hash or opened != record.commitment:
        raise RowError(copy_fault(record, "does not open its commitment"))


def _cached_key(cached: KeyCache, record: CopyRecord, digest: bytes) -> bytes | None:
    """The cached key of a record, or `None`. Anyone with the public key can seal a cache, so the key must open the
    record's commitment."""
    key = cached.find(digest) if record.commitment is not None else None
    if key is not None:
        try:
            check_commitment(record, key)
        except RowError:
            return None
    return key


def _load_key_cache(vault: "Vault", age_identity: AgeIdentity, base_id: str) -> KeyCache:
    with vault.connect() as connection:
        row = connection.execute("SELECT sealed FROM bundles WHERE base_id = ?", (base_id,)).fetchone()
    return KeyCache(age_identity.decrypt(row[0]) or b"" if row else b"")


def _store_key_cache(vault: "Vault", base_id: str, content: bytes) -> None:
    sealed = encrypt(content, vault.public_key)
    with suppress(StorageError), vault.connect() as connection:  # the cache is optional
        connection.execute(
            f"INSERT OR REPLACE INTO bundles SELECT ?, ? WHERE {SAME_PUBLIC_KEY}", (base_id, sealed, vault.public_key)
        )
