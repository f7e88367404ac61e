"""The key cache of a base: its unsealed copy keys, sealed again as one, so that a later trace opens one seal instead
of thousands.

A cache holds the digest and the copy key of each record, 32 bytes each, and is sealed to the tracing identity. A
record with any column changed has another digest, is not found in the cache, and is unsealed and checked as usual.
"""

import hashlib
import json

import numpy as np

from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.key_table import KeyTable
from hf_fingerprint.vault.records import CopyRecord


_ENTRY_BYTES = 2 * SECRET_BYTES


def record_digest(record: CopyRecord) -> bytes:
    """SHA-256 of everything in a record that its copy key belongs to."""
    parts = [record.copy_id, record.base_id, record.recipient, record.content_hash, record.commitment]
    sealed = record.sealed if isinstance(record.sealed, bytes) else b""  # SQLite does not enforce types
    return hashlib.sha256(json.dumps(parts).encode() + b"\0" + sealed).digest()


def pack_keys(digests: np.ndarray, keys: KeyTable) -> bytes:
    """The content of a key cache.

    Args:
        digests (`np.ndarray` of shape `(n, 32)`): the digests of the records.
        keys ([`KeyTable`]): their copy keys.
    """
    return np.concatenate([digests, keys.array], axis=1).tobytes()


class KeyCache:
    """The copy keys in the content of a key cache, by record digest.

    Records mostly come in the order of the cache, so the next entry is tried first.
    """

    def __init__(self, content: bytes):
        self._content, self._next = content, 0
        self._starts: dict[bytes, int] | None = None

    def find(self, digest: bytes) -> bytes | None:
        """The copy key of the record with a digest, or `None`."""
        start = self._next
        if self._content[start : start + SECRET_BYTES] != digest:
            if self._starts is None:
                content, ends = self._content, len(self._content) - _ENTRY_BYTES + 1
                self._starts = {content[i : i + SECRET_BYTES]: i for i in range(0, ends, _ENTRY_BYTES)}
            found = self._starts.get(digest)
            if found is None:
                return None
            start = found
        self._next = start + _ENTRY_BYTES
        return self._content[start + SECRET_BYTES : start + _ENTRY_BYTES]
