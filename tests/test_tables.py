"""Every result prints the same content as text and as HTML; text from outside is escaped in both."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hf_fingerprint.blackbox import AccusationCheck, KeyImageMatch, ProofCheck, QueryScore
from hf_fingerprint.checkpoints import SkippedFile
from hf_fingerprint.codes import design_code
from hf_fingerprint.hub import PublishedCopy, WatchResult
from hf_fingerprint.issuing import IssuedCopy
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tables import WIDTH, PrintableResult, Table, render_html, render_text
from tests.cli.test_cli_output import query_result
from tests.tracing.test_trace_table import result as trace_result


HOSTILE = "<script>alert(1)</script>\x1b[31mred\n\u202e&amp;"


def results(name: str) -> list[PrintableResult]:
    """One of each class, with a name from outside."""
    check = AccusationCheck(name, "https://x", "a" * 64, 17, 18, 8, 1e-6, -12.3, True, True, True)
    trace = trace_result([name], ["carol"])
    ids = {"copy_id": "0" * 16, "base_id": "0" * 12, "new": False}
    left = {"left_out": (SkippedFile(name, "not needed"),)}
    return [
        trace,
        query_result([QueryScore(name, "a" * 16, 17, 18, -12.34, True, "0123456789ab", "pushed")]),
        ProofCheck((check,)),
        KeyImageMatch("x.png", 0, (name,), 304, 3, -80.0, Outcome.ACCUSED),
        WatchResult("org/x", "c0ffee", None, (name,), -12.0, outcome="accused", accusations=trace.accused),
        IssuedCopy(name, Path("out"), content_hash="h", commitment="c", coalition_certified=3, **left, **ids),
        PublishedCopy(name, "org/x", "c0ffee", **left, **ids),
    ]


def squeezed(text: str) -> str:
    return re.sub(r"[\s─]", "", text)


@pytest.mark.parametrize("result", results("alice"), ids=lambda result: type(result).__name__)
def test_a_result_says_who_it_is_about_in_every_form(result):
    assert "alice" in str(result)
    assert "alice" in result._repr_html_()
    assert "alice" in json.dumps(result.to_dict(), allow_nan=False)
    assert repr(result).startswith(f"{type(result).__name__}(") and "alice" in repr(result)
    assert len(repr(result)) < 200


@pytest.mark.parametrize("result", results(HOSTILE), ids=lambda result: type(result).__name__)
def test_text_from_outside_is_escaped_in_every_form(result):
    assert set("\x1b\u202e").isdisjoint(str(result)) and str(result).replace("\n", "").isprintable()
    assert repr(result).isprintable()
    shown = result._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "&amp;amp;" in shown
    assert set(re.findall(r"</?(\w+)", shown)) <= {"p", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("result", results("x" * 150), ids=lambda result: type(result).__name__)
def test_text_and_html_have_the_same_content(result):
    for block in result.blocks():
        cells = [block] if isinstance(block, str) else [*block.columns, *(cell for row in block.rows for cell in row)]
        for cell in cells:
            assert html.escape(cell) in result._repr_html_()
        if isinstance(block, str):
            assert squeezed(block) in squeezed(str(result))


def test_a_design_prints_its_codes_and_strategies():
    found = design_code(10, 2, drift=1.0, strategies=["average"])

    assert "nuida" in str(found) and "average" in str(found)
    assert found.to_dict()["recipients"] == 10
    assert repr(found).startswith("CodeDesign(recipients=10, coalition=2, alpha=1e-06, best=(")
    none = replace(found, options=())
    assert str(none).startswith("no code catches all of 2 colluders") and "best=None" in repr(none)


@pytest.mark.parametrize("columns", [2, 8])
def test_a_table_fits_its_width_and_loses_nothing(columns):
    cells = ("a rather long name " * 3, *["60.3"] * (columns - 1))
    table = Table(tuple(f"heading of column {i}" for i in range(columns)), (cells, cells))
    shown = render_text([table])

    assert max(map(len, shown.splitlines())) <= WIDTH
    assert squeezed(shown).count("60.3") == 2 * (columns - 1)
    assert "…" not in shown


def test_lines_are_wrapped_between_words_alone():
    path = "/folder" * 20

    assert render_text([f"a copy at {path} and on"]).splitlines() == ["a copy at", path, "and on"]
    assert render_html(["a < b"]) == "<p>a &lt; b</p>"
