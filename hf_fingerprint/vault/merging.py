"""The union of two issuers' vaults, without loss.

Bases, their questions, records, publications and issuers of both are kept; what both have must be the same. A record
never changes once its copy is written, but for its state, so a record that differs was tampered with, and the whole
merge is refused by its name. The order of merging, and merging again, make no difference but in the order of rows.

A rogue issuer, who has the public key, can add records of its own making, dated and in plain sight, for any recipient,
as it can mark copies for any recipient. It can't replace an earlier record unnoticed, and nothing that it marks traces
by an earlier record, whose key it can't read.
"""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.forgetting import RECORDED, clear_journal, wipe
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.packing import BaseRow, PublicationRow, QuestionsRow, Snapshot, insert_rows, read_snapshot
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.rotation import resealed
from hf_fingerprint.vault.schema import read_base
from hf_fingerprint.vault.sealing import Opener
from hf_fingerprint.vault.store import Vault, unsealed
from hf_fingerprint.vault.transactions import transaction


_Row = TypeVar("_Row")
_STATES = ("begun", "written", "issued")
_UPDATE_COPY = (
    "UPDATE copies SET base_id = ?, recipient = ?, state = ?, out = ?, content_hash = ?, commitment = ?, created = ?, "
    "sealed = ? WHERE copy_id = ?"
)


@dataclass(frozen=True)
class MergeReport:
    """What a merge brought.

    Attributes:
        bases (`int`): how many bases are new.
        copies (`int`): how many records are new.
        moved (`int`): how many records moved forward.
        publications (`int`): how many publications are new, or moved forward.
        issuers (`tuple[str, ...]`): the new issuers, by name and public key: everybody with the vault may add some,
            so look at them.
    """

    bases: int = 0
    copies: int = 0
    moved: int = 0
    publications: int = 0
    issuers: tuple[str, ...] = ()

    def describe(self) -> str:
        """In a line."""
        changed = f"{self.moved} records moved forward, {self.publications} publications new or confirmed"
        line = f"{self.bases} new bases, {self.copies} new records, {changed}"
        return line + "".join(f"; new issuer {issuer}" for issuer in self.issuers)


def merge(into: Vault, other: Snapshot, opener: Opener | None = None, where: str = "the other vault") -> MergeReport:
    """Brings all that another vault has into this one, in one transaction: all of it or nothing.

    Args:
        into ([`Vault`]): this vault; it need not be unlocked.
        other ([`Snapshot`]): the other one's snapshot.
        opener ([`Opener`], *optional*): the tracing identity. With it, a record that is new must open its commitment,
            and one sealed to another identity, which this then is, is sealed anew to this vault's.
        where (`str`): what the other vault is called when something is refused.

    Raises:
        [`VaultError`]: if the two have different tracing identities, a row that both have differs, a new base is one
            that this package would not register, or a record is found to be a forgery.
    """
    with into.connect() as connection, transaction(connection):
        mine = read_snapshot(connection)
        if other.public_key != mine.public_key and opener is not None and opener.public_key == other.public_key:
            other = _to_this_identity(other, mine, opener)
        joined = join(mine, other, str(into.folder), where)
        if opener is not None and opener.public_key == mine.public_key:
            for copy_id in joined.copies.keys() - mine.copies.keys():
                unsealed(joined.copies[copy_id], opener)
        report = _write(connection, mine, joined, where)
        wiped = wipe(connection, RECORDED)  # a training begun here may have ended in a copy of this folder
    if wiped:
        with into.connect() as connection:
            clear_journal(connection)
    return report


