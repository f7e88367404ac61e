"""The records that a suspect is queried for, the evidence for each, and the outcome of a query."""

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
    """A record that a suspect is queried for.

    Attributes:
        base ([`Base`]): its base.
        trigger_set ([`TriggerSet`]): the images that are sent.
        copies (sequence of [`CopyRecord`]): all its copies, which are tested.
        non_answering (`tuple[str, ...]`): recipients whose copies were not taught trigger labels.
        e_process ([`EProcess`]): of the copies.
        alpha (`float`): its share of the query's alpha.
    """

    base: Base
    trigger_set: TriggerSet
    copies: Sequence[CopyRecord]
    non_answering: tuple[str, ...]
    e_process: EProcess
    alpha: float

    def miss_probability(self) -> float:
        """A bound on the probability that the responses so far would have missed some verbatim copy."""
        triggers, copies = self.trigger_set, len(self.copies)
        log10_missed = log10_miss_probability(
            self.e_process.queried, triggers.assigned_share, triggers.recall, triggers.classes, copies, self.alpha
        )
        return (copies - len(self.non_answering)) * 10**log10_missed


def records_to_query(
    vault: Vault, name: str | Path | None, classes: int | None, alpha: float | None
) -> tuple[list[QueriedRecord], list[SkippedRecord], float]:
    """The records to query for, with their e-processes.

    Args:
        vault ([`Vault`]): it must be unlocked.
        name, classes: as for [`find_candidates`].
        alpha (`float` or `None`): the bound on accusing any innocent; `None` for the smallest of the records'.

    Returns:
        `(records, skipped, alpha)`: k records with a share of alpha / k each, the skipped records, and alpha.

    Raises:
        [`FingerprintError`]: if no record remains, or alpha is out of range.
    """
    found, skipped = find_candidates(vault, name, classes)
    ready: list[tuple[CandidateRecord, OpenedCopies, tuple[str, ...]]] = []
    for each in found:
        opened = open_copies(vault, each.copies)
        non_answering = _non_answering(opened.copies, opened.keys, vault.answering_ids(each.base.base_id))
        if len(non_answering) < len(opened.keys):
            ready.append((each, opened, non_answering))
        else:
            reason = f"none of its {len(opened.keys)} copies was taught trigger labels"
            skipped.append(SkippedRecord(each.base.base_id, reason, len(opened.keys)))
    if not ready:
        copies, named = sum(len(each.copies) for each in found), ", ".join(each.base.base_id for each in found)
        problem = f"None of the {copies} copies of base {named} was taught trigger labels"
        raise VaultError(f"{problem}: trace the suspect by its weights, or issue the copies again.")
    alphas = [each.base.alpha for each, _, _ in ready] if alpha is None else [alpha]
    for level in alphas:
        check_alpha(level)
    alpha, record_alpha = min(alphas), min(alphas) / len(ready)
    queried = []
    for each, opened, non_answering in ready:
        triggers = each.trigger_set
        e_process = EProcess(opened.keys, triggers.count, triggers.classes, record_alpha, triggers.assigned_share)
        queried.append(QueriedRecord(each.base, triggers, opened.copies, non_answering, e_process, record_alpha))
    return queried, skipped, alpha


def _non_answering(copies: Sequence[CopyRecord], keys: Sequence[bytes], answering_ids: set[str]) -> tuple[str, ...]:
    """The recipients of copies without trigger labels; a copy trained further and recorded again keeps its key."""
    answering_keys = {key for copy, key in zip(copies, keys, strict=True) if copy.copy_id in answering_ids}
    return tuple(copy.recipient for copy, key in zip(copies, keys, strict=True) if key not in answering_keys)


def query_outcome(
    queried: Sequence[QueriedRecord],
    skipped: Sequence[SkippedRecord],
    stats: QueryStats,
    images: int,
    accused: bool,
    alpha: float,
    faults: Sequence[Fault] = (),
) -> tuple[Outcome, str | None]:
    """The outcome of a query, and the reason if it is not readable.

    Args:
        queried, skipped: the records that the suspect was and was not queried for.
        stats ([`QueryStats`]): what was queried.
        images (`int`): the number of images in all pools.
        accused (`bool`): whether any recipient is accused.
        alpha (`float`): the bound on accusing any innocent.
        faults (sequence of [`Fault`], *optional*): rows of the vault that can't be used.

    Returns:
        `(outcome, reason)`: "nobody" only if a verbatim copy of any recipient would have been accused, with a
        probability of at least 99 % over all recipients together.
    """
    if accused:
        return Outcome.ACCUSED, None
    reasons = []
    missed = [each.miss_probability() for each in queried]
    if sum(missed) > MAX_MISS_PROBABILITY:
        if 2 * stats.answered < stats.queried:
            usable = f"{stats.answered} of {stats.queried} images have a usable response"
            reasons.append(f"most responses predict no class: {usable}, so check --labels and --field")
        elif stats.stop_reason == BUDGET:
            reasons.append(f"{stats.answered} of {images} images have a response: continue with a larger --budget")
        elif stats.answered < stats.queried:
            few = f"only {stats.answered} of {images} images have a response"
            reasons.append(f"{few}: trace the suspect by its weights")
        else:
            worst = max(zip(missed, queried, strict=True), key=lambda pair: pair[0])[1]
            too_few = f"the {worst.trigger_set.count} triggers of base {worst.base.base_id} are too few"
            reasons.append(f"{too_few} to accuse every copy at alpha {alpha:.0e}: trace the suspect by its weights")
    untested = sum(len(each.non_answering) for each in queried) + sum(each.untested_copies for each in skipped)
    if untested:
        copies = sum(len(each.copies) for each in queried) + sum(each.untested_copies for each in skipped)
        reasons.append(f"{untested:,} of {copies:,} copies have no trigger labels: trace them by their weights")
    reasons += inconclusive_reasons(faults)
    return (Outcome.NOT_READABLE, "; ".join(reasons)) if reasons else (Outcome.NOBODY, None)
