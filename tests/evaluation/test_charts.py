from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.evaluation.charts import Chart, count_axis, heatmap, score_axis, share_axis
from hf_fingerprint.printable import printable


SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def parsed(svg: str) -> ElementTree.Element:
    """What a browser makes of a picture."""
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@given(numbers, numbers, st.floats(0.001, 1e4))
def test_higher_scores_are_never_further_left(one, other, highest):
    axis = score_axis("score", highest)

    assert (axis.place(one) - axis.place(other)) * (one - other) >= 0
    assert axis.place(0) == axis.place(1) == 0
    assert axis.place(highest) <= 1
    assert all(0 <= axis.place(value) <= 1 for value, _ in axis.ticks)


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_have_a_margin_and_a_few_ticks(one, other):
    low, high = sorted([one, other])
    axis = share_axis("share", low, high)

    assert -1e-6 <= axis.place(low) <= axis.place(high) <= 1 + 1e-6
    assert 2 <= len(axis.ticks) <= 7
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
    assert axis.place(axis.ticks[0][0]) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.integers(2, 100), min_size=1, max_size=6, unique=True))
def test_coalitions_sizes_lie_inside_in_their_order(sizes):
    axis = count_axis("copies", sizes)
    places = [axis.place(size) for size in sorted(sizes)]

    assert places == sorted(set(places))
    assert 0 < places[0] <= places[-1] < 1


@given(numbers, numbers)
def test_whatever_is_drawn_is_inside_the_picture(x, y):
    chart = Chart("a chart", score_axis("x", 100), share_axis("y"))
    left, top = chart.at(x, y)

    assert chart.LEFT <= left <= chart.width - chart.RIGHT
    assert chart.TOP <= top <= chart.height - chart.BOTTOM


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"])))
def test_texts_from_outside_are_texts_in_the_picture(text):
    chart = Chart(text, score_axis(text, 100), share_axis("y"))
    chart.dot(10, 0.5, "accused", text)
    chart.vertical_line(7, "bound", text, text)
    chart.bar(1, 2, 0.5, "bar", text)
    chart.shade(1, 7, "free", text)
    drawn = parsed(chart.svg())

    assert drawn.get("aria-label") == printable(text)
    assert [title.text or "" for title in drawn.iter(f"{SVG}title")] == [printable(text)] * 4
    assert {element.tag.removeprefix(SVG) for element in drawn.iter()} <= {
        "svg", "g", "line", "text", "circle", "title", "rect"
    }  # fmt: skip


def test_a_line_goes_through_its_points_and_a_stepped_one_across_first():
    chart = Chart("a chart", score_axis("x", 100), share_axis("y"))
    points = [(1.0, 0.0), (10.0, 1.0)]
    chart.line(points, "path")
    chart.line(points, "front", stepped=True)
    (x1, y1), (x2, y2) = (chart.at(*point) for point in points)
    straight, stepped = (path.get("d") for path in parsed(chart.svg()).iter(f"{SVG}path"))

    assert straight == f"M{x1:g},{y1:g}L{x2:g},{y2:g}"
    assert stepped == f"M{x1:g},{y1:g}H{x2:g}V{y2:g}"


def test_cells_are_darker_for_more_evidence():
    drawn = parsed(heatmap("a map", ["one", "<two>"], ["a", "b", "c"], [[1, 10, 100], [0, -5, 1e4]], 100))
    shades = [float(cell.get("fill-opacity")) for cell in drawn.iter(f"{SVG}rect")]
    titles = [title.text for title in drawn.iter(f"{SVG}title")]

    assert shades == [0, 0.5, 1, 0, 0, 1]
    assert titles[0] == "one, a: 1.0"
    assert titles[3] == "<two>, a: 0.0"
