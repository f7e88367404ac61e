"""Distributed training with one vault: the first process reads secrets from disk and broadcasts the results."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from hf_fingerprint.errors import FingerprintError


T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this is the only process, or the first of several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def run_on_first_process(make: Callable[[], T]) -> T:
    """Calls `make` on the first process and returns its result on all processes. An error is raised on all of them.

    The result is broadcast in memory over the process group.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return make()
    box: list[Any] = [None, None]
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            box[0] = make()
        except BaseException as error:
            failure = error
            sentence = str(error) if isinstance(error, FingerprintError) else f"{type(error).__name__}, see there."
            box[1] = sentence
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise FingerprintError(f"The first process stopped: {box[1]}")
    return box[0]
