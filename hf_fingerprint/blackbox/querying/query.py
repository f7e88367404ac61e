"""Queries a suspect until an accusation is proven, or nothing is left to query.

query(from_url("https://models.example/classify", labels), vault)
"""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.client.suspects import Suspect
from hf_fingerprint.blackbox.querying.candidates import SkippedRecord
from hf_fingerprint.blackbox.querying.hypotheses import QueriedRecord, query_outcome, records_to_query
from hf_fingerprint.blackbox.querying.query_table import query_blocks
from hf_fingerprint.blackbox.querying.session import QueryPool, QueryStats, query_pools
from hf_fingerprint.blackbox.querying.transcript import Heading, Transcript, image_digest, path_for_base, pool_digest
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.progress import Progress, counting, shows_progress
from hf_fingerprint.registration import lookup_base
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr
from hf_fingerprint.vault import Base, Fault, Vault, acquire_lock, delivery_states, find_unusable_rows


@dataclass(frozen=True)
class QueryScore:
    """The agreement of a suspect's responses with the labels of one copy.

    Attributes:
        recipient (`str`): the copy's recipient.
        copy_id (`str`): the copy's record in the vault.
        agreeing (`int`): responses that are the copy's labels.
        counted (`int`): responses to triggers assigned to the copy.
        log10_bound (`float`): decimal logarithm of a bound on the probability that any innocent, of any base queried
            for, ever gets as far.
        accused (`bool`): whether the bound is at most alpha.
        base_id (`str`): the copy's base.
        state (`str`): the delivery state of the copy; see [`delivery_states`].
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
class QueryResult(PrintableResult):
    """The result of a query.

    It clears nobody: a model mixed from several copies predicts the labels of some of their recipients, or of none.

    Attributes:
        suspect (`str`): the suspect's name.
        base_ids (`tuple[str, ...]`): the bases whose copies were tested, in the vault's order.
        scores (`tuple[QueryScore, ...]`): of the accused, lowest bound first; of all copies with `all_scores`.
        copies (`int`): the number of copies tested.
        classes (`int`): the number of classes: an innocent's labels agree with one response in so many.
        alpha (`float`): the bound on accusing any innocent; each base has an equal share of it.
        stats ([`QueryStats`]): what was queried.
        outcome ([`Outcome`]): accused; nobody, if any verbatim copy would have been accused; or not readable.
        reason (`str` or `None`): why it is not readable, and what to do.
        non_answering (`tuple[str, ...]`): the recipient of each copy that was not taught trigger labels. These count
            among the copies tested, and a query can't accuse them.
        skipped (`tuple[SkippedRecord, ...]`): the bases that were not queried for, and why.
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
        """The result as JSON types."""
        return {**asdict(self), "accused": [asdict(score) for score in self.accused]}

    def blocks(self) -> Iterator[Block]:
        """The lines and the table that show the result."""
        return query_blocks(self)

    def __repr__(self) -> str:
        accused = tuple(dict.fromkeys(score.recipient for score in self.accused))
        bound = min((score.log10_bound for score in self.accused), default=None)
        return one_line_repr(self, outcome=str(self.outcome), accused=accused, log10_bound=bound)


