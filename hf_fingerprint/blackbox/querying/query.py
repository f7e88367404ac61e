"""A suspect behind an API, asked until it is proven whose copy answers, or until there is nothing left to ask.

query(from_url("https://models.example/classify", labels), vault)
"""

import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.client.suspects import Suspect
from hf_fingerprint.blackbox.querying.candidates import SkippedRecord
from hf_fingerprint.blackbox.querying.hypotheses import QueriedRecord, query_outcome, records_to_query
from hf_fingerprint.blackbox.querying.session import QueryPool, QueryStats, query_pools
from hf_fingerprint.blackbox.querying.transcript import Heading, Transcript, image_digest, path_for_base, pool_digest
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.registration import lookup_base
from hf_fingerprint.vault import Base, Fault, Vault, acquire_lock, delivery_states, find_unusable_rows


@dataclass(frozen=True)
class QueryScore:
    """How a suspect's answers agree with a copy's.

    Attributes:
        recipient (`str`): whom the copy was made for.
        copy_id (`str`): its record in the vault.
        agreeing (`int`): answers that are the copy's own labels.
        counted (`int`): answers to questions that the copy owns.
        log10_bound (`float`): decimal logarithm of a bound on the probability that any innocent of any base asked
            about gets as far, however long one asks.
        accused (`bool`): whether the bound is at most alpha.
        base_id (`str`): the base that the copy was made from.
        state (`str`): how far it got on its way, see [`delivery_state`].
    """

    recipient: str
    copy_id: str
    agreeing: int
    counted: int
    log10_bound: float
    accused: bool
    base_id: str
    state: str = ""


@dataclass(frozen=True)
class QueryResult:
    """What a suspect's answers say. Nobody is cleared by it: a model mixed from several copies answers for some of
    their recipients, or for none.

    Attributes:
        suspect (`str`): its name.
        base_ids (`tuple[str, ...]`): the bases whose copies were tested, in the vault's order.
        scores (`tuple[QueryScore, ...]`): of the accused, surest first; of all copies if that was asked for, which
            nobody should publish.
        copies (`int`): how many copies were tested.
        classes (`int`): of the bases: an innocent's answers agree one time in so many.
        alpha (`float`): the bound on accusing any innocent, shared by the bases in equal parts.
        stats ([`QueryStats`]): how it went.
        outcome ([`Outcome`]): accused; nobody, where so much was answered that a verbatim copy of any of them would
            have been accused; or not readable.
        reason (`str` or `None`): if it is not readable, why, and the way out.
        non_answering (`tuple[str, ...]`): whose copies answer no questions, one name for each: they were made before the
            base had any, or were never bound. They count among those tested, and answers can't name them.
        skipped (`tuple[LeftOut, ...]`): the bases that were not asked about, and why.
        rows_not_used (`tuple[Fault, ...]`): rows of the vault that can't be used.
    """

    suspect: str
    base_ids: tuple[str, ...]
    scores: tuple[QueryScore, ...]
    copies: int
    classes: int
    alpha: float
    stats: QueryStats
    outcome: Outcome
    reason: str | None = None
    non_answering: tuple[str, ...] = ()
    skipped: tuple[SkippedRecord, ...] = ()
    rows_not_used: tuple[Fault, ...] = ()

    @property
    def accused(self) -> tuple[QueryScore, ...]:
        """The scores of the accused."""
        return tuple(score for score in self.scores if score.accused)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "accused": [asdict(score) for score in self.accused]}


