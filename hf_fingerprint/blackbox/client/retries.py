"""How often a suspect behind an API is asked: at most so many requests a second, and again after a while where what
went wrong may pass."""

import importlib
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")
RATE = 5.0  # requests a second
MAX_ATTEMPTS = 5
INITIAL_WAIT, MAX_WAIT = 0.5, 60.0  # seconds
MAX_CONSECUTIVE_FAILURES = 3  # images in a row
TRANSIENT_STATUSES = frozenset([408, 425, 429])


class TransientError(Exception):
    """What may be well at another try.

    Args:
        why (`str`): the end of a sentence, without secrets.
        wait (`float`, *optional*): seconds that the other side asks to wait.
    """

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class RetryPolicy:
    """Calls at a moderate pace, and again after what may pass.

    Args:
        rate (`float`, *optional*, defaults to 5): requests a second at most, tries after the first among them.
        max_attempts (`int`, *optional*, defaults to 5): at most, for each image.
        clock, sleep (callable, *optional*): seconds of a clock that never goes back, and what waits for seconds.

    Attributes:
        retries (`int`): tries after the first, of all images.

    Raises:
        [`FingerprintError`]: if the rate isn't above 0, there is no try, or tenacity isn't installed.
    """

    def __init__(
        self,
        rate: float = RATE,
        max_attempts: int = MAX_ATTEMPTS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not 0 < rate < float("inf") or max_attempts < 1:
            raise FingerprintError(
                f"Nothing can be asked at {rate} requests a second and {max_attempts} tries: choose more than 0 of both."
            )
        require_library("tenacity")
        self.retries = 0
        self._interval, self._max_attempts, self._clock, self._sleep = 1 / rate, max_attempts, clock, sleep
        self._next_request_at, self._consecutive_failures = 0.0, 0

    def __repr__(self) -> str:
        return f"Politeness({1 / self._interval:g} requests a second, {self._max_attempts} tries)"

    def __call__(self, call: Callable[[], T], suspect: str) -> T | None:
        """What a call returns, or `None` if it raises [`TransientError`] at every try.

        Args:
            call (callable): to be made again if it raises [`TransientError`].
            suspect (`str`): whom it asks, without secrets.

        Raises:
            [`FingerprintError`]: if so it went with three images in a row.
        """
        import tenacity

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._max_attempts),
            wait=_wait,
            retry=tenacity.retry_if_exception_type(TransientError),
            sleep=self._sleep,
            before=self._limit_rate,
            reraise=True,
        )
        try:
            result = retrying(call)
        except TransientError as last_error:
            self._consecutive_failures += 1
            if self._consecutive_failures < MAX_CONSECUTIVE_FAILURES:
                return None
            raise FingerprintError(
                f"{suspect} answered none of {MAX_CONSECUTIVE_FAILURES} images in a row, tried {self._max_attempts} times each; the last "
                f"time, {last_error}: wait, then run the same command again to go on."
            ) from None
        self._consecutive_failures = 0
        return result

    def _limit_rate(self, state: "tenacity.RetryCallState") -> None:
        now = self._clock()
        if now < self._next_request_at:
            self._sleep(self._next_request_at - now)
        self._next_request_at = max(now, self._next_request_at) + self._interval
        self.retries += state.attempt_number > 1


def require_library(library: str) -> None:
    """Says how to get a library that asking over a network needs, if it isn't installed.

    Raises:
        [`FingerprintError`]: if it isn't.
    """
    try:
        importlib.import_module(library)
    except ModuleNotFoundError:
        raise FingerprintError(
            f"Asking over a network needs {library}: pip install hf-fingerprint[blackbox]."
        ) from None


def is_transient(status: int) -> bool:
    """Whether an HTTP status may be another at the next try."""
    return status in TRANSIENT_STATUSES or status >= 500


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """The seconds that a `Retry-After` header asks to wait, from 0 to 60; `None` if it says nothing.

    Args:
        value (`str` or `None`): the header, seconds or a date.
        now (`float`, *optional*): seconds since 1970; the time by default.
    """
    text = (value or "").strip()
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else _seconds_until(text, now)
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def _seconds_until(date: str, now: float | None) -> float:
    return parsedate_to_datetime(date).timestamp() - (time.time() if now is None else now)


def _wait(state: "tenacity.RetryCallState") -> float:
    """Seconds before another try: as asked, or twice as long each time and somewhat more by chance, so that
    several that were refused at once don't come again at once."""
    import tenacity

    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, TransientError) and error.wait is not None:
        return error.wait
    backoff = tenacity.wait_exponential(multiplier=INITIAL_WAIT, max=MAX_WAIT)
    return backoff(state) + tenacity.wait_random(0, INITIAL_WAIT)(state)
