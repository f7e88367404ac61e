"""Repeats calls that failed for a reason that may pass: the one place where the package waits and tries again."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar


if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")
MAX_WAIT = 60.0  # seconds
Delay = Callable[[Exception, int], float | None]


def retry(
    call: Callable[[], T],
    max_attempts: int,
    delay: Delay,
    before: Callable[[int], None] = lambda attempt: None,
    sleep: Callable[[float], None] | None = None,
) -> T:
    """The result of a call, which is repeated after failures that may pass. The last failure is raised.

    Args:
        call (callable): takes no arguments; must be safe to repeat.
        max_attempts (`int`): the highest number of calls.
        delay (callable): takes the error and the number of the attempt, from 1, and returns the seconds to wait before
            the next one, or `None` if another attempt is no use.
        before (callable, *optional*): called with the number of each attempt before it.
        sleep (callable, *optional*): waits for a number of seconds.
    """
    import tenacity

    def seconds(state: "tenacity.RetryCallState") -> float | None:
        error = None if state.outcome is None else state.outcome.exception()
        return delay(error, state.attempt_number) if isinstance(error, Exception) else None

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(max_attempts),
        retry=lambda state: seconds(state) is not None,
        wait=lambda state: seconds(state) or 0.0,
        before=lambda state: before(state.attempt_number),
        sleep=time.sleep if sleep is None else sleep,
        reraise=True,
    )
    return retrying(call)


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """The seconds that a `Retry-After` header asks to wait, clipped to 0 to 60; `None` if it can't be parsed.

    Args:
        value (`str` or `None`): the header: seconds or a date.
        now (`float`, *optional*): the current Unix time.
    """
    text = (value or "").strip()
    try:
        is_number = text.isascii() and text.replace(".", "", 1).isdigit()
        seconds = float(text) if is_number else _seconds_until(text, now)
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def _seconds_until(date: str, now: float | None) -> float:
    return parsedate_to_datetime(date).timestamp() - (time.time() if now is None else now)
