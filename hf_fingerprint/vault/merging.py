"""Merges another issuer's vault into this one, without loss.

A merge keeps the bases, trigger sets, records, publications and issuers of both vaults. Each row is checked by the
same rules, whether it comes in a pack or from a folder ([`read_snapshot`]), and against this vault
([`union_snapshots`]). A row that this package would not have written, or that contradicts this vault, is refused by
name together with the rows that depend on it; the others enter. A contradiction never changes this vault. For vaults
without contradictions, the order of merges and repeated merges change nothing but the order of rows.

A merge fails as a whole only if a union is meaningless: the other is not a vault, is damaged or has other tables, has
a newer format or another tracing identity.

A malicious issuer has the public key, so it can add records for any recipient, as it can mark copies for any
recipient. Such records are visible and dated, and the time of their arrival is kept here. The issuer can't replace an
earlier record, and a copy that it marks never traces to one, since it can't read the sealed key.
"""

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any

from hf_fingerprint.vault.arrival_times import Arrival, record_arrivals
from hf_fingerprint.vault.commitments import drop_disproved_records, refuse_unopenable, reseal_snapshot
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.issuers import REMOVED
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.row_validation import base_row_problem
from hf_fingerprint.vault.rows import read_table
from hf_fingerprint.vault.schema import COPY_COLUMNS, BaseRow, base_from_row
from hf_fingerprint.vault.sealing import AgeIdentity
from hf_fingerprint.vault.secure_delete import clear_journal, wipe_training_keys
from hf_fingerprint.vault.snapshots import TABLE_KEYS, Snapshot, insert_rows, read_shared_table, read_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.transactions import transaction
from hf_fingerprint.vault.union import Refusals, drop_refused, find_duplicate_records, union_snapshots


_UPDATE_COPY = (
    "UPDATE copies SET base_id = ?, recipient = ?, state = ?, out = ?, content_hash = ?, commitment = ?, created = ?, "
    "sealed = ? WHERE copy_id = ?"
)


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        bases (`int`): the number of new bases.
        copies (`int`): the number of new records.
        moved (`int`): the number of records whose state moved forward.
        publications (`int`): the number of publications that are new or moved forward.
        issuers (`tuple[str, ...]`): names and public keys of new issuers: check them, since any user can add some.
        ancestors (`tuple[str, ...]`): bases whose records got an ancestor, each with it: check them likewise.
        refused (`tuple[Fault, ...]`): rows of the other vault that did not enter.
        unusable (`tuple[Fault, ...]`): rows of this vault that can't be used; they are unchanged and not shared.
        arrived (`tuple[Arrival, ...]`): the new records with the time of this merge. Ignored by `==`.
    """

    bases: int = 0
    copies: int = 0
    moved: int = 0
    publications: int = 0
    issuers: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
    refused: tuple[Fault, ...] = ()
    unusable: tuple[Fault, ...] = ()
    arrived: tuple[Arrival, ...] = field(default=(), compare=False)

    @property
    def complete(self) -> bool:
        """Whether every row of both vaults could be used."""
        return not (self.refused or self.unusable)

    def describe(self) -> str:
        """One line of text."""
        changed = f"{self.moved} records moved forward, {self.publications} publications new or confirmed"
        line = f"{self.bases} new bases, {self.copies} new records, {changed}"
        line += "".join(f"; new issuer {issuer}" for issuer in self.issuers)
        return line + "".join(f"; new ancestor of base {ancestor}" for ancestor in self.ancestors)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __add__(self, later: "MergeReport") -> "MergeReport":
        """The result of two merges, one after the other."""
        both = {each.name: getattr(self, each.name) + getattr(later, each.name) for each in fields(self)}
        both |= {name: tuple(dict.fromkeys(both[name])) for name in ("refused", "unusable")}
        return MergeReport(**both)


def merge(
    into: Vault, other: Snapshot, age_identity: AgeIdentity | None = None, where: str = "the other vault"
) -> MergeReport:
    """Merges another vault into this one, in one transaction.

    Args:
        into ([`Vault`]): this vault; it may be locked.
        other ([`Snapshot`]): the other vault's snapshot; see [`open_pack`] and [`read_vault_folder`].
        age_identity ([`AgeIdentity`], *optional*): the tracing identity of either vault. With this vault's, new
            records must open their commitments. With the other's, its records are sealed to this vault's.
        where (`str`): the name of the other vault in messages.

    Raises:
        [`VaultError`]: if the two have different tracing identities, and the other's is not given. Single rows that
            can't enter are in the report.
    """
    return merge_with_union(into, other, age_identity, where)[0]


def merge_with_union(
    into: Vault, other: Snapshot, age_identity: AgeIdentity | None = None, where: str = "the other vault"
) -> tuple[MergeReport, Snapshot]:
    """[`merge`], and the union of the two vaults, to be pushed. Its faults are the rows that contradict this vault.

    So that a push never replaces a good row, the union has the other vault's row where this vault's can't be used, and
    both of two records that only the tracing identity could distinguish.
    """
    here = str(into.folder)
    # SQLite stops writing through a connection that has read damaged pages, so a second connection reads
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
        both = union_snapshots(mine, verified, here, where, duplicates if identity_key == mine.public_key else None)
        begun = _unfinished_copies(reading)
        blocked = _refuse_unusable_here(reading, mine, begun)
        blocked |= _refuse_finished_elsewhere(reading, begun, verified, where)
        joined = union_snapshots(mine, verified, here, where, duplicates | blocked)
        report = _write(connection, mine, joined, begun)
        finished = [copy_id for copy_id in begun if copy_id in joined.copies]
        wiped = [wipe_training_keys(connection, "copy_id = ?", copy_id) for copy_id in finished]
    if any(wiped):
        with into.connect() as connection:
            clear_journal(connection)
    refused = other.faults + verified.faults + joined.faults
    return replace(report, refused=refused, unusable=tuple(unusable)), both


def _refuse_new_bases(mine: Snapshot, other: Snapshot) -> Refusals:
    """The other vault's bases that an old vault may hold but a merge may not add; see [`check_base`]."""
    new = {base_id: row for base_id, row in other.bases.items() if base_id not in mine.bases}
    found = {("bases", base_id): base_row_problem(row, is_new=True) for base_id, row in new.items()}
    return {row: problem for row, problem in found.items() if problem is not None}


