"""Rate limit and retries for requests to a suspect."""

import importlib
import random
import time
from collections.abc import Callable
from typing import TypeVar

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.retrying import MAX_WAIT, retry


T = TypeVar("T")
RATE = 5.0  # requests a second
MAX_ATTEMPTS = 5
INITIAL_WAIT = 0.5  # seconds
MAX_CONSECUTIVE_FAILURES = 3  # images in a row
TRANSIENT_STATUSES = frozenset([408, 425, 429])


class TransientError(Exception):
    """A failure that may not happen again.

    Args:
        reason (`str`): the end of a sentence, without secrets.
        wait (`float`, *optional*): the seconds to wait that the service asks for.
    """

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class RetryPolicy:
    """Limits the rate of calls, and repeats those that raise a [`TransientError`].

    Args:
        rate (`float`, *optional*, defaults to 5): the highest number of requests a second, retries included.
        max_attempts (`int`, *optional*, defaults to 5): the highest number of requests for each image.
        clock (callable, *optional*): returns the seconds of a monotonic clock.
        sleep (callable, *optional*): waits for a number of seconds.

    Attributes:
        retries (`int`): requests repeated so far.

    Raises:
        [`FingerprintError`]: if `rate` isn't above 0 or `max_attempts` is below 1.
    """

    def __init__(
        self,
        rate: float = RATE,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not 0 < rate < float("inf") or max_attempts < 1:
            problem = f"{rate} requests a second and {max_attempts} attempts are not possible"
            raise FingerprintError(f"{problem}: choose more than 0 of both.")
        self.retries = 0
        self._interval, self._max_attempts, self._clock, self._sleep = 1 / rate, max_attempts, clock, sleep
        self._next_request_at, self._consecutive_failures = 0.0, 0

    def __repr__(self) -> str:
        return f"RetryPolicy(rate={1 / self._interval:g}, max_attempts={self._max_attempts})"

    def __call__(self, call: Callable[[], T], suspect: str) -> T | None:
        """The result of `call`, or `None` if every attempt raises a [`TransientError`].

        Args:
            call (callable): takes no arguments.
            suspect (`str`): the suspect's name, without secrets, for error messages.

        Raises:
            [`FingerprintError`]: if the calls for three images in a row fail.
        """
        try:
            result = retry(call, self._max_attempts, _delay, self._limit_rate, self._sleep)
        except TransientError as last_error:
            self._consecutive_failures += 1
            if self._consecutive_failures < MAX_CONSECUTIVE_FAILURES:
                return None
            raise FingerprintError(
                f"{suspect} did not respond to {MAX_CONSECUTIVE_FAILURES} images in a row after {self._max_attempts} "
                f"attempts each; the last time, {last_error}: wait, then run the command again to resume."
            ) from None
        self._consecutive_failures = 0
        return result

    def _limit_rate(self, attempt: int) -> None:
        now = self._clock()
        if now < self._next_request_at:
            self._sleep(self._next_request_at - now)
        self._next_request_at = max(now, self._next_request_at) + self._interval
        self.retries += attempt > 1


def require_library(library: str) -> None:
    """Checks that a library for queries over a network is installed.

    Raises:
        [`FingerprintError`]: if it isn't.
    """
    try:
        importlib.import_module(library)
    except ModuleNotFoundError:
        needed = f"Queries over a network need {library}"
        raise FingerprintError(f"{needed}: pip install hf-fingerprint[blackbox].") from None


def is_transient(status: int) -> bool:
    """Whether an HTTP status may change with the next attempt."""
    return status in TRANSIENT_STATUSES or status >= 500


def _delay(error: Exception, attempt: int) -> float | None:
    """Seconds before the next attempt: as the service asks, or exponential with jitter, to spread clients out."""
    if not isinstance(error, TransientError):
        return None
    if error.wait is not None:
        return error.wait
    return min(INITIAL_WAIT * 2.0 ** min(attempt - 1, 10), MAX_WAIT) + random.uniform(0, INITIAL_WAIT)
