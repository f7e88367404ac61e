"""Small pictures as SVG text, coloured by the page's style sheet, every mark with a `<title>` to point at."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape as escape_html

from hf_fingerprint.printable import printable


Scale = Callable[[float], float]
_TICKS_LOG = (1, 3, 10, 30, 100, 300, 1000)
MIN_SCORE = 1.0


@dataclass(frozen=True)
class Axis:
    """An axis: where values lie on it, from 0 to 1, and which are written there.

    Attributes:
        label (`str`): what it shows.
        place (callable): from a value to its place; places outside are moved to the ends.
        ticks (`tuple[tuple[float, str], ...]`): values and how they are written.
    """

    label: str
    place: Scale
    ticks: tuple[tuple[float, str], ...]


def score_axis(label: str, highest: float) -> Axis:
    """A logarithmic axis from a score of 1, or less, up."""
    top = math.log(max(highest, 10.0) * 1.15)
    ticks = tuple((float(t), f"{t:g}") for t in _TICKS_LOG if math.log(t) <= top)
    return Axis(label, lambda score: math.log(max(score, MIN_SCORE)) / top, ticks)


def share_axis(label: str, lowest: float = 0.0, highest: float = 1.0) -> Axis:
    """A linear axis in percent, from a multiple of a step below the lowest to one above the highest value."""
    span = max(highest - lowest, 0.01)
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0) if span / s <= 5 or s == 1.0)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    digits = 0 if step >= 0.01 else 2
    ticks = tuple((i * step, f"{i * step:.{digits}%}".replace("%", " %")) for i in range(first, last + 1))
    return Axis(label, lambda share: (share / step - first) / (last - first), ticks)


def count_axis(label: str, values: Sequence[int]) -> Axis:
    """A linear axis with a tick for each value."""
    low, row_height = min(values), max(values)
    padding = max(1.0, (row_height - low) / 12)
    return Axis(
        label,
        lambda n: (n - low + padding) / (row_height - low + 2 * padding),
        tuple((float(v), str(v)) for v in values),
    )


@dataclass
class Chart:
    """A picture with two axes.

    Args:
        title (`str`): read out in place of the picture.
        x, y ([`Axis`]): the axes.
        width, height (`int`): in pixels at the size it is drawn for; the page scales it.
    """

    title: str
    x: Axis
    y: Axis
    width: int = 300
    height: int = 210
    _marks: list[str] = field(default_factory=list)

    LEFT, RIGHT, TOP, BOTTOM = 57, 12, 10, 38

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in pixels."""
        inside = [min(1.0, max(0.0, axis.place(value))) for axis, value in ((self.x, x), (self.y, y))]
        return (
            round(self.LEFT + inside[0] * (self.width - self.LEFT - self.RIGHT), 1),
            round(self.height - self.BOTTOM - inside[1] * (self.height - self.TOP - self.BOTTOM), 1),
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str, stepped: bool = False) -> None:
        """A line through points; `stepped` goes across before it goes down."""
        placed = [self.at(*point) for point in points]
        path = "".join(
            (f"H{x:g}V{y:g}" if stepped else f"L{x:g},{y:g}") if i else f"M{x:g},{y:g}"
            for i, (x, y) in enumerate(placed)
        )
        self._marks.append(f'<path class="{kind}" d="{path}"/>')

    def dot(self, x: float, y: float, kind: str, title: str, radius: float = 3.5) -> None:
        """A dot with a text to point at."""
        left, top = self.at(x, y)
        self._marks.append(
            f'<circle class="{kind}" cx="{left:g}" cy="{top:g}" r="{radius:g}"><title>{escape(title)}</title></circle>'
        )

    def vertical_line(self, x: float, kind: str, label: str, title: str, before: bool = False, row: int = 0) -> None:
        """A vertical line with a label at its head, right of it or `before` it."""
        left, _ = self.at(x, 0)
        end, shift, top = ("end", -4, self.TOP) if before else ("start", 4, self.TOP)
        self._marks.append(
            f'<g class="{kind}"><title>{escape(title)}</title>'
            f'<line x1="{left:g}" x2="{left:g}" y1="{self.TOP}" y2="{self.height - self.BOTTOM}"/>'
            f'<text x="{left + shift:g}" y="{top + 10 + 13 * row}" text-anchor="{end}">{escape(label)}</text></g>'
        )

    def shade(self, first: float, last: float, kind: str, title: str) -> None:
        """A band from one value of x to another."""
        (left, _), (right, _) = self.at(first, 0), self.at(last, 0)
        self._marks.append(
            f'<rect class="{kind}" x="{left:g}" y="{self.TOP}" width="{max(0.0, right - left):g}" '
            f'height="{self.height - self.TOP - self.BOTTOM}"><title>{escape(title)}</title></rect>'
        )

    def bar(self, first: float, last: float, y: float, kind: str, title: str) -> None:
        """A bar from the x axis up to y."""
        (left, top), (right, _) = self.at(first, y), self.at(last, y)
        self._marks.append(
            f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{max(1.0, right - left - 0.5):g}" '
            f'height="{max(0.0, self.height - self.BOTTOM - top):g}"><title>{escape(title)}</title></rect>'
        )

    def svg(self) -> str:
        """The picture."""
        bottom, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = []
        for value, text in self.x.ticks:
            left, _ = self.at(value, 0)
            parts.append(f'<text x="{left:g}" y="{bottom + 14}" text-anchor="middle">{escape(text)}</text>')
        for value, text in self.y.ticks:
            _, top = self.at(0, value)
            parts.append(f'<line x1="{self.LEFT}" x2="{right}" y1="{top:g}" y2="{top:g}"/>')
            parts.append(f'<text x="{self.LEFT - 6}" y="{top + 4:g}" text-anchor="end">{escape(text)}</text>')
        middle = (self.LEFT + right) / 2
        parts.append(
            f'<text class="name" x="{middle:g}" y="{self.height - 6}" text-anchor="middle">{escape(self.x.label)}'
            f"</text>"
        )
        height = (self.TOP + bottom) / 2
        parts.append(
            f'<text class="name" transform="translate(12 {height:g}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f'<g class="axes">{"".join(parts)}</g>{"".join(self._marks)}</svg>'
        )


