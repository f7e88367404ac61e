"""Work that several threads share: numpy, hashes, ciphers and files leave the interpreter to others meanwhile."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar


MAX_THREADS, AHEAD = 4, 4  # what Python does between long calls keeps more threads waiting
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def cpu_count() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Iterator[_Result]:
    """Yields the result of each item in order, while threads work on the next few.

    Args:
        work (callable): makes a result of an item.
        items (iterable): the items; few are taken before their turn.
        threads (`int`, *optional*): by default one for each processor, at most 4.
    """
    threads = min(MAX_THREADS, cpu_count()) if threads is None else threads
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= AHEAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()
