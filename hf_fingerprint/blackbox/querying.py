"""A suspect behind an API, asked until it is proven whose copy answers, or until there is nothing left to ask.

query(from_url("https://models.example/classify", labels), vault)
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.evidence import Evidence
from hf_fingerprint.blackbox.questioning import Questioning, question
from hf_fingerprint.blackbox.questions import Questions
from hf_fingerprint.blackbox.suspects import Suspect
from hf_fingerprint.blackbox.transcript import Heading, Transcript, image_digest, pool_digest
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import find_base
from hf_fingerprint.vault import Base, CopyRecord, Vault, hold


Advance = Callable[[str, int, int], None]
CLOSEST = 5


@dataclass(frozen=True)
class QueryScore:
    """How a suspect's answers agree with a copy's.

    Attributes:
        recipient (`str`): whose copy it is.
        copy_id (`str`): which.
        agreeing (`int`): answers that are the copy's own labels.
        counted (`int`): answers to questions that the copy owns.
        log10_bound (`float`): decimal logarithm of a bound on the probability that any innocent gets as far, however
            long one asks.
        accused (`bool`): whether the bound is at most alpha.
    """

    recipient: str
    copy_id: str
    agreeing: int
    counted: int
    log10_bound: float
    accused: bool


@dataclass(frozen=True)
class QueryResult:
    """What a suspect's answers say. Nobody is cleared by it: a model mixed from several copies answers for some of
    their recipients, or for none.

    Attributes:
        suspect (`str`): its name.
        base_id (`str`): the base whose copies were tested.
        scores (`tuple[QueryScore, ...]`): the accused and those who come closest, surest first.
        copies (`int`): how many copies were tested.
        classes (`int`): of the base: an innocent's answers agree one time in so many.
        alpha (`float`): the bound on accusing any innocent.
        questioning ([`Questioning`]): how it went.
        unbound (`tuple[str, ...]`): whose copies answer no questions, one name for each: they were made before the
            base had any, or were never bound. They count among those tested, and answers can't name them.
    """

    suspect: str
    base_id: str
    scores: tuple[QueryScore, ...]
    copies: int
    classes: int
    alpha: float
    questioning: Questioning
    unbound: tuple[str, ...] = ()

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
    least: int = 0,
    passphrase: str | None = None,
    on_answer: Callable[[int, int | None], None] | None = None,
    advance: Advance | None = None,
) -> QueryResult:
    """Asks a suspect the questions of a base, in an order that says nothing, until somebody is accused.

    A copy answers those questions that it owns by labels drawn from its key. An innocent's labels are independent of
    the suspect, so the bound holds exactly and whenever one stops; see [`Evidence`].

    Args:
        suspect ([`Suspect`]): what answers.
        vault ([`Vault`], `str` or `Path`): the vault, unlocked, or its folder together with `passphrase`.
        base (`str` or `Path`, *optional*): which base, if several have questions.
        budget (`int`, *optional*): how many images to ask at most.
        transcript (`str` or `Path`, *optional*): a file that keeps each answer; the same again goes on. One process
            at a time writes it.
        alpha (`float`, *optional*): the bound on accusing any innocent; the base's by default.
        least (`int`, *optional*, defaults to 0): how many answers to get, whoever is accused: for coalitions.
        passphrase (`str`, *optional*): unlocks the vault.
        on_answer (callable, *optional*): told each question and its answer.
        advance (callable, *optional*): told a step, how much more of it is done, and how much there is to do.

    Returns:
        [`QueryResult`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; nobody is accused by an error.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    if passphrase is not None:
        vault.unlock(passphrase)
    known, questions = asked_of(vault, base)
    copies = vault.copies(known.base_id, begun=False)
    if not copies:
        raise VaultError(f"{vault.folder} has no copies of base {known.base_id}: there is nobody to accuse.")
    alpha, keys = known.alpha if alpha is None else alpha, vault.copy_keys(copies)
    unbound = _unbound(copies, keys, vault.bound(known.base_id))
    if len(unbound) == len(copies):
        raise VaultError(
            f"None of the {len(copies)} copies of base {known.base_id} was made to answer its questions: trace by "
            f"weights, or issue copies anew, which will."
        )
    evidence = Evidence(keys, questions.count, questions.classes, alpha, questions.share)
    images = questions.images(known.secret)
    order = np.random.default_rng(secrets.randbits(128)).permutation(len(images))
    total = len(images) if budget is None else min(budget, len(images))

    def told(index: int, answer: int | None) -> None:
        if advance is not None:
            advance("asking", 1, total)
        if on_answer is not None:
            on_answer(index, answer)

    with ExitStack() as held:
        kept = None
        if transcript is not None:
            refusal = f"Another process is asking with the transcript {transcript}: wait for it, or name another file."
            held.callback(hold(vault, known, f"transcript {Path(transcript).resolve()}", refusal).release)
            kept = held.enter_context(Transcript(transcript, _heading(suspect, questions, images, alpha, copies)))
            if advance is not None and kept.answers:
                advance("asking", len(kept.answers), total)
        went = question(suspect, list(images), evidence, order, kept, budget, least, told)
    scores = _scores(evidence, copies)
    return QueryResult(suspect.name, known.base_id, scores, len(copies), questions.classes, alpha, went, unbound)


def questions_of(vault: Vault, base: Base) -> Questions:
    """The questions of a base.

    Raises:
        [`VaultError`]: if there are none.
    """
    content = vault.questions(base)
    if content is None:
        raise VaultError(
            f"Base {base.base_id} has no questions, so its copies answer for nobody: make them with `hf-fingerprint "
            f"questions` before copies are issued."
        )
    return Questions.from_bytes(content)


def asked_of(vault: Vault, name: str | Path | None) -> tuple[Base, Questions]:
    """A base and its questions: the one of this name, else the only one that has any.

    Raises:
        [`VaultError`]: if there is none, or more than one.
    """
    if name is not None:
        base = find_base(vault, name)
        return base, questions_of(vault, base)
    with_questions = [base for base in vault.bases() if vault.questions(base) is not None]
    if len(with_questions) != 1:
        named = ", ".join(base.base_id for base in with_questions)
        raise VaultError(
            f"{vault.folder} has {len(with_questions)} bases with questions"
            + (f" ({named}): say which by --base." if named else ": make some with `hf-fingerprint questions`.")
        )
    return with_questions[0], questions_of(vault, with_questions[0])


def _unbound(copies: Sequence[CopyRecord], keys: Sequence[bytes], bound: set[str]) -> tuple[str, ...]:
    """Whose copies answer no questions. A copy that was trained further, and recorded anew, has the key it had."""
    answering = {key for copy, key in zip(copies, keys, strict=True) if copy.copy_id in bound}
    return tuple(copy.recipient for copy, key in zip(copies, keys, strict=True) if key not in answering)


def _heading(
    suspect: Suspect, questions: Questions, images: np.ndarray, alpha: float, copies: Sequence[CopyRecord]
) -> Heading:
    digest = pool_digest([image_digest(image) for image in images])
    classes, share = questions.classes, questions.share
    return Heading(
        suspect.name, questions.base_id, digest, questions.count, questions.decoys, classes, alpha, share, len(copies)
    )


def _scores(evidence: Evidence, copies: Sequence[CopyRecord]) -> tuple[QueryScore, ...]:
    bounds, agreeing, counted, accused = (
        evidence.log10_bounds(),
        evidence.agreeing,
        evidence.counted,
        set(evidence.accused().tolist()),
    )
    surest = np.lexsort((-agreeing, bounds))[: max(CLOSEST, len(accused))]
    return tuple(
        QueryScore(
            copies[i].recipient, copies[i].copy_id, int(agreeing[i]), int(counted[i]), float(bounds[i]), i in accused
        )
        for i in surest.tolist()
    )
