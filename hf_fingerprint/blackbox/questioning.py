"""Putting questions to a suspect, one after another, until somebody is proven to be the leak.

Questions and decoys come mixed, in an order that tells the suspect nothing. The bound on a false accusation holds
whenever one stops (see [`Evidence`]), so the first proof is enough; answers to decoys are no evidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hf_fingerprint.blackbox.transcript import Transcript, image_digest
from hf_fingerprint.errors import FingerprintError


PROVEN, BUDGET, ALL_ASKED = "proven", "budget", "all asked"


class Weighing(Protocol):
    """What a questioning needs of [`Evidence`]."""

    @property
    def questions(self) -> int: ...

    def hear(self, question: int, answer: int | None) -> None: ...

    def accused(self) -> np.ndarray: ...


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
    images: Sequence[np.ndarray],
    evidence: Weighing,
    order: np.ndarray,
    transcript: Transcript | None = None,
    budget: int | None = None,
    least: int = 0,
    on_answer: Callable[[int, int | None], None] | None = None,
) -> Questioning:
    """Asks until somebody is accused, the budget is spent or nothing is left to ask.

    Args:
        suspect ([`Suspect`]): what answers.
        images (sequence of `np.ndarray`): the pool: the questions, as many as the evidence has, and then the decoys,
            each `(height, width, 3)`, `uint8`.
        evidence ([`Evidence`]): that heard nothing yet. It is told the transcript's answers first.
        order (`np.ndarray`): which images of the pool to ask, each at most once, in this order.
        transcript ([`Transcript`], *optional*): keeps each answer before the next question, so that whatever stops
            this, Ctrl-C too, loses one answer at most; what it holds already isn't asked again.
        budget (`int`, *optional*): how many images to ask at most, those in the transcript among them.
        least (`int`, *optional*, defaults to 0): how many images to get answers for at least, whoever is accused.
        on_answer (callable, *optional*): told each question and its answer, once it counts.

    Returns:
        [`Questioning`]

    Raises:
        [`FingerprintError`]: if the order isn't one of the pool's, the transcript is of other images, or the suspect
            refuses to be asked.
    """
    _check_order(order, len(images))
    given = {} if transcript is None else dict(transcript.answers)
    before = getattr(suspect, "retries", 0)
    for index, answer in given.items():
        if transcript is not None and transcript.images[index] != image_digest(images[index]):
            raise FingerprintError(
                f"The transcript {transcript.path} has another image for question {index}: name another file."
            )
        if index < evidence.questions:
            evidence.hear(index, answer)
    told, resumed = dict(given), len(given)
    left = [index for index in map(int, order[::-1]) if index not in given]
    while True:
        if sum(answer is not None for answer in told.values()) >= least and len(evidence.accused()):
            stopped = PROVEN
            break
        if budget is not None and len(told) >= budget:
            stopped = BUDGET
            break
        if not left:
            stopped = ALL_ASKED
            break
        index = left.pop()
        answer = suspect(images[index])
        if transcript is not None:
            transcript.add(index, image_digest(images[index]), answer)
        told[index] = answer
        if index < evidence.questions:
            evidence.hear(index, answer)
        if on_answer is not None:
            on_answer(index, answer)
    return Questioning(
        asked=len(told),
        answered=sum(answer is not None for answer in told.values()),
        decoys_asked=sum(index >= evidence.questions for index in told),
        resumed=resumed,
        retries=getattr(suspect, "retries", 0) - before,
        stopped=stopped,
    )


def _check_order(order: np.ndarray, images: int) -> None:
    if len(np.unique(order)) != len(order) or not np.isin(order, np.arange(images)).all():
        raise FingerprintError(f"The order names images twice or beyond the {images} there are: shuffle the pool.")
