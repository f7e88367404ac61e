"""Copy keys that were unsealed once, sealed again as one, so that a later trace opens one seal and not thousands.

A bundle holds, for each record, its digest and its copy key, 32 bytes each. It is sealed to the same tracing identity.
A record that was changed in any column has another digest, isn't found in the bundle, and is then unsealed and checked
by itself; so a bundle is a shortcut and never the last word.
"""

import hashlib
import json
from collections.abc import Mapping

from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.records import CopyRecord


_ENTRY_BYTES = 2 * SECRET_BYTES


def record_digest(record: CopyRecord) -> bytes:
    """SHA-256 over all of a record that its copy key must fit."""
    parts = [record.copy_id, record.base_id, record.recipient, record.content_hash, record.commitment]
    sealed = record.sealed if isinstance(record.sealed, bytes) else b""  # SQLite keeps whatever type it was given
    return hashlib.sha256(json.dumps(parts).encode() + b"\0" + sealed).digest()


def pack_keys(keys: Mapping[bytes, bytes]) -> bytes:
    """A bundle's content from copy keys by record digest."""
    return b"".join(digest + key for digest, key in keys.items())


def unpack_keys(content: bytes) -> dict[bytes, bytes]:
    """The copy keys in a bundle's content, by record digest."""
    starts = range(0, len(content) - _ENTRY_BYTES + 1, _ENTRY_BYTES)
    return {content[i : i + SECRET_BYTES]: content[i + SECRET_BYTES : i + _ENTRY_BYTES] for i in starts}