@shows_progress
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
    """Queries a suspect with the trigger sets of all bases it may be a copy of, until somebody is accused.

    The images of all bases are sent in random order. An innocent's labels are independent of the suspect, so the bound
    is exact and holds whenever the query stops; see [`EProcess`]. With k bases, each has alpha / k.

    Args:
        suspect ([`Suspect`]): the suspect.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): a base's id, for that record alone; or a path or Hub id, for all records of
            these weights. By default all records that have a trigger set, copies and the suspect's number of classes.
        budget (`int`, *optional*): the highest number of images to send, for all bases together.
        transcript (`str` or `Path`, *optional*): a file to which each response is appended. Call again with the same
            file to resume. Bases after the first one have `TRANSCRIPT.<base id>`.
        alpha (`float`, *optional*): the bound on accusing any innocent, at most 0.05; by default the smallest of the
            bases'.
        min_responses (`int`, *optional*, defaults to 0): the lowest number of responses before the query stops at an
            accusation. Raise it to find several colluders.
        exhaustive (`bool`, *optional*, defaults to `False`): whether to send all images, even after an accusation.
        all_scores (`bool`, *optional*, defaults to `False`): whether the result holds the scores of copies that are
            not accused. They help an attacker to build a suspect that accuses one of them: don't publish them.
        passphrase (`str`, *optional*): unlocks the vault.
        on_response (callable, *optional*): called with the index of each image, over all bases, and its response.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        [`QueryResult`]

    Raises:
        [`FingerprintError`]: if the query can't be made or continued. Nobody is accused then.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    queried, skipped, alpha = records_to_query(vault, base, getattr(suspect, "classes", None), alpha)
    images = [list(each.trigger_set.images(each.base.secret)) for each in queried]
    total = sum(map(len, images))
    order = np.random.default_rng(secrets.randbits(128)).permutation(total)
    count = counting(progress, "querying", total if budget is None else min(budget, total))

    def record_response(index: int, response: int | None) -> None:
        count(1)
        if on_response is not None:
            on_response(index, response)

    with ExitStack() as held:
        pools = []
        for each, pool_images in zip(queried, images, strict=True):
            pool_transcript = None
            if transcript is not None:
                path = path_for_base(transcript, each.base.base_id, queried[0].base.base_id)
                locked = f"Another process writes the transcript {path}: wait for it, or name another file."
                held.callback(acquire_lock(vault, each.base, f"transcript {path.resolve()}", locked).release)
                pool_transcript = held.enter_context(Transcript(path, _heading(suspect, each, pool_images)))
                count(len(pool_transcript.responses))
            pools.append(QueryPool(pool_images, each.e_process, pool_transcript))
        stats = query_pools(suspect, pools, order, budget, total if exhaustive else min_responses, record_response)
    scores = _scores(vault, queried, all_scores)
    accused, faults = any(score.accused for score in scores), find_unusable_rows(vault)
    outcome, reason = query_outcome(queried, skipped, stats, total, accused, alpha, faults)
    base_ids = tuple(each.base.base_id for each in queried)
    copies, classes = sum(len(each.copies) for each in queried), queried[0].trigger_set.classes
    left_out = tuple(name for each in queried for name in each.non_answering), tuple(skipped), faults
    return QueryResult(suspect.name, base_ids, scores, copies, classes, alpha, stats, outcome, reason, *left_out)


def load_trigger_set(vault: Vault, base: Base) -> TriggerSet:
    """The trigger set of a base.

    Raises:
        [`VaultError`]: if it has none.
    """
    content = vault.trigger_set(base)
    if content is None:
        problem = f"Base {base.base_id} has no trigger set, so its copies can't be identified by queries"
        raise VaultError(f"{problem}: make one with `hf-fingerprint triggers` before you issue copies.")
    return TriggerSet.from_bytes(content)


def find_base_with_triggers(vault: Vault, name: str | Path | None) -> tuple[Base, TriggerSet]:
    """A base and its trigger set; without a name those of the only base that has one.

    Raises:
        [`VaultError`]: if there is none, or more than one.
    """
    if name is not None:
        base = lookup_base(vault, name)
        return base, load_trigger_set(vault, base)
    with_triggers = [base for base in vault.bases() if vault.trigger_set(base) is not None]
    if len(with_triggers) != 1:
        named = ", ".join(base.base_id for base in with_triggers)
        remedy = f" ({named}): choose one with --base." if named else ": make one with `hf-fingerprint triggers`."
        raise VaultError(f"{vault.folder} has {len(with_triggers)} bases with trigger sets{remedy}")
    return with_triggers[0], load_trigger_set(vault, with_triggers[0])


def _heading(suspect: Suspect, queried: QueriedRecord, images: Sequence[np.ndarray]) -> Heading:
    digest, triggers = pool_digest([image_digest(image) for image in images]), queried.trigger_set
    counts = triggers.count, triggers.decoys, triggers.classes
    share, recipients = triggers.assigned_share, len(queried.copies)
    return Heading(suspect.name, queried.base.base_id, digest, *counts, queried.alpha, share, recipients)


def _scores(vault: Vault, queried: Sequence[QueriedRecord], all_scores: bool) -> tuple[QueryScore, ...]:
    """The scores of the accused, or of all copies, lowest bound first."""
    found = []
    for each in queried:
        e_process, accused = each.e_process, set(each.e_process.accused().tolist())
        agreeing, counted = e_process.agreeing, e_process.counted
        bounds = np.minimum(e_process.log10_bounds() + math.log10(len(queried)), 0.0)
        states = delivery_states(vault, each.copies)
        for i in range(len(each.copies)) if all_scores else accused:
            name, copy_id = each.copies[i].recipient, each.copies[i].copy_id
            evidence = int(agreeing[i]), int(counted[i]), float(bounds[i]), i in accused
            found.append(QueryScore(name, copy_id, *evidence, each.base.base_id, states[copy_id]))
    return tuple(sorted(found, key=lambda score: (not score.accused, score.log10_bound, -score.agreeing)))
