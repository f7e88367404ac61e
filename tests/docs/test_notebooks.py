"""The notebooks of docs/ run from top to bottom, and what is committed has outputs without secrets and places."""

import re

import nbformat
import pytest

from tests.helpers.notebooks import NOTEBOOKS, execute, outputs_of


@pytest.mark.docs
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_names_the_leaker(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    shown = "\n".join(outputs_of(execute(path, tmp_path)))

    assert "ACCUSED" in shown
    assert "text/html" in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_whole_and_name_no_place_or_key(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = "\n".join(outputs_of(notebook))

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "ACCUSED" in shown
    assert not re.search(r"(?<![\w.<])/(?:home|root|tmp|work|Users|usr|opt)\b", shown)
    assert not re.search(r"AGE-SECRET-KEY|Traceback|hf_[A-Za-z0-9]{20}", shown)
    assert len(path.read_bytes()) < 200_000