def join(one: Snapshot, other: Snapshot, here: str = "this vault", there: str = "the other vault") -> Snapshot:
    """The union of two snapshots: commutative, associative, idempotent.

    Raises:
        [`VaultError`]: if there is none.
    """
    if one.public_key != other.public_key:
        raise VaultError(
            f"{there} is sealed to another tracing identity than {here}: give that identity, or rotate one first "
            f"(`hf-fingerprint vault rotate`)."
        )

    def join_bases(mine: BaseRow, theirs: BaseRow) -> BaseRow:
        if mine != theirs:
            raise VaultError(
                f"Base {mine[0]} was registered apart in {here} and in {there}, with different secrets: go on with "
                f"both vaults, and trace with each."
            )
        return mine

    def join_questions(mine: QuestionsRow, theirs: QuestionsRow) -> QuestionsRow:
        if mine != theirs:
            raise VaultError(
                f"Base {mine[0]} was given questions apart in {here} and in {there}: copies answer one set or the "
                f"other, so go on with both vaults, and query with each."
            )
        return mine

    def join_copies(mine: CopyRecord, theirs: CopyRecord) -> CopyRecord:
        state = max(mine.state, theirs.state, key=_STATES.index)
        if replace(mine, state=state) != replace(theirs, state=state):
            raise VaultError(
                f"The record of copy {mine.copy_id} ({mine.recipient}) in {there} is not the one in {here}: one of "
                f"them was tampered with, so restore a backup; nothing was merged."
            )
        return replace(mine, state=state)

    def join_publications(mine: PublicationRow, theirs: PublicationRow) -> PublicationRow:
        # a state's name is more the further it is: "begun" < "confirmed"
        first, last = sorted((mine, theirs), key=lambda row: (row.state, row.files, row.revision or ""))
        settled = first.state == "confirmed" and first[3:5] != last[3:5]
        if mine.repo != theirs.repo or settled:
            raise VaultError(
                f"Copy {mine.copy_id} is on record in {here} as published to {mine.repo} and in {there} to "
                f"{theirs.repo}, not as one and the same: one of them was tampered with, so restore a backup; nothing "
                f"was merged."
            )
        account = max(mine.account or "", theirs.account or "") or None
        return last._replace(account=account, created=min(mine.created, theirs.created))

    return Snapshot(
        public_key=one.public_key,
        bases=_union(one.bases, other.bases, join_bases),
        questions=_union(one.questions, other.questions, join_questions),
        copies=_union(one.copies, other.copies, join_copies),
        bound=_union(one.bound, other.bound, min),
        publications=_union(one.publications, other.publications, join_publications),
        issuers=_union(one.issuers, other.issuers, min),
    )


def _union(one: Mapping[str, _Row], other: Mapping[str, _Row], join: Callable[[_Row, _Row], _Row]) -> dict[str, _Row]:
    joined = dict(one)
    for key, row in other.items():
        joined[key] = join(joined[key], row) if key in joined else row
    return joined


def _to_this_identity(other: Snapshot, mine: Snapshot, opener: Opener) -> Snapshot:
    """Another identity's records, sealed to this vault's; those that a rotation brought here before keep the seal that
    it gave them."""
    copies = {}
    for record in other.copies.values():
        here, again = mine.copies.get(record.copy_id), resealed(record, opener, mine.public_key)
        same = here is not None and here.commitment == record.commitment
        copies[record.copy_id] = replace(again, sealed=here.sealed) if here is not None and same else again
    return replace(other, public_key=mine.public_key, copies=copies)


def _write(connection: sqlite3.Connection, mine: Snapshot, joined: Snapshot, where: str) -> MergeReport:
    bases = [row for key, row in joined.bases.items() if key not in mine.bases]
    for new_base in bases:
        read_base(new_base, entering=True)
    insert_rows(connection, "bases", bases)
    asked = [row for key, row in joined.questions.items() if key not in mine.questions]
    insert_rows(connection, "questions", asked)
    begun = {copy_id for (copy_id,) in connection.execute("SELECT copy_id FROM copies WHERE state = 'begun'")}
    changed = [record for key, record in joined.copies.items() if mine.copies.get(key) != record]
    new = [record for record in changed if record.copy_id not in mine.copies and record.copy_id not in begun]
    insert_rows(connection, "copies", [astuple(record) for record in new])
    moved = [record for record in changed if record not in new]
    for record in moved:
        if record.copy_id in begun:
            _check_begun(connection, record, where)
        connection.execute(_UPDATE_COPY, (*astuple(record)[1:], record.copy_id))
    insert_rows(connection, "bound", [row for key, row in joined.bound.items() if key not in mine.bound])
    published = [row for key, row in joined.publications.items() if mine.publications.get(key) != row]
    for row in published:
        connection.execute("DELETE FROM publications WHERE copy_id = ?", (row.copy_id,))
    insert_rows(connection, "publications", published)
    for public_key, name in joined.issuers.items():
        connection.execute("INSERT OR REPLACE INTO issuers VALUES (?, ?)", (public_key, name))
    issuers = [
        f"{name} ({public_key})"
        for public_key, name in joined.issuers.items()
        if public_key not in mine.issuers and name != REMOVED
    ]
    return MergeReport(len(bases), len(new), len(moved), len(published), tuple(issuers))


def _check_begun(connection: sqlite3.Connection, record: CopyRecord, where: str) -> None:
    """A record that was begun here and finished elsewhere (in a copy of this folder) moves forward. The key that it
    had here marks nothing, so another one takes its place; unless a training is under way with it."""
    named = "SELECT base_id, recipient, sealed FROM copies WHERE copy_id = ?"
    base_id, recipient, sealed = connection.execute(named, (record.copy_id,)).fetchone()
    training: Any = connection.execute("SELECT 1 FROM training WHERE copy_id = ?", (record.copy_id,)).fetchone()
    if (base_id, recipient) != (record.base_id, record.recipient) or (training and sealed != record.sealed):
        raise VaultError(
            f"The record of copy {record.copy_id} ({recipient}) was begun here and written in {where} with another "
            f"key: finish that copy here first; nothing was merged."
        )
