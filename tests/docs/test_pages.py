"""README.md and the pages of docs/: every code block runs, and every command, option, file and module exists."""

import re

import pytest
import typer

from hf_fingerprint.attacks import SUITE
from hf_fingerprint.cli.main import app
from tests.helpers.docs_pages import ROOT, RUN, SHOWN, blocks_of, pages, setup_of
from tests.helpers.docs_setup import SETUPS, reader


PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
WITH_CODE = [name for name, page in PAGES.items() if any(block.language in RUN for block in blocks_of(page))]
README = PAGES["README.md"].read_text()
TEXTS = {name: page.read_text() for name, page in PAGES.items()} | {"CHANGELOG": (ROOT / "CHANGELOG.md").read_text()}
TEXT = "\n".join(TEXTS.values())
OF_OTHERS = {"--help", "--no-cover-images", "--picture", "--results"}  # of every command, and of scripts


@pytest.mark.docs
@pytest.mark.parametrize("name", WITH_CODE)
def test_every_block_of_the_page_runs(name, tmp_path, monkeypatch):
    (folder := tmp_path / "reader").mkdir()
    with reader(folder, setup_of(PAGES[name]), monkeypatch) as here:
        here.follow(PAGES[name])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_code_that_no_test_runs(name):
    languages = {block.language for block in blocks_of(PAGES[name])}
    directives = {language for language in languages if language.startswith("{")} - {"{code-block}"}

    assert languages - RUN - SHOWN <= directives
    assert not re.findall(r"^ {4,}(?:hf-fingerprint|>>>|from \w+ import) .*", TEXTS[name], re.M)  # not in a fence
    assert set(setup_of(PAGES[name])) <= SETUPS.keys()


def test_the_readme_is_a_front_page():
    assert len(README.encode()) <= 12_000
    before_first_trace = README.partition("hf-fingerprint trace")[0]
    commands = [
        line
        for text in re.findall(r"```bash\n(.*?)(?:```|\Z)", before_first_trace, re.S)
        for line in text.splitlines()
    ]
    assert len(commands) + 3 <= 6, commands  # with `git clone`, `cd` and the trace


def options_of(command, name: str = "") -> dict[str, set[str]]:
    """The options of a command and of all commands below it, by name."""
    found = {name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}}
    for part, inner in getattr(command, "commands", {}).items():
        found |= options_of(inner, f"{name} {part}".strip())
    return found


OPTIONS = options_of(typer.main.get_command(app))


def test_each_command_named_in_a_sentence_is_one_that_there_is():
    named = re.findall(r"`(?:hf-fingerprint|hf fingerprint) ([^`]+)`", TEXT)
    for line in named:
        words, name = line.split(), ""
        while words and f"{name} {words[0]}".strip() in OPTIONS:
            name = f"{name} {words.pop(0)}".strip()
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given - OF_OTHERS <= OPTIONS[name], line
        assert name or given or words == ["..."], line
    assert len(named) > 10


def test_each_option_named_in_the_text_is_one_that_there_is():
    text = re.sub(r"```.*?```|`[^`]*examples\.[^`]*`", "", TEXT, flags=re.S)  # blocks run; scripts have their own
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))

    assert named - OF_OTHERS <= set[str]().union(*OPTIONS.values())


def test_each_path_and_module_is_one_that_there_is():
    paths = set(re.findall(r"`((?:hf_fingerprint|examples|tests|docs)/[\w/.]+)`", TEXT))
    links = {(name, path) for name in PAGES for path in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", TEXTS[name])}
    modules = set(re.findall(r"(?:python -m |`)(examples[\w.]+\w)", TEXT))

    assert not [path for path in paths if not (ROOT / path).exists()]
    assert not [(name, path) for name, path in links if not (PAGES[name].parent / path).exists()]
    assert not [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists()]


def test_each_attack_in_a_table_is_one_of_the_suite():
    tables = re.findall(r"^\| attack \|.*\n\| --- .*\n((?:\| .*\n)+)", TEXT, re.M)
    named = {row.split()[1] for table in tables for row in table.splitlines()}

    assert named <= SUITE.keys(), named - SUITE.keys()