def query(
    suspect: Suspect,
    vault: Vault | str | Path,
    base: str | Path | None = None,
    *,
    budget: int | None = None,
    transcript: str | Path | None = None,
    alpha: float | None = None,
    min_responses: int = 0,
    exhaustive: bool = False,
    all_scores: bool = False,
    passphrase: str | None = None,
    on_response: Callable[[int, int | None], None] | None = None,
    progress: Progress | None = None,
) -> QueryResult:
    """Asks a suspect the questions of all bases it may be a copy of, in an order that says nothing, until somebody is
    accused.

    A copy answers those questions that it owns by labels drawn from its key. An innocent's labels are independent of
    the suspect, so the bound holds exactly and whenever one stops; see [`EProcess`]. Of k bases each takes a k-th of
    alpha.

    Args:
        suspect ([`Suspect`]): what answers.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): which base: by its id that record alone, by its place all records of its
            weights; by default all that have questions, copies and the suspect's number of classes.
        budget (`int`, *optional*): how many images to ask at most, of all bases together.
        transcript (`str` or `Path`, *optional*): a file that keeps each answer; the same again goes on. One process
            at a time writes it. Of several bases, those after the first have `FILE.<base id>`.
        alpha (`float`, *optional*): the bound on accusing any innocent, at most 0.05; by default the least of the
            bases'.
        min_responses (`int`, *optional*, defaults to 0): how many answers to get, whoever is accused: for coalitions.
        exhaustive (`bool`, *optional*, defaults to `False`): whether to ask on until nothing is left, whoever is accused.
        all_scores (`bool`, *optional*, defaults to `False`): whether the result holds the scores of copies that are
            not accused too. They help an attacker to build a suspect that accuses one of them: don't publish them.
        passphrase (`str`, *optional*): unlocks the vault.
        on_response (callable, *optional*): told each image, counted through the bases, and its answer.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        [`QueryResult`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; nobody is accused by an error.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    queried, skipped, alpha = records_to_query(vault, base, getattr(suspect, "classes", None), alpha)
    pictures = [list(each.trigger_set.images(each.base.secret)) for each in queried]
    images = sum(map(len, pictures))
    order = np.random.default_rng(secrets.randbits(128)).permutation(images)
    count = counting(progress, "querying", images if budget is None else min(budget, images))

    def record_response(index: int, response: int | None) -> None:
        count(1)
        if on_response is not None:
            on_response(index, response)

    with ExitStack() as held:
        pools = []
        for each, shown in zip(queried, pictures, strict=True):
            kept = None
            if transcript is not None:
                place = path_for_base(transcript, each.base.base_id, queried[0].base.base_id)
                refusal = f"Another process is asking with the transcript {place}: wait for it, or name another file."
                held.callback(acquire_lock(vault, each.base, f"transcript {place.resolve()}", refusal).release)
                kept = held.enter_context(Transcript(place, _heading(suspect, each, shown)))
                if kept.responses:
                    count(len(kept.responses))
            pools.append(QueryPool(shown, each.e_process, kept))
        stats = query_pools(suspect, pools, order, budget, images if exhaustive else min_responses, record_response)
    scores = _scores(vault, queried, all_scores)
    accused, faults = any(score.accused for score in scores), find_unusable_rows(vault)
    outcome, reason = query_outcome(queried, skipped, stats, images, accused, alpha, faults)
    return QueryResult(
        suspect=suspect.name,
        base_ids=tuple(each.base.base_id for each in queried),
        scores=scores,
        copies=sum(len(each.copies) for each in queried),
        classes=queried[0].trigger_set.classes,
        alpha=alpha,
        stats=stats,
        outcome=outcome,
        reason=reason,
        non_answering=tuple(name for each in queried for name in each.non_answering),
        skipped=tuple(skipped),
        rows_not_used=faults,
    )


def load_trigger_set(vault: Vault, base: Base) -> TriggerSet:
    """The questions of a base.

    Raises:
        [`VaultError`]: if there are none.
    """
    content = vault.trigger_set(base)
    if content is None:
        raise VaultError(
            f"Base {base.base_id} has no questions, so its copies answer for nobody: make them with `hf-fingerprint "
            f"questions` before copies are issued."
        )
    return TriggerSet.from_bytes(content)


def find_base_with_triggers(vault: Vault, name: str | Path | None) -> tuple[Base, TriggerSet]:
    """A base and its questions: the one of this name, else the only one that has any.

    Raises:
        [`VaultError`]: if there is none, or more than one.
    """
    if name is not None:
        base = lookup_base(vault, name)
        return base, load_trigger_set(vault, base)
    with_questions = [base for base in vault.bases() if vault.trigger_set(base) is not None]
    if len(with_questions) != 1:
        named = ", ".join(base.base_id for base in with_questions)
        raise VaultError(
            f"{vault.folder} has {len(with_questions)} bases with questions"
            + (f" ({named}): say which by --base." if named else ": make some with `hf-fingerprint questions`.")
        )
    return with_questions[0], load_trigger_set(vault, with_questions[0])


def _heading(suspect: Suspect, queried: QueriedRecord, images: Sequence[np.ndarray]) -> Heading:
    digest = pool_digest([image_digest(image) for image in images])
    trigger_set, copies = queried.trigger_set, len(queried.copies)
    return Heading(
        suspect.name,
        queried.base.base_id,
        digest,
        trigger_set.count,
        trigger_set.decoys,
        trigger_set.classes,
        queried.alpha,
        trigger_set.assigned_share,
        copies,
    )


def _scores(vault: Vault, queried: Sequence[QueriedRecord], every: bool) -> tuple[QueryScore, ...]:
    """The scores of the accused, or of every copy, surest first."""
    found = []
    for each in queried:
        e_process, accused = each.e_process, set(each.e_process.accused().tolist())
        agreeing, counted = e_process.agreeing, e_process.counted
        bounds = np.minimum(e_process.log10_bounds() + math.log10(len(queried)), 0.0)
        states = delivery_states(vault, each.copies)
        for i in range(len(each.copies)) if every else accused:
            copy = each.copies[i]
            found.append(
                QueryScore(
                    copy.recipient,
                    copy.copy_id,
                    int(agreeing[i]),
                    int(counted[i]),
                    float(bounds[i]),
                    i in accused,
                    each.base.base_id,
                    states[copy.copy_id],
                )
            )
    return tuple(sorted(found, key=lambda score: (not score.accused, score.log10_bound, -score.agreeing)))
