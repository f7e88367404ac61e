"""How long work reports its progress: one type, and the ways to show it.

A [`Progress`] is called with the name of a step, how much of it is done, and how much there is to do, or `None` if
that is unknown. A step that can't be counted is announced once, by `progress(step, 0, None)`. Pass your own, or
[`silent`]:

```python
trace(suspect, vault, progress=lambda step, done, total: print(step, done, total))
```

Without one, long calls show a bar in a notebook and on a terminal, by the `tqdm` of huggingface_hub, which heeds
`HF_HUB_DISABLE_PROGRESS_BARS` and `disable_progress_bars()`. Elsewhere they log each step to the logger
`hf_fingerprint` at level INFO. `HF_FINGERPRINT_VERBOSITY` (debug, info, warning, error or critical) sets the level of
that logger; from error on there are no bars either.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cache, wraps
from inspect import BoundArguments, isgeneratorfunction, signature
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from hf_fingerprint.launcher import is_first_launched
from hf_fingerprint.printable import printable


Progress = Callable[[str, int, int | None], None]
VERBOSITY = "HF_FINGERPRINT_VERBOSITY"
_LOGGER = logging.getLogger("hf_fingerprint")
_COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
_UNCOUNTED = "{desc} {elapsed}"
_LINE_INTERVAL, _FIRST_LINE = 30.0, 5.0  # seconds between two lines of one step, and before the first estimate
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def silent(step: str, done: int, total: int | None) -> None:
    """Returns nothing and shows nothing: pass it as `progress` for no bars."""


def counting(progress: Progress | None, step: str, total: int | None, done: int = 0) -> Callable[[int], None]:
    """Returns a function that takes how much more of a step is done, and calls `progress` with the sum.

    Args:
        progress (callable or `None`): a [`Progress`]; with `None` the function does nothing.
        step (`str`): the name of the step.
        total (`int` or `None`): how much there is to do.
        done (`int`, *optional*, defaults to 0): how much was done before.
    """

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(step, done, total)

    return count


def part_of(progress: Progress | None, step: str, total: int | None, before: int = 0) -> Progress | None:
    """Returns a [`Progress`] for one of several parts of a step; what it is called with counts for the whole step.

    Args:
        progress (callable or `None`): the [`Progress`] of the whole step.
        step (`str`): the name of the step, which stands for the names of its parts.
        total (`int` or `None`): how much there is to do in all parts.
        before (`int`, *optional*, defaults to 0): how much was done in the parts before this one.
    """
    return None if progress is None else lambda _step, done, _total: progress(step, before + done, total)


def shows_progress(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorates a function or generator function with a parameter `progress`: a call without one shows its progress by
    [`show_progress`]."""
    parameters = signature(function)

    def without_progress(args: Any, kwargs: Any) -> BoundArguments | None:
        try:
            given = parameters.bind(*args, **kwargs)
        except TypeError:  # the call raises it, with the name of the function
            return None
        return given if given.arguments.get("progress") is None else None

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = without_progress(args, kwargs)
        if given is None:
            return function(*args, **kwargs)
        with show_progress() as given.arguments["progress"]:
            return function(*given.args, **given.kwargs)

    @wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Any:
        given = without_progress(args, kwargs)
        if given is None:
            yield from function(*args, **kwargs)  # type: ignore[misc]
            return
        with show_progress() as given.arguments["progress"]:
            items: Any = function(*given.args, **given.kwargs)
            with closing(items):  # before the bars, however the caller stops
                for item in items:
                    with above_bars():  # for what the caller prints
                        yield item

    return generate if isgeneratorfunction(function) else run


@contextmanager
def show_progress(write: Callable[[str], None] | None = None) -> Iterator[Progress]:
    """Yields a [`Progress`] that shows bars in a notebook or on a terminal, and lines of text elsewhere. Of several
    processes that were launched together, the first shows it.

    Args:
        write (callable, *optional*): takes each line. Defaults to the logger `hf_fingerprint`, at level INFO.
    """
    _configure_logging()
    if not _LOGGER.isEnabledFor(logging.WARNING) or not is_first_launched():
        yield silent
        return
    if not _bars_visible():
        yield log_progress(write or _LOGGER.info)
        return
    from huggingface_hub.utils import tqdm

    bars: dict[str, Any] = {}

    def show(step: str, done: int, total: int | None) -> None:
        if step not in bars:
            for over in [name for name, bar in bars.items() if bar.total is None or bar.n >= bar.total]:
                bars.pop(over).close()
            shown = _UNCOUNTED if total is None else _COUNTED
            bars[step] = tqdm(desc=printable(step), total=total, bar_format=shown, leave=False, name="hf_fingerprint")
        bars[step].total = total
        bars[step].update(done - bars[step].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def above_bars() -> AbstractContextManager[None]:
    """Clears bars on the terminal for what is written within the context, and shows them again after it."""
    bars = sys.modules.get("tqdm")
    return nullcontext() if bars is None else bars.tqdm.external_write_mode(nolock=True)


def log_progress(write: Callable[[str], None]) -> Progress:
    """Returns a [`Progress`] that writes a line when a step begins, and if it can be counted every half minute, with
    the time that is left, and when it is done.

    Args:
        write (callable): takes each line, such as `logger.info`.
    """
    begun: dict[str, tuple[float, int]] = {}  # when each step began, and what was done then
    written: dict[str, float] = {}  # when each step's last line was written

    def log(step: str, done: int, total: int | None) -> None:
        now = monotonic()
        if step not in written:
            begun[step], written[step] = (now, done), now
            write(printable(step))
        if total is None:
            return
        began, before = begun[step]
        if done >= total:
            del written[step], begun[step]
            write(f"{printable(step)}: done")
        elif now - written[step] >= _LINE_INTERVAL or (done > before and written[step] == began < now - _FIRST_LINE):
            written[step] = now
            left = (now - began) / (done - before) * (total - done) if done > before else None
            rest = "" if left is None else f", about {format_duration(left)} left"
            write(f"{printable(step)}: {done / total:.0%}{rest}")

    return log


def format_duration(seconds: float) -> str:
    """A time in seconds, minutes or hours, whichever says it in a few digits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def progress_disabled() -> bool:
    """Whether the environment asks for no progress bars."""
    return os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")


def _bars_visible() -> bool:
    """Whether bars can be seen, and the environment does not speak against them."""
    if progress_disabled():
        return False
    if "ipykernel.zmqshell" in sys.modules:
        return True
    return os.environ.get("TERM") != "dumb" and sys.stderr is not None and sys.stderr.isatty()


@cache
def _configure_logging() -> None:
    """Sets the logger's level from the environment, and shows its lines on stderr if it has no handler."""
    wanted = os.environ.get(VERBOSITY)
    if not wanted:
        return
    level = logging.getLevelNamesMapping().get(wanted.upper())
    if level is None:
        _LOGGER.warning("%s is %s: set debug, info, warning, error or critical.", VERBOSITY, printable(wanted))
        return
    _LOGGER.setLevel(level)
    if not _LOGGER.hasHandlers():
        _LOGGER.addHandler(logging.StreamHandler())
