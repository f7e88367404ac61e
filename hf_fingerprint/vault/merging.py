"""Brings what another issuer's vault has into this one, without loss.

Bases, their questions, records, publications and issuers of both are kept. Whatever enters is held against one set of
rules, whether it comes in a pack or in a folder ([`read_snapshot`]), and against what is here ([`join`]): a row that
is not as this package writes it, or contradicts one that is here, is refused by name with what depends on it, and the
rest enters. Nothing that is here changes by a contradiction. The order of merging, and merging again, make no
difference but in the order of rows, for vaults that don't contradict each other.

Only what makes a union meaningless refuses the whole: no vault at all, a database that is damaged or has other tables,
a newer format, another tracing identity.

A rogue issuer, who has the public key, can add records of its own making, dated and in plain sight, for any recipient,
as it can mark copies for any recipient. It can't replace an earlier record, nothing that it marks traces by an earlier
record, whose key it can't read, and when its records arrived is kept here.
"""

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from hf_fingerprint.vault.arrival_times import Arrival, record_arrivals
from hf_fingerprint.vault.commitments import drop_disproved_records, refuse_unopenable, reseal_snapshot
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.row_validation import base_row_problem
from hf_fingerprint.vault.rows import read_table
from hf_fingerprint.vault.schema import COPY_COLUMNS, copy_from_row
from hf_fingerprint.vault.sealing import AgeIdentity
from hf_fingerprint.vault.secure_delete import clear_journal, wipe_training_keys
from hf_fingerprint.vault.snapshots import TABLE_KEYS, Snapshot, insert_rows, read_shared_table, read_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.transactions import transaction
from hf_fingerprint.vault.union import Refusals, drop_refused, find_duplicate_records, join


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
        refused (`tuple[Fault, ...]`): rows of the other vault that did not enter, and why.
        unusable (`tuple[Fault, ...]`): rows of this vault that can't be used: they were left as they are, and are
            not shared.
        arrived (`tuple[Arrival, ...]`): the new records, with their issuers' dates and the time of this merge. Not
            compared.
    """

    bases: int = 0
    copies: int = 0
    moved: int = 0
    publications: int = 0
    issuers: tuple[str, ...] = ()
    refused: tuple[Fault, ...] = ()
    unusable: tuple[Fault, ...] = ()
    arrived: tuple[Arrival, ...] = field(default=(), compare=False)

    @property
    def complete(self) -> bool:
        """Whether every row of both vaults could be used."""
        return not (self.refused or self.unusable)

    def describe(self) -> str:
        """In a line."""
        changed = f"{self.moved} records moved forward, {self.publications} publications new or confirmed"
        line = f"{self.bases} new bases, {self.copies} new records, {changed}"
        return line + "".join(f"; new issuer {issuer}" for issuer in self.issuers)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "bases": self.bases,
            "copies": self.copies,
            "moved": self.moved,
            "publications": self.publications,
            "issuers": list(self.issuers),
            "arrived": [arrival.to_dict() for arrival in self.arrived],
            "refused": [fault.to_dict() for fault in self.refused],
            "unusable": [fault.to_dict() for fault in self.unusable],
        }

    def __add__(self, later: "MergeReport") -> "MergeReport":
        """What two merges, one after the other, brought."""
        return MergeReport(
            bases=self.bases + later.bases,
            copies=self.copies + later.copies,
            moved=self.moved + later.moved,
            publications=self.publications + later.publications,
            issuers=self.issuers + later.issuers,
            refused=tuple(dict.fromkeys(self.refused + later.refused)),
            unusable=tuple(dict.fromkeys(self.unusable + later.unusable)),
            arrived=self.arrived + later.arrived,
        )


def merge(
    into: Vault, other: Snapshot, age_identity: AgeIdentity | None = None, where: str = "the other vault"
) -> MergeReport:
    """Brings what another vault has into this one, in one transaction: all that enters, or nothing.

    Args:
        into ([`Vault`]): this vault; it need not be unlocked.
        other ([`Snapshot`]): the other one's snapshot; see [`open_pack`] and [`open_folder`].
        age_identity ([`AgeIdentity`], *optional*): the tracing identity. With it, a record that is new must open its commitment,
            and one sealed to another identity, which this then is, is sealed anew to this vault's.
        where (`str`): what the other vault is called when something is refused.

    Raises:
        [`VaultError`]: if the two have different tracing identities. A single row that can't enter is named in the
            report.
    """
    return merge_with_union(into, other, age_identity, where)[0]


def merge_with_union(
    into: Vault, other: Snapshot, age_identity: AgeIdentity | None = None, where: str = "the other vault"
) -> tuple[MergeReport, Snapshot]:
    """[`merge`], and what the two vaults hold together, to be pushed.

    Of a row that is in both and can't be used here, that is the other's, and of records that only the tracing identity
    could tell apart both, so that no push replaces what is good. Its faults are what contradicts this vault.
    """
    here = str(into.folder)
    # a connection that came upon damage while it read writes no more, so another one reads; nobody else can write
    with into.connect() as reading, into.connect() as connection, transaction(connection):
        mine, identity_key = read_snapshot(reading), None if age_identity is None else age_identity.public_key
        unusable, refusals = list(mine.faults), _refuse_new_bases(mine, other)
        if age_identity is not None and identity_key == other.public_key != mine.public_key:
            other, unopenable = reseal_snapshot(other, mine, age_identity)
            refusals |= unopenable
        elif age_identity is not None and identity_key == mine.public_key == other.public_key:
            mine, found = drop_disproved_records(mine, other, age_identity)
            unusable += found
            refusals |= refuse_unopenable(mine, other, age_identity)
        verified = drop_refused(other, refusals)
        duplicates = find_duplicate_records(mine, verified)
        both = join(mine, verified, here, where, duplicates if identity_key == mine.public_key else None)
        begun = _unfinished_copies(reading)
        blocked = _refuse_unusable_here(reading, mine, begun) | _refuse_finished_elsewhere(
            reading, begun, verified, where
        )
        joined = join(mine, verified, here, where, duplicates | blocked)
        report = _write(connection, mine, joined, begun)
        finished = [copy_id for copy_id in begun if copy_id in joined.copies]  # in a copy of this folder
        wiped = [wipe_training_keys(connection, "copy_id = ?", copy_id) for copy_id in finished]
    if any(wiped):
        with into.connect() as connection:
            clear_journal(connection)
    refused = other.faults + verified.faults + joined.faults
    return replace(report, refused=refused, unusable=tuple(unusable)), both


def _refuse_new_bases(mine: Snapshot, other: Snapshot) -> Refusals:
    """The other's bases that a vault of long ago may have and a new one may not; see [`check_base`]."""
    new = {base_id: row for base_id, row in other.bases.items() if base_id not in mine.bases}
    found = {("bases", base_id): base_row_problem(row, is_new=True) for base_id, row in new.items()}
    return {row: problem for row, problem in found.items() if problem is not None}


