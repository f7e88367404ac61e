"""The records of a vault that a suspect is queried for.

A model behind an API can't be compared with bases by its weights. Unless a base is named, it is queried for every
record with a trigger set and copies. Several records may hold the same weights, as after a merge of two vaults.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import lookup_base
from hf_fingerprint.vault import Base, CopyRecord, RowError, Vault


_NO_TRIGGERS = "it has no trigger set"


@dataclass(frozen=True)
class CandidateRecord:
    """A record with a trigger set and at least one copy."""

    base: Base
    trigger_set: TriggerSet
    copies: tuple[CopyRecord, ...]


@dataclass(frozen=True)
class SkippedRecord:
    """A record that a suspect was not queried for.

    Attributes:
        base_id (`str`): the record's base.
        reason (`str`): why it was skipped.
        untested_copies (`int`): how many of its copies the suspect may still be.
    """

    base_id: str
    reason: str
    untested_copies: int = 0


def find_candidates(
    vault: Vault, name: str | Path | None = None, classes: int | None = None, same_classes: bool = True
) -> tuple[list[CandidateRecord], list[SkippedRecord]]:
    """The records to query for, in the order of registration, and the skipped ones of the same name.

    Args:
        vault ([`Vault`]): it need not be unlocked.
        name (`str` or `Path`, *optional*): a base's id, for that record alone; or a path or Hub id, for every record
            of these weights. By default all records.
        classes (`int`, *optional*): the suspect's number of classes; records with another one are skipped.
        same_classes (`bool`, *optional*, defaults to `True`): whether all records must have the same number.

    Returns:
        `(records, skipped)`

    Raises:
        [`VaultError`]: if no record remains, or the records differ in their number of classes.
    """
    found: list[CandidateRecord] = []
    skipped: list[SkippedRecord] = []
    for base in find_records(vault, name):
        copies = vault.copies(base.base_id, begun=False)
        try:
            content, reason = vault.trigger_set(base), _NO_TRIGGERS
        except RowError as error:
            content, reason = None, error.fault.describe()
        if content is None:
            skipped.append(SkippedRecord(base.base_id, reason, len(copies)))
            continue
        trigger_set = TriggerSet.from_bytes(content)
        if not copies:
            skipped.append(SkippedRecord(base.base_id, "it has no copies"))
        elif classes not in (None, trigger_set.classes):
            reason = f"it has {trigger_set.classes} classes, and the suspect has {classes}"
            skipped.append(SkippedRecord(base.base_id, reason))
        else:
            found.append(CandidateRecord(base, trigger_set, tuple(copies)))
    if not found:
        raise _no_candidates_error(vault, skipped)
    if same_classes and len({each.trigger_set.classes for each in found}) > 1:
        listed = ", ".join(f"{each.base.base_id} ({each.trigger_set.classes} classes)" for each in found)
        raise VaultError(f"The bases of {vault.folder} differ in their classes: choose one with --base: {listed}.")
    return found, skipped


def find_records(vault: Vault, name: str | Path | None) -> list[Base]:
    """The records of a name: the one with this id, else those from this path or Hub id and of the same weights; all
    records without a name.

    Raises:
        [`VaultError`]: if there is none.
    """
    bases = vault.bases()
    if name is None:
        return bases
    if exact := [base for base in bases if base.base_id == str(name)]:
        return exact
    from_source = [base for base in bases if str(name) in (base.source, f"{base.source}@{base.revision}")]
    hashes = {base.content_hash for base in from_source or [lookup_base(vault, name)]}
    return [base for base in bases if base.content_hash in hashes]


def _no_candidates_error(vault: Vault, skipped: list[SkippedRecord]) -> VaultError:
    if all(each.reason == _NO_TRIGGERS for each in skipped):
        named = ", ".join(each.base_id for each in skipped)
        return VaultError(
            f"{f'Base {named}' if named else vault.folder} has no trigger set, so no copy can be identified by "
            f"queries: make one with `hf-fingerprint triggers` before you issue copies."
        )
    listed = "; ".join(f"base {each.base_id}: {each.reason}" for each in skipped)
    return VaultError(
        f"No base in {vault.folder} can be queried for: {listed}; issue copies of a base that has a trigger set, and "
        f"give the names of all its classes, in order, with --labels."
    )
