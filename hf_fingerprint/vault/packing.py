"""A vault as it leaves its folder: a snapshot of what all its issuers share, and that snapshot encrypted.

A snapshot holds the bases with their secrets and questions, the records of copies that were written, which of these
answer the questions, where they were published, and the issuers. What belongs to one machine stays there:

* which files were hashed, and the bundles: shortcuts, made anew where they are needed;
* the keys of copies in training: another issuer could read that recipient's codeword;
* records of copies that were begun and never written: they mark nothing yet, and are resumed where they were begun.

A pack is an SQLite database of the vault's format with the snapshot's rows and nothing else, encrypted with age to the
tracing identity and to every issuer: `age -d -i KEY vault.age > vault.db` opens it too. Age says nothing about who
encrypted it, so what comes out is checked like anything from a stranger; see [`merge`] for what it can't overwrite.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import Any, NamedTuple

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.checking import check_base
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.schema import (
    COPY_COLUMNS,
    FORMAT,
    TABLES,
    base_from_row,
    check_questions,
    copy_from_row,
)
from hf_fingerprint.vault.sealing import Opener, seal_pack
from hf_fingerprint.vault.store import Vault


BaseRow = tuple[str, str, str, bytes, bytes, str]
QuestionsRow = tuple[str, bytes, str]
UNASKED = "2"  # the format that had no questions
_SINCE_QUESTIONS = ("questions", "bound")
_WRITTEN = "state != 'begun'"
_SHARED = f"copy_id IN (SELECT copy_id FROM copies WHERE {_WRITTEN})"


class PublicationRow(NamedTuple):
    """A row of table `publications`."""

    copy_id: str
    repo: str
    state: str
    files: str
    revision: str | None
    account: str | None
    created: str


@dataclass(frozen=True)
class Snapshot:
    """What the issuers of a vault share, by its keys; two are equal whatever the order of their rows.

    Attributes:
        public_key (`str`): of the tracing identity.
        bases (`dict[str, tuple]`): rows of table `bases`, model secrets included.
        copies (`dict[str, CopyRecord]`): the records of copies that were written.
        publications (`dict[str, PublicationRow]`): where these were published.
        issuers (`dict[str, str]`): the issuers' names by public key; the removed ones have none.
        questions (`dict[str, tuple]`): rows of table `questions`.
        bound (`dict[str, tuple]`): rows of table `bound`, of these copies.
    """

    public_key: str
    bases: Mapping[str, BaseRow] = field(repr=False)
    copies: Mapping[str, CopyRecord] = field(repr=False)
    publications: Mapping[str, PublicationRow] = field(repr=False)
    issuers: Mapping[str, str]
    questions: Mapping[str, QuestionsRow] = field(default_factory=dict, repr=False)
    bound: Mapping[str, tuple[str]] = field(default_factory=dict, repr=False)


def take_snapshot(vault: Vault) -> Snapshot:
    """What the vault shares, at one moment, while others go on issuing."""
    with vault.connect() as connection:
        connection.execute("BEGIN")
        return read_snapshot(connection)


def read_snapshot(connection: sqlite3.Connection, asked: bool = True) -> Snapshot:
    """The same from an open database, in the caller's transaction; not `asked` if it is of the format without
    questions."""

    def rows(statement: str) -> list[Any]:
        return connection.execute(statement).fetchall()

    bases = rows("SELECT base_id, content_hash, document, amplitudes, secret, seal FROM bases ORDER BY rowid")
    copies = [copy_from_row(row) for row in rows(f"SELECT {COPY_COLUMNS} FROM copies WHERE {_WRITTEN} ORDER BY rowid")]
    columns = ", ".join(PublicationRow._fields)
    published = [PublicationRow(*row) for row in rows(f"SELECT {columns} FROM publications WHERE {_SHARED}")]
    return Snapshot(
        public_key=dict(rows("SELECT key, value FROM meta")).get("public_key", ""),
        bases={row[0]: row for row in bases},
        questions={row[0]: row for row in rows("SELECT base_id, content, seal FROM questions")} if asked else {},
        bound={row[0]: row for row in rows(f"SELECT copy_id FROM bound WHERE {_SHARED}")} if asked else {},
        copies={record.copy_id: record for record in copies},
        publications={row.copy_id: row for row in published},
        issuers=dict(rows("SELECT public_key, name FROM issuers")),
    )


def pack_vault(vault: Vault) -> bytes:
    """The vault as it may be kept on the Hub: a snapshot, encrypted to its tracing identity and its issuers."""
    return pack_snapshot(take_snapshot(vault))


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot encrypted to the tracing identity and the issuers that it names."""
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
    openers = [public_key for public_key, name in snapshot.issuers.items() if name != REMOVED]
    return seal_pack(content, [snapshot.public_key, *openers])


