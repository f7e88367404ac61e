"""Putting questions to a suspect, one after another, until somebody is proven to be the leak.

Questions and decoys of all pools come mixed, in an order that tells the suspect nothing. The bound on a false
accusation holds whenever one stops (see [`EProcess`]), so the first proof is enough; answers to decoys prove nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hf_fingerprint.blackbox.querying.transcript import Transcript, image_digest
from hf_fingerprint.errors import FingerprintError


PROVEN, BUDGET, ALL_QUERIED = "proven", "budget", "all asked"


class SequentialTest(Protocol):
    """What a questioning needs of [`EProcess`]."""

    @property
    def triggers(self) -> int: ...

    def update(self, query_pools: int, response: int | None) -> None: ...

    def accused(self) -> np.ndarray: ...


@dataclass(frozen=True)
class QueryPool:
    """What is asked on behalf of one record.

    Attributes:
        images (sequence of `np.ndarray`): the questions, as many as the evidence has, and then the decoys, each
            `(height, width, 3)`, `uint8`.
        e_process ([`EProcess`]): that heard nothing yet. It is told the transcript's answers first.
        transcript ([`Transcript`] or `None`): keeps each answer before the next question, so that whatever stops this,
            Ctrl-C too, loses one answer at most; what it holds already isn't asked again.
    """

    images: Sequence[np.ndarray]
    e_process: SequentialTest
    transcript: Transcript | None = None


@dataclass(frozen=True)
class QueryStats:
    """How a questioning went, with what an earlier part of it left in the transcript.

    Attributes:
        queried (`int`): images put to the suspect, decoys among them, whether or not it answered.
        answered (`int`): those it told a class of.
        decoys_queried (`int`): those of `queried` that prove nothing.
        resumed (`int`): those of `queried` that were in the transcript before.
        retries (`int`): requests made again, this time.
        stop_reason (`str`): `"proven"`, `"budget"` or `"all asked"`.
    """

    queried: int
    answered: int
    decoys_queried: int
    resumed: int
    retries: int
    stop_reason: str

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


def query_pools(
    suspect: Callable[[np.ndarray], int | None],
    pools: Sequence[QueryPool],
    order: np.ndarray,
    budget: int | None = None,
    min_responses: int = 0,
    on_response: Callable[[int, int | None], None] | None = None,
) -> QueryStats:
    """Asks until somebody is accused, the budget is spent or nothing is left to ask.

    Args:
        suspect ([`Suspect`]): what answers.
        pools (sequence of [`QueryPool`]): what there is to ask. Images are counted through all pools, one after another.
        order (`np.ndarray`): which images to ask, each at most once, in this order.
        budget (`int`, *optional*): how many images to ask at most, those in transcripts among them.
        min_responses (`int`, *optional*, defaults to 0): how many images to get answers for at least, whoever is accused.
        on_response (callable, *optional*): told each image and its answer, once it counts.

    Returns:
        [`QueryStats`]

    Raises:
        [`FingerprintError`]: if the order isn't one of the pools', a transcript is of other images, or the suspect
            refuses to be asked.
    """
    ends = np.cumsum([len(pool.images) for pool in pools])
    _check_order(order, int(ends[-1]))
    before = getattr(suspect, "retries", 0)
    responses: dict[int, int | None] = {}
    decoys = 0

    def update(which: int, index: int, response: int | None) -> None:
        nonlocal decoys
        pool = pools[which]
        responses[int(ends[which]) - len(pool.images) + index] = response
        if index < pool.e_process.triggers:
            pool.e_process.update(index, response)
        else:
            decoys += 1

    for which, pool in enumerate(pools):
        for index, response in ({} if pool.transcript is None else pool.transcript.responses).items():
            if pool.transcript is not None and pool.transcript.images[index] != image_digest(pool.images[index]):
                raise FingerprintError(
                    f"The transcript {pool.transcript.path} has another image for question {index}: name another file."
                )
            update(which, index, response)
    resumed = len(responses)
    left = [number for number in map(int, order[::-1]) if number not in responses]
    while True:
        answered = sum(response is not None for response in responses.values())
        if answered >= min_responses and any(len(pool.e_process.accused()) for pool in pools):
            stop_reason = PROVEN
            break
        if budget is not None and len(responses) >= budget:
            stop_reason = BUDGET
            break
        if not left:
            stop_reason = ALL_QUERIED
            break
        number = left.pop()
        which = int(np.searchsorted(ends, number, side="right"))
        pool, index = pools[which], number - int(ends[which]) + len(pools[which].images)
        response = suspect(pool.images[index])
        if pool.transcript is not None:
            pool.transcript.add(index, image_digest(pool.images[index]), response)
        update(which, index, response)
        if on_response is not None:
            on_response(number, response)
    return QueryStats(
        queried=len(responses),
        answered=answered,
        decoys_queried=decoys,
        resumed=resumed,
        retries=getattr(suspect, "retries", 0) - before,
        stop_reason=stop_reason,
    )


def _check_order(order: np.ndarray, images: int) -> None:
    if len(np.unique(order)) != len(order) or not np.isin(order, np.arange(images)).all():
        raise FingerprintError(f"The order names images twice or beyond the {images} there are: shuffle the pools.")
