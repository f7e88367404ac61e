"""The records that a suspect is asked about, what its answers prove of each, and what may be said in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.blackbox.querying.candidates import Candidate, LeftOut, candidates
from hf_fingerprint.blackbox.querying.e_process import Evidence
from hf_fingerprint.blackbox.querying.miss_probability import MISSED, log10_missed
from hf_fingerprint.blackbox.querying.session import BUDGET, Questioning
from hf_fingerprint.blackbox.trigger_set.triggers import Questions
from hf_fingerprint.codes import check_alpha
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Base, CopyRecord, Fault, Opened, Vault, hiding, open_copies


@dataclass(frozen=True)
class AskedRecord:
    """A record that a suspect is asked about.

    Attributes:
        base ([`Base`]): its base.
        questions ([`Questions`]): what its copies are asked.
        copies (sequence of [`CopyRecord`]): all its copies, which are tested.
        unbound (`tuple[str, ...]`): whose copies answer no questions.
        evidence ([`Evidence`]): against each copy.
        alpha (`float`): its share of the questioning's.
    """

    base: Base
    questions: Questions
    copies: Sequence[CopyRecord]
    unbound: tuple[str, ...]
    evidence: Evidence
    alpha: float

    @property
    def answering(self) -> int:
        """How many copies answer questions."""
        return len(self.copies) - len(self.unbound)

    def missed(self) -> float:
        """The odds that some verbatim copy would not have been accused by so many answers."""
        questions, told = self.questions, self.questions.told
        answered, classes, copies = self.evidence.asked, questions.classes, len(self.copies)
        return self.answering * 10 ** log10_missed(answered, questions.share, told, classes, copies, self.alpha)


def asked_records(
    vault: Vault, name: str | Path | None, classes: int | None, alpha: float | None
) -> tuple[list[AskedRecord], list[LeftOut], float]:
    """The records to ask about, the vault unlocked.

    Args:
        vault ([`Vault`]): it must be unlocked.
        name, classes: as for [`candidates`].
        alpha (`float` or `None`): the bound on accusing any innocent; the least of the records' if `None`.

    Returns:
        `(records, left_out, alpha)`: k records, each with a k-th of alpha; those left out; and alpha.

    Raises:
        [`FingerprintError`]: if there is nothing to ask, or nobody may be accused at this alpha.
    """
    found, left_out = candidates(vault, name, classes)
    ready: list[tuple[Candidate, Opened, tuple[str, ...]]] = []
    for each in found:
        opened = open_copies(vault, each.copies)
        unbound = _unbound(opened.copies, opened.keys, vault.bound(each.base.base_id))
        if len(unbound) < len(opened.keys):
            ready.append((each, opened, unbound))
        else:
            why = f"none of its {len(opened.keys)} copies was made to answer its questions"
            left_out.append(LeftOut(each.base.base_id, why, len(opened.keys)))
    if not ready:
        copies, named = sum(len(each.copies) for each in found), ", ".join(each.base.base_id for each in found)
        raise VaultError(
            f"None of the {copies} copies of base {named} was made to answer its questions: trace by weights, or "
            f"issue copies anew, which will."
        )
    for level in [each.base.alpha for each, _, _ in ready] if alpha is None else [alpha]:
        check_alpha(level)
    alpha = min(each.base.alpha for each, _, _ in ready) if alpha is None else alpha
    share = alpha / len(ready)
    asked = []
    for each, opened, unbound in ready:
        evidence = Evidence(opened.keys, each.questions.count, each.questions.classes, share, each.questions.share)
        asked.append(AskedRecord(each.base, each.questions, opened.copies, unbound, evidence, share))
    return asked, left_out, alpha


def _unbound(copies: Sequence[CopyRecord], keys: Sequence[bytes], bound: set[str]) -> tuple[str, ...]:
    """Whose copies answer no questions. A copy that was trained further, and recorded anew, has the key it had."""
    answering = {key for copy, key in zip(copies, keys, strict=True) if copy.copy_id in bound}
    return tuple(copy.recipient for copy, key in zip(copies, keys, strict=True) if key not in answering)


def outcome_of(
    asked: Sequence[AskedRecord],
    left_out: Sequence[LeftOut],
    went: Questioning,
    images: int,
    accused: bool,
    alpha: float,
    faults: Sequence[Fault] = (),
) -> tuple[Outcome, str | None]:
    """How a questioning ended, and why nothing can be said if nothing can.

    Args:
        asked (sequence of [`AskedRecord`]): the records asked about.
        left_out (sequence of [`LeftOut`]): those that were not.
        went ([`Questioning`]): how it went.
        images (`int`): how many there were to ask.
        accused (`bool`): whether anybody is.
        alpha (`float`): the bound on accusing any innocent.
        faults (sequence of [`Fault`], *optional*): rows of the vault that can't be used.

    Returns:
        `(outcome, reason)`: "nobody" only where a verbatim copy of any recipient would have been accused, all of them
        together but for odds of 1 %.
    """
    if accused:
        return Outcome.ACCUSED, None
    reasons = []
    missed = [each.missed() for each in asked]
    if sum(missed) > MISSED:
        if 2 * went.answered < went.asked:
            reasons.append(
                f"most replies tell no class: {went.answered} of {went.asked} images were answered, so see that "
                f"--labels and --field are the suspect's"
            )
        elif went.stopped == BUDGET:
            reasons.append(f"{went.answered} of {images} images were answered: ask on with a larger --budget")
        elif went.answered < went.asked:
            reasons.append(f"{went.answered} of {images} images were answered, which is too few: trace by weights")
        else:
            worst = max(zip(missed, asked, strict=True), key=lambda pair: pair[0])[1]
            reasons.append(
                f"the {worst.questions.count} questions of base {worst.base.base_id} are too few to accuse every copy "
                f"at alpha {alpha:.0e}: trace by weights"
            )
    silent = sum(len(each.unbound) for each in asked) + sum(each.untested for each in left_out)
    if silent:
        copies = sum(len(each.copies) for each in asked) + sum(each.untested for each in left_out)
        reasons.append(f"{silent:,} of {copies:,} copies answer no questions: trace them by weights")
    reasons += hiding(faults)
    return (Outcome.NOT_READABLE, "; ".join(reasons)) if reasons else (Outcome.NOBODY, None)