def heatmap(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], full: float
) -> str:
    """Rows of cells, darker for higher values, `full` the darkest; logarithmic from 1.

    Args:
        title (`str`): read out in place of the picture.
        rows, columns (sequence of `str`): what they are.
        values (sequence of sequences of `float`): by row.
        full (`float`): the value of the darkest cells.
    """
    left, top, row_height, width = 130, 4, 18, 720
    cell_width = (width - left - 4) / max(1, len(columns))
    scale = math.log(max(full, 2.0))
    parts = []
    for i, (row, cells) in enumerate(zip(rows, values, strict=True)):
        y = top + i * row_height
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(row)}</text>')
        for j, (column, value) in enumerate(zip(columns, cells, strict=True)):
            strength = min(1.0, math.log(max(value, MIN_SCORE)) / scale)
            parts.append(
                f'<rect class="cell" x="{left + j * cell_width:.1f}" y="{y}" width="{max(0.5, cell_width - 0.6):.1f}" '
                f'height="{row_height - 1.5}" fill-opacity="{strength:.2f}"><title>{escape(f"{row}, {column}: {value:.1f}")}'
                f"</title></rect>"
            )
    height = top + row_height * len(rows) + 22
    parts.append(
        f'<text class="name" x="{(left + width) / 2:g}" y="{height - 6}" text-anchor="middle">'
        f"marked tensors, first to last of {len(columns)}</text>"
    )
    return (
        f'<svg class="heat" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def escape(text: str) -> str:
    """A text within SVG, on one line, with nothing in it that a browser would obey."""
    return escape_html(printable(text))
