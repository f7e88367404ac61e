"""Checks of records at a merge that need the tracing identity: whether they open their commitments.

Everything else about a row can be checked without the identity; that a record's key, recipient and content hash belong
together can't.
"""

from dataclasses import replace

from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.rotation import reseal_copy
from hf_fingerprint.vault.rows import copy_fault
from hf_fingerprint.vault.sealing import AgeIdentity
from hf_fingerprint.vault.snapshots import Snapshot
from hf_fingerprint.vault.union import Refusals, same_except_state
from hf_fingerprint.vault.unsealing import unseal_copy_key


def reseal_snapshot(other: Snapshot, mine: Snapshot, age_identity: AgeIdentity) -> tuple[Snapshot, Refusals]:
    """A snapshot with its records sealed to this vault's identity, and the records that don't open.

    A record that this vault has already, since a rotation, keeps the seal that it has here.
    """
    copies: dict[str, CopyRecord] = {}
    refusals: Refusals = {}
    for record in other.copies.values():
        here = mine.copies.get(record.copy_id)
        try:
            resealed = reseal_copy(record, age_identity, mine.public_key)
        except RowError as error:
            copies[record.copy_id], refusals["copies", record.copy_id] = record, error.fault.problem
            continue
        same = here is not None and here.commitment == record.commitment
        copies[record.copy_id] = replace(resealed, sealed=here.sealed) if here is not None and same else resealed
    return replace(other, public_key=mine.public_key, copies=copies), refusals


def drop_disproved_records(mine: Snapshot, other: Snapshot, age_identity: AgeIdentity) -> tuple[Snapshot, list[Fault]]:
    """This vault's snapshot without the records that the other contradicts and that don't open, and these as faults.

    Records that nothing contradicts are not opened, since that takes time.
    """
    commitments = {record.commitment: record.copy_id for record in other.copies.values()}
    faults, copies = [], dict(mine.copies)
    for copy_id, record in mine.copies.items():
        theirs = other.copies.get(copy_id)
        contradicted = theirs is not None and not same_except_state(record, theirs)
        if contradicted or commitments.get(record.commitment, copy_id) != copy_id:
            why = _opening_problem(record, age_identity)
            if why is not None:
                faults.append(copy_fault(record, why))
                del copies[copy_id]
    answering = {copy_id: row for copy_id, row in mine.answering.items() if copy_id in copies}
    published = {copy_id: row for copy_id, row in mine.publications.items() if copy_id in copies}
    return replace(mine, copies=copies, answering=answering, publications=published), faults


def refuse_unopenable(mine: Snapshot, other: Snapshot, age_identity: AgeIdentity) -> Refusals:
    """The other vault's new records that don't open."""
    new = {key: record for key, record in other.copies.items() if key not in mine.copies}
    found = {("copies", key): _opening_problem(record, age_identity) for key, record in new.items()}
    return {row: why for row, why in found.items() if why is not None}


def _opening_problem(record: CopyRecord, age_identity: AgeIdentity) -> str | None:
    try:
        unseal_copy_key(record, age_identity)
    except RowError as error:
        return error.fault.problem
    return None