def _unfinished_copies(connection: sqlite3.Connection) -> dict[Any, CopyRecord]:
    """The records of copies that this vault began and did not finish, by id."""
    rows, _ = read_table(connection, "copies", "copy_id", COPY_COLUMNS, "state = 'begun'")
    return {row[0]: CopyRecord(*row) for row in rows}


def _refuse_unusable_here(connection: sqlite3.Connection, mine: Snapshot, begun: Collection[Any]) -> Refusals:
    """Rows that this vault holds but can't use; a merge leaves them unchanged."""
    found = {}
    for table, key in TABLE_KEYS.items():
        rows, _ = read_shared_table(connection, table, key)
        for (value,) in rows:
            if value not in mine.rows(table) and not (key == "copy_id" and value in begun):
                found[table, value] = "is refused, since this vault's own row with that key can't be used"
    return found


def _refuse_finished_elsewhere(
    connection: sqlite3.Connection, begun: Mapping[Any, CopyRecord], other: Snapshot, where: str
) -> Refusals:
    """Records that this vault began and that can't be replaced by the other's finished ones.

    A record that was finished elsewhere, in a copy of this folder, moves forward here even with another key, since the
    key here marks nothing yet, unless a training uses it.
    """
    training = {copy_id for (copy_id,) in connection.execute("SELECT copy_id FROM training")}
    problem = f"was begun here and finished in {where} with another key, and is refused: finish that copy here first"
    found = {}
    for copy_id, here in begun.items():
        record = other.copies.get(copy_id, here)
        another = (here.base_id, here.recipient) != (record.base_id, record.recipient)
        if another or (copy_id in training and here.sealed != record.sealed):
            found["copies", copy_id] = problem
    return found


def _write(connection: sqlite3.Connection, mine: Snapshot, joined: Snapshot, begun: Collection[Any]) -> MergeReport:
    bases = [row for key, row in joined.bases.items() if key not in mine.bases]
    insert_rows(connection, "bases", bases)
    descended = [row for key, row in joined.bases.items() if mine.bases.get(key, row) != row]
    for base_id, _, document, _, _, seal in descended:
        connection.execute("UPDATE bases SET document = ?, seal = ? WHERE base_id = ?", (document, seal, base_id))
    insert_rows(
        connection, "questions", [row for key, row in joined.trigger_sets.items() if key not in mine.trigger_sets]
    )
    changed = [record for key, record in joined.copies.items() if mine.copies.get(key) != record]
    new = [record for record in changed if record.copy_id not in mine.copies and record.copy_id not in begun]
    insert_rows(connection, "copies", [astuple(record) for record in new])
    moved = [record for record in changed if record.copy_id in mine.copies or record.copy_id in begun]
    for record in moved:
        connection.execute(_UPDATE_COPY, (*astuple(record)[1:], record.copy_id))
    insert_rows(connection, "bound", [row for key, row in joined.answering.items() if key not in mine.answering])
    published = [row for key, row in joined.publications.items() if mine.publications.get(key) != row]
    for row in published:
        connection.execute("DELETE FROM publications WHERE copy_id = ?", (row.copy_id,))
    insert_rows(connection, "publications", published)
    issuers = {key: name for key, name in joined.issuers.items() if mine.issuers.get(key) != name}
    for public_key, name in issuers.items():
        connection.execute("INSERT OR REPLACE INTO issuers VALUES (?, ?)", (public_key, name))
    added = {key: name for key, name in issuers.items() if key not in mine.issuers and name != REMOVED}
    named, arrived = tuple(f"{name} ({key})" for key, name in added.items()), record_arrivals(connection, new)
    named_ancestors = tuple(f"{row[0]} ({_ancestor_place(row)})" for row in descended)
    return MergeReport(len(bases), len(new), len(moved), len(published), named, named_ancestors, arrived=arrived)


def _ancestor_place(row: BaseRow) -> str:
    ancestor = base_from_row(row).ancestor
    return "none" if ancestor is None else ancestor.place
