"""Results as lines of text and tables: the same content on a terminal, from `print`, and in a notebook.

A result is a [`PrintableResult`], which says by `blocks` what it shows. Names in it may be hostile: all text is
escaped here, by [`printable`] and, for a notebook, as HTML.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from io import StringIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDTH = 80  # columns of a printed result
_MAX_WHOLE, _MIN_WIDTH = 12, 10  # longer cells, such as names, are folded to no less where a table is too wide


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns (`tuple[str, ...]`): the headings.
        rows (`tuple[tuple[str, ...], ...]`): the cells of each row, as many as there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = str | Table


class PrintableResult:
    """Base class of results that `print` and notebooks show as the command line does."""

    def blocks(self) -> Iterable[Block]:
        """The lines and tables that show the result."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        raise NotImplementedError

    def __str__(self) -> str:
        return render_text(self.blocks())

    def _repr_html_(self) -> str:
        return render_html(self.blocks())


def one_line_repr(result: object, **values: Any) -> str:
    """A representation in one line: the class and the given values."""
    return f"{type(result).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def render_text(blocks: Iterable[Block], width: int = WIDTH) -> str:
    """The blocks as text, without colors."""
    from rich.console import Console

    stream = StringIO()
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False}
    print_blocks(blocks, Console(file=stream, width=width, **plain))  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def render_html(blocks: Iterable[Block]) -> str:
    """The blocks as HTML paragraphs and tables."""
    return "\n".join(_html(block) for block in blocks)


def print_blocks(blocks: Iterable[Block], screen: "Console") -> None:
    """Prints the blocks to a console of `rich`. Words that are longer than a line, such as paths, stay whole."""
    from rich.text import Text

    for block in blocks:
        if isinstance(block, str):
            for line in wrap(printable(block), screen.width, break_long_words=False, break_on_hyphens=False):
                screen.print(Text(line), overflow="ignore", crop=False)
        else:
            screen.print(_rich_table(block))


def format_probability(log10_bound: float) -> str:
    """Formats a bound on a probability."""
    return "1" if log10_bound > -0.05 else f"10^{log10_bound:.1f}"


def _rich_table(table: Table) -> "RichTable":
    """A table that fits a narrow terminal: its headings have several lines, and its long cells are folded."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for place, heading in enumerate(table.columns):
        longest = max((len(printable(row[place])) for row in table.rows), default=0)
        if longest > _MAX_WHOLE:
            made.add_column(heading, overflow="fold", min_width=_MIN_WIDTH)
        else:
            lines = wrap(heading, max(longest, _MIN_WIDTH), break_long_words=False)
            made.add_column(heading, width=max(longest, *map(len, lines)))
    for row in table.rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(printable(block))}</p>"
    head = "".join(f"<th>{escape(printable(heading))}</th>" for heading in block.columns)
    rows = ("".join(f"<td>{escape(printable(cell))}</td>" for cell in row) for row in block.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
