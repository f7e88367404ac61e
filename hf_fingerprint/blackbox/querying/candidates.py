"""Which records of a vault a suspect is asked about.

A model behind an API can't be compared with bases, so a suspect is asked on behalf of every record that has questions
and copies, unless a base is named. Several records may be of the same weights: two issuers' after a merge, or one that
was measured anew.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.blackbox.trigger_set.triggers import Questions
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import find_base
from hf_fingerprint.vault import Base, CopyRecord, RowError, Vault


@dataclass(frozen=True)
class Candidate:
    """A record that a suspect may be asked about: its base, questions and copies, at least one."""

    base: Base
    questions: Questions
    copies: tuple[CopyRecord, ...]


@dataclass(frozen=True)
class LeftOut:
    """A record that a suspect was not asked about.

    Attributes:
        base_id (`str`): the record.
        why (`str`): why not.
        untested (`int`): how many of its copies the suspect may be, for all that was asked.
    """

    base_id: str
    why: str
    untested: int = 0


def candidates(
    vault: Vault, name: str | Path | None = None, classes: int | None = None, same_classes: bool = True
) -> tuple[list[Candidate], list[LeftOut]]:
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
    found: list[Candidate] = []
    left_out: list[LeftOut] = []
    for base in records_named(vault, name):
        copies = vault.copies(base.base_id, begun=False)
        try:
            content = vault.questions(base)
        except RowError as error:
            left_out.append(LeftOut(base.base_id, error.fault.describe(), len(copies)))
            continue
        if content is None:
            left_out.append(LeftOut(base.base_id, "it has no questions", len(copies)))
            continue
        questions = Questions.from_bytes(content)
        if not copies:
            left_out.append(LeftOut(base.base_id, "it has no copies, so there is nobody to name"))
        elif classes not in (None, questions.classes):
            why = f"it tells {questions.classes} classes apart, and {classes} are named"
            left_out.append(LeftOut(base.base_id, why))
        else:
            found.append(Candidate(base, questions, tuple(copies)))
    if not found:
        raise _nothing(vault, left_out)
    if same_classes and len({each.questions.classes for each in found}) > 1:
        listed = ", ".join(f"{each.base.base_id} ({each.questions.classes} classes)" for each in found)
        raise VaultError(f"The bases of {vault.folder} tell different classes apart: say which by --base: {listed}.")
    return found, left_out


def records_named(vault: Vault, name: str | Path | None) -> list[Base]:
    """All records of a name: the one of this id, or each from this place and of the same weights; of none, all.

    Raises:
        [`VaultError`]: if the vault holds none.
    """
    bases = vault.bases()
    if name is None:
        return bases
    if exact := [base for base in bases if base.base_id == str(name)]:
        return exact
    there = [base for base in bases if str(name) in (base.source, f"{base.source}@{base.revision}")]
    hashes = {base.content_hash for base in there or [find_base(vault, name)]}
    return [base for base in bases if base.content_hash in hashes]


def _nothing(vault: Vault, left_out: list[LeftOut]) -> VaultError:
    if all(each.why == "it has no questions" for each in left_out):
        named = ", ".join(each.base_id for each in left_out)
        return VaultError(
            f"{f'Base {named}' if named else vault.folder} has no questions, so copies answer for nobody: make them "
            f"with `hf-fingerprint questions` before copies are issued."
        )
    listed = "; ".join(f"base {each.base_id}: {each.why}" for each in left_out)
    return VaultError(
        f"There is nothing to ask about in {vault.folder}: {listed}; issue copies of a base that has questions, and "
        f"give the names of all its classes, in order, by --labels."
    )
