"""Small charts as SVG text: colored by the page's style sheet, with a `<title>` to hover over on every mark.

These are hand-written because the page needs no scripts, follows dark mode through CSS classes, and shows its figures
on hover. Neither library gives that: matplotlib's SVG has inline colors and no titles, and is 4 to 9 times the size;
altair's tooltips need 900 kB of script, and its static SVG has no titles.
"""

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
    """An axis: its label, its scale and its ticks.

    Attributes:
        label (`str`): the text along the axis.
        place (callable): maps a value to its position, 0 to 1 along the axis. Positions outside are clamped.
        ticks (`tuple[tuple[float, str], ...]`): values and their labels.
    """

    label: str
    place: Scale
    ticks: tuple[tuple[float, str], ...]


def score_axis(label: str, highest: float) -> Axis:
    """A logarithmic axis from a score of 1 up to `highest`. Lower scores are drawn at 1."""
    top = math.log(max(highest, 10.0) * 1.15)
    ticks = tuple((float(t), f"{t:g}") for t in _TICKS_LOG if math.log(t) <= top)
    return Axis(label, lambda score: math.log(max(score, MIN_SCORE)) / top, ticks)


def share_axis(label: str, lowest: float = 0.0, highest: float = 1.0) -> Axis:
    """A linear axis in percent that covers `lowest` to `highest` in whole steps."""
    span = max(highest - lowest, 0.01)
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0) if span / s <= 5 or s == 1.0)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    last = max(last, first + 1)
    digits = 0 if step >= 0.01 else 2
    ticks = tuple((i * step, f"{i * step:.{digits}%}".replace("%", " %")) for i in range(first, last + 1))
    return Axis(label, lambda share: (share / step - first) / (last - first), ticks)


def count_axis(label: str, values: Sequence[int]) -> Axis:
    """A linear axis with a tick for each value."""
    low, high = min(values), max(values)
    padding = max(1.0, (high - low) / 12)
    ticks = tuple((float(v), str(v)) for v in values)
    return Axis(label, lambda n: (n - low + padding) / (high - low + 2 * padding), ticks)


@dataclass
class Chart:
    """A chart with two axes. Draw on it with its methods, then call [`Chart.svg`].

    Args:
        title (`str`): the text for screen readers.
        x, y ([`Axis`]): the axes.
        width, height (`int`): the size in pixels, which the page scales.
    """

    title: str
    x: Axis
    y: Axis
    width: int = 300
    height: int = 210
    _marks: list[str] = field(default_factory=list)

    LEFT, RIGHT, TOP, BOTTOM = 57, 12, 10, 38

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point, in pixels."""
        across, up = (min(1.0, max(0.0, axis.place(value))) for axis, value in ((self.x, x), (self.y, y)))
        left = self.LEFT + across * (self.width - self.LEFT - self.RIGHT)
        top = self.height - self.BOTTOM - up * (self.height - self.TOP - self.BOTTOM)
        return round(left, 1), round(top, 1)

    def line(self, points: Sequence[tuple[float, float]], kind: str, stepped: bool = False) -> None:
        """Draws a line through points. A `stepped` line goes across before it goes down."""
        path = "".join(
            (f"H{x:g}V{y:g}" if stepped else f"L{x:g},{y:g}") if i else f"M{x:g},{y:g}"
            for i, (x, y) in enumerate(self.at(*point) for point in points)
        )
        self._marks.append(f'<path class="{kind}" d="{path}"/>')

    def dot(self, x: float, y: float, kind: str, title: str, radius: float = 3.5) -> None:
        """Draws a dot that shows `title` on hover."""
        left, top = self.at(x, y)
        self._marks.append(
            f'<circle class="{kind}" cx="{left:g}" cy="{top:g}" r="{radius:g}"><title>{escape(title)}</title></circle>'
        )

    def vertical_line(self, x: float, kind: str, label: str, title: str, before: bool = False, row: int = 0) -> None:
        """Draws a vertical line with a label at its top, to the right or, if `before`, to the left."""
        left, _ = self.at(x, 0)
        end, shift = ("end", -4) if before else ("start", 4)
        self._marks.append(
            f'<g class="{kind}"><title>{escape(title)}</title>'
            f'<line x1="{left:g}" x2="{left:g}" y1="{self.TOP}" y2="{self.height - self.BOTTOM}"/>'
            f'<text x="{left + shift:g}" y="{self.TOP + 10 + 13 * row}" text-anchor="{end}">{escape(label)}</text></g>'
        )

    def shade(self, first: float, last: float, kind: str, title: str) -> None:
        """Shades the band between two values of x."""
        (left, _), (right, _) = self.at(first, 0), self.at(last, 0)
        self._marks.append(
            f'<rect class="{kind}" x="{left:g}" y="{self.TOP}" width="{max(0.0, right - left):g}" '
            f'height="{self.height - self.TOP - self.BOTTOM}"><title>{escape(title)}</title></rect>'
        )

    def bar(self, first: float, last: float, y: float, kind: str, title: str) -> None:
        """Draws a bar from the x axis up to y."""
        (left, top), (right, _) = self.at(first, y), self.at(last, y)
        self._marks.append(
            f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{max(1.0, right - left - 0.5):g}" '
            f'height="{max(0.0, self.height - self.BOTTOM - top):g}"><title>{escape(title)}</title></rect>'
        )

    def svg(self) -> str:
        """The chart as an `<svg>` element."""
        bottom, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = []
        for value, text in self.x.ticks:
            left, _ = self.at(value, 0)
            parts.append(f'<text x="{left:g}" y="{bottom + 14}" text-anchor="middle">{escape(text)}</text>')
        for value, text in self.y.ticks:
            _, top = self.at(0, value)
            parts.append(f'<line x1="{self.LEFT}" x2="{right}" y1="{top:g}" y2="{top:g}"/>')
            parts.append(f'<text x="{self.LEFT - 6}" y="{top + 4:g}" text-anchor="end">{escape(text)}</text>')
        across = f'x="{(self.LEFT + right) / 2:g}" y="{self.height - 6}"'
        upright = f'transform="translate(12 {(self.TOP + bottom) / 2:g}) rotate(-90)"'
        for place, axis in ((across, self.x), (upright, self.y)):
            parts.append(f'<text class="name" {place} text-anchor="middle">{escape(axis.label)}</text>')
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f'<g class="axes">{"".join(parts)}</g>{"".join(self._marks)}</svg>'
        )


def heatmap(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], full: float
) -> str:
    """A heatmap as an `<svg>` element: darker for higher `values`, one sequence per row, on a logarithmic scale from 1
    to `full`. `title` is for screen readers."""
    left, top, row_height, width = 130, 4, 18, 720
    cell_width = (width - left - 4) / max(1, len(columns))
    scale = math.log(max(full, 2.0))
    parts = []
    for i, (row, cells) in enumerate(zip(rows, values, strict=True)):
        y = top + i * row_height
        parts.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(row)}</text>')
        for j, (column, value) in enumerate(zip(columns, cells, strict=True)):
            strength = min(1.0, math.log(max(value, MIN_SCORE)) / scale)
            label = escape(f"{row}, {column}: {value:.1f}")
            parts.append(
                f'<rect class="cell" x="{left + j * cell_width:.1f}" y="{y}" width="{max(0.5, cell_width - 0.6):.1f}" '
                f'height="{row_height - 1.5}" fill-opacity="{strength:.2f}"><title>{label}</title></rect>'
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
    """A text made safe for SVG: one line, without markup."""
    return escape_html(printable(text))
