"""README.md and the pages of docs/: every code block runs, and every command, option, file and module exists."""

import re

import pytest
import typer

from hf_fingerprint.attacks import SUITE
from hf_fingerprint.cli.main import app
from tests.helpers.docs_pages import RUN, SHOWN, Reader, blocks_of, pages, setup_of
from tests.helpers.docs_pages import ROOT
from tests.helpers.docs_setup import reader


PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
WITH_CODE = [name for name, page in PAGES.items() if any(block.language in RUN for block in blocks_of(page))]
TEXT = "\n".join(page.read_text() for page in [*PAGES.values(), ROOT / "CHANGELOG.md"])
OF_OTHERS = {"--help", "--picture", "--out", "--cpu", "--num_processes"}


@pytest.mark.integration
@pytest.mark.parametrize("name", WITH_CODE)
def test_every_block_of_the_page_runs(name, tmp_path, monkeypatch):
    (folder := tmp_path / "reader").mkdir()
    with reader(folder, setup_of(PAGES[name]), monkeypatch) as here:
        here.follow(PAGES[name])
