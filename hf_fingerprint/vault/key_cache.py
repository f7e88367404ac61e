"""The key cache of a base: its unsealed copy keys, sealed again as one, so that a later trace opens one seal instead
of thousands.

A cache holds the digest and the copy key of each record, 32 bytes each, and is sealed to the tracing identity. A
record with any column changed has another digest, is not found in the cache, and is unsealed and checked as usual.
"""

import hashlib
import json
from collections.abc import Mapping

from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.records import CopyRecord


_ENTRY_BYTES = 2 * SECRET_BYTES


def record_digest(record: CopyRecord) -> bytes:
    """SHA-256 of everything in a record that its copy key belongs to."""
    parts = [record.copy_id, record.base_id, record.recipient, record.content_hash, record.commitment]
    sealed = record.sealed if isinstance(record.sealed, bytes) else b""  # SQLite does not enforce types
    return hashlib.sha256(json.dumps(parts).encode() + b"\0" + sealed).digest()


def pack_keys(keys: Mapping[bytes, bytes]) -> bytes:
    """The content of a key cache from copy keys by record digest."""
    return b"".join(digest + key for digest, key in keys.items())


def unpack_keys(content: bytes) -> dict[bytes, bytes]:
    """The copy keys in the content of a key cache, by record digest."""
    starts = range(0, len(content) - _ENTRY_BYTES + 1, _ENTRY_BYTES)
    return {content[i : i + SECRET_BYTES]: content[i + SECRET_BYTES : i + _ENTRY_BYTES] for i in starts}
