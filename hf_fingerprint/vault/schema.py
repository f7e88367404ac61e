"""The vault's file format: the tables of its SQLite database, and bases as rows."""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from hf_fingerprint.keys import derive
from hf_fingerprint.vault.base_validation import base_row_error, check_base, short_repr
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Ancestor, Base, Calibration, Carrier, CompactMark, TensorRecord


FORMAT = 3
# Frozen, comments included. `questions` holds trigger sets, `bundles` key caches, `bound` copies that answer triggers.
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bases (
    base_id TEXT PRIMARY KEY,
    content_hash TEXT NOT NULL,  -- two issuers may have registered one model apart, with secrets of their own
    document TEXT NOT NULL,      -- JSON: everything but the two columns after it
    amplitudes BLOB NOT NULL,    -- float32, little-endian: the rows of all carriers, one after another
    secret BLOB NOT NULL,        -- the model secret
    seal TEXT NOT NULL           -- HMAC-SHA256 of document and amplitudes under a key from the secret
);
CREATE TABLE copies (
    copy_id TEXT PRIMARY KEY,
    base_id TEXT NOT NULL REFERENCES bases,
    recipient TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'written', 'issued')),
    out TEXT NOT NULL,
    content_hash TEXT,
    commitment TEXT,
    created TEXT NOT NULL,
    sealed BLOB NOT NULL         -- age: the copy key and what it belongs to
);
CREATE TABLE verified (          -- files whose weights were hashed: not again while size, times and inodes stand
    place TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    content_hash TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE bundles (           -- copy keys that a trace has unsealed, sealed again as one; see bundles.py
    base_id TEXT PRIMARY KEY REFERENCES bases,
    sealed BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE training (          -- keys of copies in training, until these are recorded
    copy_id TEXT PRIMARY KEY REFERENCES copies,
    copy_key BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE publications (      -- which copy goes to which Hub repo
    copy_id TEXT PRIMARY KEY REFERENCES copies,
    repo TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'confirmed')),
    files TEXT NOT NULL,         -- JSON: the SHA-256 of each file that is pushed, by its path
    revision TEXT,               -- the commit, once confirmed
    account TEXT,                -- the Hub account that is given access
    created TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE issuers (           -- public keys of machines that may open a pushed vault and mark copies
    public_key TEXT PRIMARY KEY,
    name TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE questions (         -- what a base's copies are asked, and how they are made to answer
    base_id TEXT PRIMARY KEY REFERENCES bases,
    content BLOB NOT NULL,       -- safetensors
    seal TEXT NOT NULL           -- HMAC-SHA256 of the base's id and the content under a key from the secret
) WITHOUT ROWID;
CREATE TABLE bound (             -- copies that were made to answer the questions: none that is older than these
    copy_id TEXT PRIMARY KEY REFERENCES copies
) WITHOUT ROWID;
CREATE INDEX copies_of_base ON copies (base_id, recipient);
"""
_CODE_FIELDS = ("family", "length", "coalition", "certified", "certified_by", "alpha")
_MEASURED = ("kl", "agreement")  # in every document, even if null
BASE_COLUMNS = "base_id, content_hash, document, amplitudes, secret, seal"
BaseRow = tuple[str, str, str, bytes, bytes, str]
COPY_COLUMNS = "copy_id, base_id, recipient, state, out, content_hash, commitment, created, sealed"


def base_to_row(base: Base) -> BaseRow:
    """The row of a base."""
    document = {
        "source": base.source,
        "revision": base.revision,
        "tensors": [[name, record.dtype, list(record.shape), record.digest] for name, record in base.tensors.items()],
        "carriers": [[carrier.name, carrier.eps] for carrier in base.carriers],
        **{name: getattr(base, name) for name in _CODE_FIELDS},
        "recipients_planned": base.expected_recipients,
        "calibration": {k: v for k, v in asdict(base.calibration).items() if v is not None or k in _MEASURED},
        **base.optional_fields(),
    }
    text = json.dumps(document, separators=(",", ":"))
    amplitudes = b"".join(carrier.amplitude.astype("<f4").tobytes() for carrier in base.carriers)
    seal = _seal(base.secret, base.base_id, base.content_hash, text, amplitudes)
    return base.base_id, base.content_hash, text, amplitudes, base.secret, seal


def base_from_row(row: BaseRow) -> Base:
    """The base in a row.

    Raises:
        [`RowError`]: if the row was tampered with, or its document is invalid.
    """
    base_id, content_hash, text, amplitudes, secret, seal = row
    _check_seal("bases", base_id, seal, lambda: _seal(secret, base_id, content_hash, text, amplitudes))
    try:
        return _from_document(base_id, content_hash, json.loads(text), np.frombuffer(amplitudes, "<f4"), secret)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        raise base_row_error(base_id, "its document is invalid") from None


def _from_document(base_id: str, content_hash: str, document: dict[str, Any], rows: np.ndarray, secret: bytes) -> Base:
    """The base in a document; raises any of the errors that [`base_from_row`] catches if it is invalid."""
    tensors = {name: TensorRecord(dtype, tuple(shape), digest) for name, dtype, shape, digest in document["tensors"]}
    carriers = []
    for name, eps in document["carriers"]:
        count = tensors[name].shape[0]
        if not 0 <= count <= len(rows):
            raise ValueError(name)
        carriers.append(Carrier(name, eps, rows[:count]))
        rows = rows[count:]
    if len(rows) or len(tensors) < len(document["tensors"]):
        raise ValueError(base_id)
    return Base(
        base_id=base_id,
        content_hash=content_hash,
        tensors=tensors,
        carriers=tuple(carriers),
        calibration=Calibration(**document["calibration"]),
        expected_recipients=document["recipients_planned"],
        secret=secret,
        compact=CompactMark(**document["compact"]) if "compact" in document else None,
        replaces=document.get("replaces"),
        copy_of=document.get("copy_of"),
        ancestor=Ancestor(**document["ancestor"]) if "ancestor" in document else None,
        **{name: document[name] for name in ("source", "revision", *_CODE_FIELDS)},
    )


def read_base(row: BaseRow, is_new: bool = False) -> Base:
    """The base in a row, checked with [`check_base`].

    Raises:
        [`VaultError`]: with the base's id and what is wrong.
    """
    base = base_from_row(row)
    check_base(base, is_new)
    return base


def row_with_ancestor(row: BaseRow, ancestor: Ancestor | None) -> BaseRow:
    """The row of a base with another ancestor, or none; nothing else in it changes."""
    base_id, content_hash, text, amplitudes, secret, _ = row
    document = {name: value for name, value in json.loads(text).items() if name != "ancestor"}
    if ancestor is not None:
        document["ancestor"] = asdict(ancestor)
    text = json.dumps(document, separators=(",", ":"))
    return base_id, content_hash, text, amplitudes, secret, _seal(secret, base_id, content_hash, text, amplitudes)


def differ_in_ancestor_alone(one: BaseRow, other: BaseRow) -> bool:
    """Whether two rows of one base name different ancestors, or one names none, and are equal otherwise."""
    same_columns = all(one[column] == other[column] for column in (0, 1, 3, 4))
    try:
        sealed = all(row[5] == _seal(row[4], *row[:4]) for row in (one, other))
        return (
            sealed and same_columns and one != other and row_with_ancestor(one, None) == row_with_ancestor(other, None)
        )
    except (ValueError, TypeError, AttributeError):
        return False


def seal_trigger_set(secret: bytes, base_id: str, content: bytes) -> str:
    """The seal of a base's trigger set, hexadecimal."""
    return hmac.new(derive(secret, "questions_record"), base_id.encode() + b"\n" + content, hashlib.sha256).hexdigest()


def check_trigger_set(secret: bytes, row: tuple[str, bytes, str]) -> bytes:
    """The content of a row of table `questions`.

    Raises:
        [`RowError`]: if the row was tampered with.
    """
    base_id, content, seal = row
    _check_seal("questions", base_id, seal, lambda: seal_trigger_set(secret, base_id, content))
    return content


def _check_seal(table: str, base_id: str, seal: str, make_seal: Callable[[], str]) -> None:
    try:
        if hmac.compare_digest(seal.encode(), make_seal().encode()):
            return
    except (TypeError, AttributeError, ValueError):  # SQLite does not enforce column types
        pass
    raise RowError(Fault(table, short_repr(base_id), "was tampered with or damaged"))


def _seal(secret: bytes, base_id: str, content_hash: str, text: str, amplitudes: bytes) -> str:
    message = f"{base_id}\n{content_hash}\n{text}\n".encode() + amplitudes
    return hmac.new(derive(secret, "record"), message, hashlib.sha256).hexdigest()
