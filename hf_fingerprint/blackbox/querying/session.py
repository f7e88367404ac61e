"""Sends images to a suspect, one after another, until an accusation is proven.

Trigger images and decoys of all pools are sent in an order that reveals nothing to the suspect. The bound on a false
accusation holds whenever the session stops (see [`EProcess`]), so it stops at the first proof. Decoys don't count.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hf_fingerprint.blackbox.querying.transcript import Transcript, image_digest
from hf_fingerprint.errors import FingerprintError


PROVEN, BUDGET, EXHAUSTED = "proven", "budget", "exhausted"


class SequentialTest(Protocol):
    """The part of [`EProcess`] that a session uses."""

    @property
    def triggers(self) -> int: ...

    def update(self, trigger: int, response: int | None) -> None: ...

    def accused(self) -> np.ndarray: ...


@dataclass(frozen=True)
class QueryPool:
    """The images of one record.

    Attributes:
        images (sequence of `np.ndarray`): the trigger images, as many as the e-process has triggers, then the decoys,
            each `(height, width, 3)`, `uint8`.
        e_process ([`EProcess`]): without responses. Those of the transcript are counted first.
        transcript ([`Transcript`] or `None`): stores each response before the next image is sent, so that an
            interruption loses at most one. Images that have a response in it are not sent again.
    """

    images: Sequence[np.ndarray]
    e_process: SequentialTest
    transcript: Transcript | None = None


@dataclass(frozen=True)
class QueryStats:
    """The counts of a session, those of earlier sessions with the same transcript included.

    Attributes:
        queried (`int`): images sent to the suspect, decoys included, whether or not it responded.
        answered (`int`): images with a usable response.
        decoys_queried (`int`): decoys sent.
        resumed (`int`): images sent in earlier sessions.
        retries (`int`): requests repeated, in this session.
        stop_reason (`str`): `"proven"`, `"budget"` or `"exhausted"`.
    """

    queried: int
    answered: int
    decoys_queried: int
    resumed: int
    retries: int
    stop_reason: str

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return asdict(self)


def query_pools(
    suspect: Callable[[np.ndarray], int | None],
    pools: Sequence[QueryPool],
    order: np.ndarray,
    budget: int | None = None,
    min_responses: int = 0,
    on_response: Callable[[int, int | None], None] | None = None,
) -> QueryStats:
    """Sends images until somebody is accused, the budget is spent or no image is left.

    Args:
        suspect ([`Suspect`]): the suspect.
        pools (sequence of [`QueryPool`]): the images, numbered through all pools.
        order (`np.ndarray`): the images to send, each at most once, in this order.
        budget (`int`, *optional*): the highest number of images, those of the transcripts included.
        min_responses (`int`, *optional*, defaults to 0): the lowest number of responses to stop at an accusation.
        on_response (callable, *optional*): called with the number of each image and its response, once it counts.

    Returns:
        [`QueryStats`]

    Raises:
        [`FingerprintError`]: if `order` is invalid, a transcript is of other images, or the suspect can't be queried.
    """
    ends = np.cumsum([len(pool.images) for pool in pools])
    if len(np.unique(order)) != len(order) or not np.isin(order, np.arange(ends[-1])).all():
        problem = f"The order repeats images or exceeds the {ends[-1]} of the pools"
        raise FingerprintError(f"{problem}: give a permutation of them.")
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
                problem = f"The transcript {pool.transcript.path} has another image at index {index}"
                raise FingerprintError(f"{problem}: name another file.")
            update(which, index, response)
    resumed = len(responses)
    remaining = [number for number in map(int, order[::-1]) if number not in responses]
    while True:
        answered = sum(response is not None for response in responses.values())
        if answered >= min_responses and any(len(pool.e_process.accused()) for pool in pools):
            stop_reason = PROVEN
            break
        if budget is not None and len(responses) >= budget:
            stop_reason = BUDGET
            break
        if not remaining:
            stop_reason = EXHAUSTED
            break
        number = remaining.pop()
        which = int(np.searchsorted(ends, number, side="right"))
        pool, index = pools[which], number - int(ends[which]) + len(pools[which].images)
        response = suspect(pool.images[index])
        if pool.transcript is not None:
            pool.transcript.add(index, image_digest(pool.images[index]), response)
        update(which, index, response)
        if on_response is not None:
            on_response(number, response)
    retries = getattr(suspect, "retries", 0) - before
    return QueryStats(len(responses), answered, decoys, resumed, retries, stop_reason)