def insert_rows(connection: sqlite3.Connection, table: str, rows: Any) -> None:
    """Inserts rows, each with a value for every column of a table."""
    for row in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", tuple(row))


def open_pack(content: bytes, opener: Opener, where: str) -> Snapshot:
    """Opens a pack.

    Args:
        content (`bytes`): the pack.
        opener ([`Opener`]): the tracing identity, or an issuer's key.
        where (`str`): where it was found, for what is refused.

    Raises:
        [`VaultError`]: if this key doesn't open it, or what comes out is no vault.
    """
    opened = opener.unseal_pack(content)
    if opened is None:
        raise VaultError(
            f"The vault in {where} does not open with the key of {opener.public_key}: give the tracing identity, or "
            f"add that key as an issuer's and push again."
        )
    if not opened:
        raise _damaged(where)
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.deserialize(opened)
            connection.execute("PRAGMA trusted_schema = OFF")
            snapshot = _read_checked(connection, where)
        except (sqlite3.Error, UnicodeDecodeError):
            raise _damaged(where) from None
    return snapshot


def _read_checked(connection: sqlite3.Connection, where: str) -> Snapshot:
    schema, own = _schema(connection), _own_schema()
    earlier = frozenset(each for each in own if each[2] not in _SINCE_QUESTIONS)
    has_meta = any(table in schema for table in own if table[1] == "meta")
    found = dict(connection.execute("SELECT key, value FROM meta")).get("format") if has_meta else None
    asked = found != UNASKED
    if found is not None and found != str(FORMAT) and asked:
        raise VaultError(
            f"The vault in {where} has format {ascii(found)[:80]} and this version reads {FORMAT}: upgrade "
            f"hf-fingerprint everywhere, and push again."
        )
    if schema != (own if asked else earlier) or connection.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
        raise _damaged(where)
    snapshot = read_snapshot(connection, asked)
    _check(snapshot, where)
    return snapshot


def _check(snapshot: Snapshot, where: str) -> None:
    """Refuses rows that no vault holds."""
    for row in snapshot.bases.values():
        try:
            base = base_from_row(row)
        except VaultError:
            raise _damaged(where) from None
        check_base(base)
    for base_id, asked in snapshot.questions.items():
        try:
            check_questions(snapshot.bases[base_id][4], asked)
        except (VaultError, KeyError, TypeError):
            raise _damaged(where) from None
    text, optional, content = (str,), (str, type(None)), (bytes,)
    kinds: list[tuple[Any, tuple[tuple[type, ...], ...]]] = [
        (map(astuple, snapshot.copies.values()), (*(text,) * 5, optional, optional, text, content)),
        (snapshot.publications.values(), (*(text,) * 4, optional, optional, text)),
        (snapshot.issuers.items(), (text, text)),
    ]
    for rows, columns in kinds:
        if not all(isinstance(value, kind) for row in rows for value, kind in zip(row, columns, strict=True)):
            raise _damaged(where)
    for record in snapshot.copies.values():
        if record.base_id not in snapshot.bases or not record.content_hash or not record.commitment:
            raise _damaged(where)
    for published in snapshot.publications.values():
        try:
            json.loads(published.files).items()
        except (ValueError, AttributeError):
            raise _damaged(where) from None


def _damaged(where: str) -> VaultError:
    return VaultError(
        f"What is encrypted in {where} is no whole vault: restore an earlier commit of it, or push anew."
    )


def _schema(connection: sqlite3.Connection) -> set[Any]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


@cache
def _own_schema() -> frozenset[Any]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(TABLES)
        return frozenset(_schema(connection))
