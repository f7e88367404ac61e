"""Putting questions to a suspect, one after another, until somebody is proven to be the leak.

Questions and decoys of all pools come mixed, in an order that tells the suspect nothing. The bound on a false
accusation holds whenever one stops (see [`Evidence`]), so the first proof is enough; answers to decoys prove nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hf_fingerprint.blackbox.querying.transcript import Transcript, image_digest
from hf_fingerprint.errors import FingerprintError


PROVEN, BUDGET, ALL_ASKED = "proven", "budget", "all asked"


class Weighing(Protocol):
    """What a questioning needs of [`Evidence`]."""

    @property
    def questions(self) -> int: ...

    def hear(self, question: int, answer: int | None) -> None: ...

    def accused(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Pool:
    """What is asked on behalf of one record.

    Attributes:
        images (sequence of `np.ndarray`): the questions, as many as the evidence has, and then the decoys, each
            `(height, width, 3)`, `uint8`.
        evidence ([`Evidence`]): that heard nothing yet. It is told the transcript's answers first.
        transcript ([`Transcript`] or `None`): keeps each answer before the next question, so that whatever stops this,
            Ctrl-C too, loses one answer at most; what it holds already isn't asked again.
    """

    images: Sequence[np.ndarray]
    evidence: Weighing
    transcript: Transcript | None = None


@dataclass(frozen=True)
class Questioning:
    """How a questioning went, with what an earlier part of it left in the transcript.

    Attributes:
        asked (`int`): images put to the suspect, decoys among them, whether or not it answered.
        answered (`int`): those it told a class of.
        decoys_asked (`int`): those of `asked` that prove nothing.
        resumed (`int`): those of `asked` that were in the transcript before.
        retries (`int`): requests made again, this time.
        stopped (`str`): `"proven"`, `"budget"` or `"all asked"`.
    """

    asked: int
    answered: int
    decoys_asked: int
    resumed: int
    retries: int
    stopped: str

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


def question(
    suspect: Callable[[np.ndarray], int | None],
    pools: Sequence[Pool],
    order: np.ndarray,
    budget: int | None = None,
    least: int = 0,
    on_answer: Callable[[int, int | None], None] | None = None,
) -> Questioning:
    """Asks until somebody is accused, the budget is spent or nothing is left to ask.

    Args:
        suspect ([`Suspect`]): what answers.
        pools (sequence of [`Pool`]): what there is to ask. Images are counted through all pools, one after another.
        order (`np.ndarray`): which images to ask, each at most once, in this order.
        budget (`int`, *optional*): how many images to ask at most, those in transcripts among them.
        least (`int`, *optional*, defaults to 0): how many images to get answers for at least, whoever is accused.
        on_answer (callable, *optional*): told each image and its answer, once it counts.

    Returns:
        [`Questioning`]

    Raises:
        [`FingerprintError`]: if the order isn't one of the pools', a transcript is of other images, or the suspect
            refuses to be asked.
    """
    ends = np.cumsum([len(pool.images) for pool in pools])
    _check_order(order, int(ends[-1]))
    before = getattr(suspect, "retries", 0)
    told: dict[int, int | None] = {}
    decoys = 0

    def hear(which: int, index: int, answer: int | None) -> None:
        nonlocal decoys
        pool = pools[which]
        told[int(ends[which]) - len(pool.images) + index] = answer
        if index < pool.evidence.questions:
            pool.evidence.hear(index, answer)
        else:
            decoys += 1

    for which, pool in enumerate(pools):
        for index, answer in ({} if pool.transcript is None else pool.transcript.answers).items():
            if pool.transcript is not None and pool.transcript.images[index] != image_digest(pool.images[index]):
                raise FingerprintError(
                    f"The transcript {pool.transcript.path} has another image for question {index}: name another file."
                )
            hear(which, index, answer)
    resumed = len(told)
    left = [number for number in map(int, order[::-1]) if number not in told]
    while True:
        answered = sum(answer is not None for answer in told.values())
        if answered >= least and any(len(pool.evidence.accused()) for pool in pools):
            stopped = PROVEN
            break
        if budget is not None and len(told) >= budget:
            stopped = BUDGET
            break
        if not left:
            stopped = ALL_ASKED
            break
        number = left.pop()
        which = int(np.searchsorted(ends, number, side="right"))
        pool, index = pools[which], number - int(ends[which]) + len(pools[which].images)
        answer = suspect(pool.images[index])
        if pool.transcript is not None:
            pool.transcript.add(index, image_digest(pool.images[index]), answer)
        hear(which, index, answer)
        if on_answer is not None:
            on_answer(number, answer)
    return Questioning(
        asked=len(told),
        answered=answered,
        decoys_asked=decoys,
        resumed=resumed,
        retries=getattr(suspect, "retries", 0) - before,
        stopped=stopped,
    )


def _check_order(order: np.ndarray, images: int) -> None:
    if len(np.unique(order)) != len(order) or not np.isin(order, np.arange(images)).all():
        raise FingerprintError(f"The order names images twice or beyond the {images} there are: shuffle the pools.")
