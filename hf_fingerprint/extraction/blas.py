"""One thread for each product while several tensors are read at once, on one core each."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from threadpoolctl import threadpool_limits


_LIMITING = Lock()
_LATE: list[threadpool_limits] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits BLAS to one thread each, unless another extraction of this process does.

    The limit is the process's. Of two that overlap, the second would take the first one's for what to restore.
    """
    if not _LIMITING.acquire(blocking=False):
        yield
        return
    try:
        with threadpool_limits(1, user_api="blas"):
            try:
                yield
            finally:
                while _LATE:
                    _LATE.pop().restore_original_limits()
    finally:
        _LIMITING.release()


def scipy_linalg() -> Any:
    """`scipy.linalg`, which takes long to import, and brings a BLAS of its own that is limited too."""
    is_late = _LIMITING.locked() and "scipy.linalg" not in sys.modules
    import scipy.linalg

    if is_late:
        _LATE.append(threadpool_limits(1, user_api="blas"))
    return scipy.linalg
