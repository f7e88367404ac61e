"""Which records of a vault a suspect is asked about.

A model behind an API can't be compared with bases, so a suspect is asked on behalf of every record that has questions
and copies, unless a base is named. Several records may be of the same weights: two issuers' after a merge, or one that
was measured anew.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import lookup_base
from hf_fingerprint.vault import Base, CopyRecord, RowError, Vault


@dataclass(frozen=True)
class CandidateRecord:
    """A record that a suspect may be asked about: its base, questions and copies, at least one."""

    base: Base
    trigger_set: TriggerSet
    copies: tuple[CopyRecord, ...]


@dataclass(frozen=True)
class SkippedRecord:
    """A record that a suspect was not asked about.

    Attributes:
        base_id (`str`): the record.
        reason (`str`): why not.
        untested_copies (`int`): how many of its copies the suspect may be, for all that was asked.
    """

    base_id: str
    reason: str
    untested_copies: int = 0


def find_candidates(
    vault: Vault, name: str | Path | None = None, classes: int | None = None, same_classes: bool = True
) -> tuple[list[CandidateRecord], list[SkippedRecord]]:
    """The records to ask about, in the order of registration, and those of the same name that are left out.

    Args:
        vault ([`Vault`]): it need not be unlocked.
        name (`str` or `Path`, *optional*): a base's id, which names that record alone; or a place, which names every
            record from there and of the same weights. All records by default.
        classes (`int`, *optional*): how many the suspect tells apart; whatever the records do, by default.
        same_classes (`bool`, *optional*, defaults to `True`): whether the records have to agree in their number.

    Raises:
        [`VaultError`]: if there is nothing to ask, or records that have to agree in their classes don't.
    """
    found: list[CandidateRecord] = []
    skipped: list[SkippedRecord] = []
    for base in find_records(vault, name):
        copies = vault.copies(base.base_id, begun=False)
        try:
            content = vault.trigger_set(base)
        except RowError as error:
            skipped.append(SkippedRecord(base.base_id, error.fault.describe(), len(copies)))
            continue
        if content is None:
            skipped.append(SkippedRecord(base.base_id, "it has no questions", len(copies)))
            continue
        trigger_set = TriggerSet.from_bytes(content)
        if not copies:
            skipped.append(SkippedRecord(base.base_id, "it has no copies, so there is nobody to name"))
        elif classes not in (None, trigger_set.classes):
            reason = f"it tells {trigger_set.classes} classes apart, and {classes} are named"
            skipped.append(SkippedRecord(base.base_id, reason))
        else:
            found.append(CandidateRecord(base, trigger_set, tuple(copies)))
    if not found:
        raise _no_candidates_error(vault, skipped)
    if same_classes and len({each.trigger_set.classes for each in found}) > 1:
        listed = ", ".join(f"{each.base.base_id} ({each.trigger_set.classes} classes)" for each in found)
        raise VaultError(f"The bases of {vault.folder} tell different classes apart: say which by --base: {listed}.")
    return found, skipped


def find_records(vault: Vault, name: str | Path | None) -> list[Base]:
    """All records of a name: the one of this id, or each from this place and of the same weights; of none, all.

    Raises:
        [`VaultError`]: if the vault holds none.
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
    if all(each.reason == "it has no questions" for each in skipped):
        named = ", ".join(each.base_id for each in skipped)
        return VaultError(
            f"{f'Base {named}' if named else vault.folder} has no questions, so copies answer for nobody: make them "
            f"with `hf-fingerprint questions` before copies are issued."
        )
    listed = "; ".join(f"base {each.base_id}: {each.reason}" for each in skipped)
    return VaultError(
        f"There is nothing to ask about in {vault.folder}: {listed}; issue copies of a base that has questions, and "
        f"give the names of all its classes, in order, by --labels."
    )