def _unfinished_copies(connection: sqlite3.Connection) -> dict[Any, CopyRecord]:
    """The records of copies that were begun here and not written."""
    rows, _ = read_table(connection, "copies", "copy_id", COPY_COLUMNS, "state = 'begun'")
    return {record.copy_id: record for record in map(copy_from_row, rows)}


def _refuse_unusable_here(connection: sqlite3.Connection, mine: Snapshot, begun: Collection[Any]) -> Refusals:
    """The keys of rows that are here and can't be used: they are left as they are."""
    found = {}
    for table, key in TABLE_KEYS.items():
        rows, _ = read_shared_table(connection, table, key)
        for (value,) in rows:
            if value not in getattr(mine, table) and not (key == "copy_id" and value in begun):
                found[table, value] = "is refused, since the row of this vault in its place can't be used"
    return found


def _refuse_finished_elsewhere(
    connection: sqlite3.Connection, begun: Mapping[Any, CopyRecord], other: Snapshot, where: str
) -> Refusals:
    """A record that was begun here and finished elsewhere (in a copy of this folder) moves forward. The key that it
    had here marks nothing, so another one takes its place; unless a training is under way with it."""
    training = {copy_id for (copy_id,) in connection.execute("SELECT copy_id FROM training")}
    found = {}
    for copy_id, here in begun.items():
        record = other.copies.get(copy_id)
        if record is None:
            continue
        another = (here.base_id, here.recipient) != (record.base_id, record.recipient)
        if another or (copy_id in training and here.sealed != record.sealed):
            found["copies", copy_id] = (
                f"was begun here and written in {where} with another key, and is refused: finish that copy here first"
            )
    return found


def _write(connection: sqlite3.Connection, mine: Snapshot, joined: Snapshot, begun: Collection[Any]) -> MergeReport:
    bases = [row for key, row in joined.bases.items() if key not in mine.bases]
    insert_rows(connection, "bases", bases)
    trigger_sets = [row for key, row in joined.questions.items() if key not in mine.questions]
    insert_rows(connection, "questions", trigger_sets)
    changed = [record for key, record in joined.copies.items() if mine.copies.get(key) != record]
    new = [record for record in changed if record.copy_id not in mine.copies and record.copy_id not in begun]
    insert_rows(connection, "copies", [astuple(record) for record in new])
    moved = [record for record in changed if record.copy_id in mine.copies or record.copy_id in begun]
    for record in moved:
        connection.execute(_UPDATE_COPY, (*astuple(record)[1:], record.copy_id))
    insert_rows(connection, "bound", [row for key, row in joined.bound.items() if key not in mine.bound])
    published = [row for key, row in joined.publications.items() if mine.publications.get(key) != row]
    for row in published:
        connection.execute("DELETE FROM publications WHERE copy_id = ?", (row.copy_id,))
    insert_rows(connection, "publications", published)
    issuers = {key: name for key, name in joined.issuers.items() if mine.issuers.get(key) != name}
    for public_key, name in issuers.items():
        connection.execute("INSERT OR REPLACE INTO issuers VALUES (?, ?)", (public_key, name))
    new_issuers = [
        f"{name} ({public_key})"
        for public_key, name in issuers.items()
        if public_key not in mine.issuers and name != REMOVED
    ]
    arrived = record_arrivals(connection, new)
    return MergeReport(len(bases), len(new), len(moved), len(published), tuple(new_issuers), arrived=arrived)
