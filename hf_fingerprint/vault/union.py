"""The union of two snapshots, row by row. Contradicting rows are refused, with the rows that depend on them.

Without contradictions, the union is commutative, associative and idempotent. If the two contradict each other, this
vault's row is kept. The record of a written copy never changes except for its state, so one of the two was tampered
with, and the rows don't show which.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.rows import STATES, copy_fault
from hf_fingerprint.vault.schema import BaseRow, differ_in_ancestor_alone
from hf_fingerprint.vault.snapshots import PublicationRow, Snapshot


Refusals = dict[tuple[str, str], str]  # what is wrong with a row, by its table and key


def union_snapshots(
    mine: Snapshot,
    theirs: Snapshot,
    here: str = "this vault",
    there: str = "the other vault",
    refusals: Refusals | None = None,
) -> Snapshot:
    """The union of two snapshots. Its faults are the refused rows of the second.

    Args:
        mine, theirs ([`Snapshot`]): the two snapshots.
        here, there (`str`): the names of their vaults in messages.
        refusals (`dict`, *optional*): rows of `theirs` to refuse in any case, with the reasons.

    Raises:
        [`VaultError`]: if they are sealed to different tracing identities.
    """
    if mine.public_key != theirs.public_key:
        raise VaultError(
            f"{there} is sealed to another tracing identity than {here}: give that identity, or rotate one first "
            f"(`hf-fingerprint vault rotate`)."
        )
    union = _SnapshotUnion(mine, theirs, here, there, refusals or {})
    return Snapshot(  # in the order of the tables: a row is refused with the one that it depends on
        public_key=mine.public_key,
        bases=union.bases(),
        trigger_sets=union.trigger_sets(),
        copies=union.copies(),
        answering=union.answering(),
        publications=union.publications(),
        issuers=union.issuers(),
        faults=tuple(union.refused),
    )


def same_except_state(mine: CopyRecord, theirs: CopyRecord) -> bool:
    """Whether two records of a copy are equal except for their state."""
    return replace(mine, state=theirs.state) == theirs


def drop_refused(snapshot: Snapshot, refusals: Refusals) -> Snapshot:
    """A snapshot without refused rows and the rows that depend on them, which are its faults."""
    return union_snapshots(Snapshot(snapshot.public_key, {}, {}, {}, {}), snapshot, refusals=refusals)


def find_duplicate_records(mine: Snapshot, theirs: Snapshot) -> Refusals:
    """The records of `theirs` that repeat another one under another id, which would count a recipient twice."""
    found: dict[tuple[str, str], str] = {}
    seen = {mark: record for record in mine.copies.values() for mark in (record.commitment, record.sealed)}
    for copy_id, record in theirs.copies.items():
        duplicate = seen.get(record.commitment) or seen.get(record.sealed)
        if duplicate is None:
            seen |= {record.commitment: record, record.sealed: record}
        elif duplicate.copy_id != copy_id:
            other = copy_fault(duplicate, "").key
            found["copies", copy_id] = (
                f"has the commitment or the seal of copy {other} under another id, and is refused"
            )
    return found


@dataclass
class _SnapshotUnion:
    mine: Snapshot
    theirs: Snapshot
    here: str
    there: str
    refusals: Refusals
    refused: list[Fault] = field(default_factory=list)
    refused_keys: set[tuple[str, str]] = field(default_factory=set)  # table and key of each refused row

    def add(self, rows: dict[str, Any], table: str, key: str, row: Any, problem: str | None) -> None:
        """Adds one of their rows to the union's rows of a table, or refuses it if there is a problem."""
        if problem is None:
            rows[key] = row
        else:
            fault = Fault(table, short_repr(key), problem)
            self.refused.append(copy_fault(row, problem) if isinstance(row, CopyRecord) else fault)
            self.refused_keys.add((table, key))

    def bases(self) -> dict[str, BaseRow]:
        joined = dict(self.mine.bases)
        for base_id, row in self.theirs.bases.items():
            problem = self.refusals.get(("bases", base_id))
            known = joined.get(base_id, row)
            if problem is None and differ_in_ancestor_alone(known, row):
                joined[base_id] = self._choose_ancestor(known, row)
                continue
            if problem is None and known != row:
                problem = (
                    f"was registered separately in {self.here} and {self.there}, with different secrets, and is "
                    f"refused: keep both vaults, and trace with each"
                )
            if problem is None and base_id not in joined:
                problem = self._wrong_predecessor(row)
            self.add(joined, "bases", base_id, row, problem)
        return joined

    def _choose_ancestor(self, mine: BaseRow, theirs: BaseRow) -> BaseRow:
        """The row that names an ancestor, of two that differ in it alone. Of two ancestors this vault's is kept; the
        base and its copies stay."""
        if "ancestor" not in json.loads(mine[2]):
            return theirs
        if "ancestor" in json.loads(theirs[2]):
            problem = (
                f"is another model in {self.there} than in {self.here}, and the other is refused: agree on one, and "
                f"record it in both with `hf-fingerprint vault add MODEL --ancestor`"
            )
            self.refused.append(Fault("ancestors", short_repr(mine[0]), problem))
        return mine

    def _wrong_predecessor(self, row: BaseRow) -> str | None:
        """What is wrong if a base replaces one of other weights, from which new copies would then be made."""
        replaces = json.loads(row[2]).get("replaces")
        known = self.mine.bases.get(replaces) or self.theirs.bases.get(replaces)
        if known is not None and known[1] != row[1]:
            return f"replaces {short_repr(replaces)}, a base of other weights"
        return None

    def trigger_sets(self) -> dict[str, Any]:
        joined = dict(self.mine.trigger_sets)
        for base_id, row in self.theirs.trigger_sets.items():
            problem = self.refusals.get(("questions", base_id)) or self._refused_parent_problem("bases", base_id)
            if problem is None and joined.get(base_id, row) != row:
                problem = (
                    f"was made separately in {self.here} and {self.there}, and is refused: copies answer one set or "
                    f"the other, so keep both vaults, and query with each"
                )
            self.add(joined, "questions", base_id, row, problem)
        return joined

    def copies(self) -> dict[str, CopyRecord]:
        joined = dict(self.mine.copies)
        for copy_id, record in self.theirs.copies.items():
            known = self.mine.copies.get(copy_id)
            if known is not None and same_except_state(known, record):
                joined[copy_id] = max(known, record, key=lambda each: STATES.index(each.state))
                continue
            problem = self.refusals.get(("copies", copy_id)) or self._refused_parent_problem("bases", record.base_id)
            if problem is None and known is not None:
                problem = (
                    f"differs between {self.there} and {self.here}, and the other is refused: one of the two was "
                    f"tampered with, so restore a backup of that vault"
                )
            self.add(joined, "copies", copy_id, record, problem)
        return joined

    def answering(self) -> dict[str, Any]:
        joined = dict(self.mine.answering)
        for copy_id, row in self.theirs.answering.items():
            if copy_id in joined:
                continue
            problem = self.refusals.get(("bound", copy_id)) or self._refused_parent_problem("copies", copy_id)
            if problem is None:
                problem = self._refused_parent_problem("questions", self.theirs.copies[copy_id].base_id)
            self.add(joined, "bound", copy_id, row, problem)
        return joined

    def publications(self) -> dict[str, PublicationRow]:
        joined = dict(self.mine.publications)
        for copy_id, row in self.theirs.publications.items():
            problem = self.refusals.get(("publications", copy_id)) or self._refused_parent_problem("copies", copy_id)
            both = None if problem else _later_publication(joined.get(copy_id, row), row)
            if both is not None:
                joined[copy_id] = both
            elif joined.get(copy_id) != row:
                known = joined.get(copy_id)
                elsewhere = "" if known is None else f" and in {self.here} with one to {known.repo}"
                problem = problem or (
                    f"is recorded in {self.there} with a push to {short_repr(row.repo)}{elsewhere}, which differ, and "
                    f"the other is refused: one of the two was tampered with, so restore a backup of that vault"
                )
                self.add(joined, "publications", copy_id, row, problem)
        return joined

    def issuers(self) -> dict[str, str]:
        joined = dict(self.mine.issuers)
        for public_key, name in self.theirs.issuers.items():
            first = min(joined.get(public_key, name), name)
            self.add(joined, "issuers", public_key, first, self.refusals.get(("issuers", public_key)))
        return joined

    def _refused_parent_problem(self, table: str, key: str) -> str | None:
        """Why a row is refused if the row that it depends on was."""
        names = {"bases": "base", "copies": "copy", "questions": "the trigger set of base"}
        return f"is refused with {names[table]} {short_repr(key)}" if (table, key) in self.refused_keys else None


def _later_publication(mine: PublicationRow, theirs: PublicationRow) -> PublicationRow | None:
    """The later of two records of a copy's publication; `None` if they contradict each other."""
    # states sort in order: "begun" < "confirmed"
    first, last = sorted((mine, theirs), key=lambda row: (row.state, row.files, row.revision or ""))
    settled = first.state == "confirmed" and first[3:5] != last[3:5]
    if mine.repo != theirs.repo or settled:
        return None
    account = max(mine.account or "", theirs.account or "") or None
    return last._replace(account=account, created=min(mine.created, theirs.created))
