"""Writes to the terminal. Text from names, files, repos and services is filtered first.

Lines and tables of this package pass through [`printable`], and so does what other packages write while a command
runs: warnings, logs, and progress bars with file names. Only `rich` writes escape sequences, around text that is
filtered before it is laid out.
"""

import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from hf_fingerprint.errors import FingerprintWarning
from hf_fingerprint.printable import printable
from hf_fingerprint.progress import above_bars


if TYPE_CHECKING:
    from rich.console import Console

_CURSOR_MOVES = re.compile(r"(\n|\x1b\[A)*")  # what tqdm writes to move between its bars


def echo(line: str) -> None:
    """Prints a line to stdout."""
    _write_line(sys.stdout, line)


def echo_err(line: str) -> None:
    """Prints a line to stderr, apart from results."""
    _write_line(sys.stderr, line)


def flush() -> None:
    """Flushes stdout."""
    sys.stdout.flush()


def console(stderr: bool = False) -> "Console":
    """A console for tables, on stdout or stderr, without markup and emoji codes."""
    return _console_class()(stderr=stderr, markup=False, emoji=False)


@contextmanager
def sanitized_output() -> Iterator[None]:
    """Filters everything written to stdout and stderr within the context, and shows warnings in one line."""
    original_streams = sys.stdout, sys.stderr
    with ExitStack() as stack:
        for stream in original_streams:
            _escape_unencodable(stream, stack)
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show_warning
        sys.stdout, sys.stderr = map(SanitizedStream, original_streams)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = original_streams


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a filtered traceback; for `sys.excepthook`."""
    _write_lines(sys.stderr, traceback.format_exception(kind, error, trace))


class SanitizedStream:
    """A text stream that escapes unprintable characters, except line ends and a leading carriage return, which
    progress bars write.

    `rich` finds the original stream by `rich_proxied_file`.
    """

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        shown = text
        if not text.isprintable() and not _CURSOR_MOVES.fullmatch(text):
            start = "\r" * text.startswith("\r")
            shown = start + "\n".join(map(printable, text.removeprefix("\r").split("\n")))
        self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@cache
def _console_class() -> "Callable[..., Console]":
    """The console class, made when it is first needed, since `rich` takes long to import."""
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class SanitizedConsole(Console):
        """Filters text before it is measured and wrapped, and again before it is written."""

        def render_str(self, text: str, *args: Any, **options: Any) -> Text:
            return super().render_str(printable(text), *args, **options)

        def render(self, renderable: Any, *args: Any, **options: Any) -> Iterable[Segment]:
            if isinstance(renderable, Text) and not renderable.plain.isprintable():
                renderable = renderable.copy()
                renderable.plain = printable(renderable.plain)
            for segment in super().render(renderable, *args, **options):
                if segment.control or segment.text.isprintable() or segment.text == "\n":
                    yield segment
                else:
                    yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)

    return SanitizedConsole


def _escape_unencodable(stream: Any, stack: ExitStack) -> None:
    """Makes a stream escape characters that its encoding lacks, instead of raising an error."""
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
        stack.callback(stream.reconfigure, errors="strict")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows this package's warnings in one line, and others as Python does."""
    if issubclass(category, FingerprintWarning):
        echo_err(f"Warning: {message}")
    else:
        text = warnings.formatwarning(printable(str(message)), category, filename, lineno, line)
        _write_lines(file or sys.stderr, [text])


def _write_line(stream: TextIO, line: str) -> None:
    """Writes a line, above progress bars if there are any."""
    with above_bars():
        stream.write(printable(line) + "\n")


def _write_lines(stream: TextIO, texts: Iterable[str]) -> None:
    for text in texts:
        for line in text.splitlines():
            stream.write(printable(line) + "\n")
