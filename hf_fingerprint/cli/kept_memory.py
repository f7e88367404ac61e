"""The memory of a process that trains models."""

import ctypes
from contextlib import suppress


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Keeps memory that torch frees for its next tensors, where the C library is glibc.

    By default each large tensor gets new pages, which the system clears first: a third of the time of a step of
    training on a processor.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
