import argparse
import json
import re
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from examples import results as pages
from examples._common import results
from examples._common.results import Figure, Results, Table, figure_table
from hf_fingerprint.attacks import SUITE


DATA = pages.load(pages.PAGES / "data")
TABLE = Table("one", "A title", ("what", "measured"), (("a | b", "1"),), ("A note.",))
RESULTS = Results("python -m x", "0123abc", "2026-11-29", "2 cores", "run", {}, (TABLE,))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_committed_pages_are_what_the_command_makes_of_the_json():
    for page in pages.PAGES.glob("*.md"):
        assert pages.fill(text_of(page), DATA) == text_of(page), f"{page.name}: run `python -m examples.results`"


def test_every_table_is_on_a_page():
    shown = [found for page in pages.PAGES.glob("*.md") for found in pages.BLOCK.findall(text_of(page))]
    tables = {(name, table) for _, name, chosen, _ in shown for table in chosen.split()}
    whole = {name for _, name, chosen, _ in shown if not chosen.strip()}

    made = {(name, table.name) for name, each in DATA.items() if name not in whole for table in each.tables}
    assert not made - tables
    assert sum(text_of(page).count("<!-- results:") for page in pages.PAGES.glob("*.md")) == len(shown)


@pytest.mark.parametrize("name", DATA)
def test_committed_results_name_a_clean_commit_and_no_place_of_a_machine(name):
    written = text_of(pages.PAGES / "data" / f"{name}.json")

    assert re.fullmatch("[0-9a-f]{12}", DATA[name].commit)
    assert not re.search(r"/(home|work|tmp|root|Users)/", written)


def test_each_attack_in_a_table_is_one_of_the_suite():
    tables = [table for each in DATA.values() for table in each.tables if table.columns[0] == "attack"]
    named = {row[0].split()[0] for table in tables for row in table.rows}

    assert named <= SUITE.keys(), named - SUITE.keys()
    assert len(named) > 30


def test_a_table_is_written_in_markdown_with_its_title_and_notes():
    assert TABLE.markdown() == "**A title**\n\n| what | measured |\n| --- | --- |\n| a \\| b | 1 |\n\nA note."
    assert "| f | 1 (!) | 0 |" in figure_table([Figure("f", "1", "0", holds=False)]).markdown()


def test_a_row_with_a_cell_too_few_is_refused():
    with pytest.raises(ValueError, match="needs 2 cells"):
        replace(TABLE, rows=(("a",),))


@pytest.mark.parametrize(
    "change",
    [{"source": "invented"}, {"commit": "main"}, {"date": "yesterday"}, {"tables": []}, {"hostname": "x"}],
    ids=str,
)
def test_results_of_another_form_are_refused(tmp_path, change):
    file = tmp_path / "x.json"
    RESULTS.write(file)
    assert Results.read(file) == RESULTS

    file.write_text(json.dumps(asdict(RESULTS) | change))
    with pytest.raises((TypeError, ValueError)):
        Results.read(file)


def test_a_block_gets_the_chosen_tables_and_the_line_that_says_where_they_come_from():
    page = "Text.\n\n<!-- results: x one -->\nold\n<!-- end of results -->\n\nMore.\n"
    filled = pages.fill(page, {"x": RESULTS})

    assert filled.startswith("Text.\n\n<!-- results: x one -->\n\n**A title**")
    assert "*A run of `python -m x` (commit 0123abc, 2026-11-29, 2 cores).*\n\n<!-- end of results -->" in filled
    assert pages.fill(filled, {"x": RESULTS}) == filled
    assert "*Transcribed from an earlier README" in pages.fill(page, {"x": replace(RESULTS, source="transcribed")})
    with pytest.raises(KeyError):
        pages.fill(page.replace("x one", "x two"), {"x": RESULTS})


def test_a_benchmark_writes_its_command_without_places_its_commit_and_a_machine_without_a_name(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "results" / "x.json"
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    results.add_results_option(parser)
    words = ["small", "--out", str(tmp_path), "--quick", "--results", str(file)]
    monkeypatch.setattr(sys, "argv", ["x", *words])
    results.report(parser.parse_args(words), [TABLE])

    written = Results.read(file)
    assert written.benchmark.split()[-2:] == ["small", "--quick"]
    assert written.tables == (TABLE,) and "numpy" in written.versions
    assert str(tmp_path) not in file.read_text() and socket.gethostname() not in written.machine
    assert re.match(r"\d+ cores, .+, \d+ GB of memory$", written.machine)
    assert capsys.readouterr().out == TABLE.markdown() + "\n"
