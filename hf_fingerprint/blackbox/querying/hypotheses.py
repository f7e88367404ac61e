"""The records that a suspect is asked about, what its answers prove of each, and what may be said in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.blackbox.querying.candidates import CandidateRecord, SkippedRecord, find_candidates
from hf_fingerprint.blackbox.querying.e_process import EProcess
from hf_fingerprint.blackbox.querying.miss_probability import MAX_MISS_PROBABILITY, log10_miss_probability
from hf_fingerprint.blackbox.querying.session import BUDGET, QueryStats
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.codes import check_alpha
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Base, CopyRecord, Fault, OpenedCopies, Vault, inconclusive_reasons, open_copies


@dataclass(frozen=True)
class QueriedRecord:
    """A record that a suspect is asked about.

    Attributes:
        base ([`Base`]): its base.
        trigger_set ([`TriggerSet`]): what its copies are asked.
        copies (sequence of [`CopyRecord`]): all its copies, which are tested.
        non_answering (`tuple[str, ...]`): whose copies answer no questions.
        e_process ([`EProcess`]): against each copy.
        alpha (`float`): its share of the questioning's.
    """

    base: Base
    trigger_set: TriggerSet
    copies: Sequence[CopyRecord]
    non_answering: tuple[str, ...]
    e_process: EProcess
    alpha: float

    @property
    def answering_count(self) -> int:
        """How many copies answer questions."""
        return len(self.copies) - len(self.non_answering)

    def miss_probability(self) -> float:
        """The odds that some verbatim copy would not have been accused by so many answers."""
        trigger_set, recall = self.trigger_set, self.trigger_set.recall
        answered, classes, copies = self.e_process.queried, trigger_set.classes, len(self.copies)
        return self.answering_count * 10 ** log10_miss_probability(
            answered, trigger_set.assigned_share, recall, classes, copies, self.alpha
        )


def records_to_query(
    vault: Vault, name: str | Path | None, classes: int | None, alpha: float | None
) -> tuple[list[QueriedRecord], list[SkippedRecord], float]:
    """The records to ask about, the vault unlocked.

    Args:
        vault ([`Vault`]): it must be unlocked.
        name, classes: as for [`find_candidates`].
        alpha (`float` or `None`): the bound on accusing any innocent; the least of the records' if `None`.

    Returns:
        `(records, left_out, alpha)`: k records, each with a k-th of alpha; those left out; and alpha.

    Raises:
        [`FingerprintError`]: if there is nothing to ask, or nobody may be accused at this alpha.
    """
    found, skipped = find_candidates(vault, name, classes)
    ready: list[tuple[CandidateRecord, OpenedCopies, tuple[str, ...]]] = []
    for each in found:
        opened = open_copies(vault, each.copies)
        non_answering = _non_answering(opened.copies, opened.keys, vault.answering_ids(each.base.base_id))
        if len(non_answering) < len(opened.keys):
            ready.append((each, opened, non_answering))
        else:
            reason = f"none of its {len(opened.keys)} copies was made to answer its questions"
            skipped.append(SkippedRecord(each.base.base_id, reason, len(opened.keys)))
    if not ready:
        copies, named = sum(len(each.copies) for each in found), ", ".join(each.base.base_id for each in found)
        raise VaultError(
            f"None of the {copies} copies of base {named} was made to answer its questions: trace by weights, or "
            f"issue copies anew, which will."
        )
    for level in [each.base.alpha for each, _, _ in ready] if alpha is None else [alpha]:
        check_alpha(level)
    alpha = min(each.base.alpha for each, _, _ in ready) if alpha is None else alpha
    assigned_share = alpha / len(ready)
    queried = []
    for each, opened, non_answering in ready:
        e_process = EProcess(
            opened.keys,
            each.trigger_set.count,
            each.trigger_set.classes,
            assigned_share,
            each.trigger_set.assigned_share,
        )
        queried.append(
            QueriedRecord(each.base, each.trigger_set, opened.copies, non_answering, e_process, assigned_share)
        )
    return queried, skipped, alpha


def _non_answering(copies: Sequence[CopyRecord], keys: Sequence[bytes], bound: set[str]) -> tuple[str, ...]:
    """Whose copies answer no questions. A copy that was trained further, and recorded anew, has the key it had."""
    answering_count = {key for copy, key in zip(copies, keys, strict=True) if copy.copy_id in bound}
    return tuple(copy.recipient for copy, key in zip(copies, keys, strict=True) if key not in answering_count)


def query_outcome(
    queried: Sequence[QueriedRecord],
    skipped: Sequence[SkippedRecord],
    stats: QueryStats,
    images: int,
    accused: bool,
    alpha: float,
    faults: Sequence[Fault] = (),
) -> tuple[Outcome, str | None]:
    """How a questioning ended, and why nothing can be said if nothing can.

    Args:
        queried (sequence of [`QueriedRecord`]): the records asked about.
        skipped (sequence of [`SkippedRecord`]): those that were not.
        stats ([`QueryStats`]): how it went.
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
    miss_probability = [each.miss_probability() for each in queried]
    if sum(miss_probability) > MAX_MISS_PROBABILITY:
        if 2 * stats.answered < stats.queried:
            reasons.append(
                f"most replies tell no class: {stats.answered} of {stats.queried} images were answered, so see that "
                f"--labels and --field are the suspect's"
            )
        elif stats.stop_reason == BUDGET:
            reasons.append(f"{stats.answered} of {images} images were answered: ask on with a larger --budget")
        elif stats.answered < stats.queried:
            reasons.append(f"{stats.answered} of {images} images were answered, which is too few: trace by weights")
        else:
            worst = max(zip(miss_probability, queried, strict=True), key=lambda pair: pair[0])[1]
            reasons.append(
                f"the {worst.trigger_set.count} questions of base {worst.base.base_id} are too few to accuse every copy "
                f"at alpha {alpha:.0e}: trace by weights"
            )
    silent = sum(len(each.non_answering) for each in queried) + sum(each.untested_copies for each in skipped)
    if silent:
        copies = sum(len(each.copies) for each in queried) + sum(each.untested_copies for each in skipped)
        reasons.append(f"{silent:,} of {copies:,} copies answer no questions: trace them by weights")
    reasons += inconclusive_reasons(faults)
    return (Outcome.NOT_READABLE, "; ".join(reasons)) if reasons else (Outcome.NOBODY, None)
