"""Commands, options, imports and files in the README and the CHANGELOG exist."""

import ast
import importlib
import re
from pathlib import Path

import typer

from hf_fingerprint.attacks import SUITE
from hf_fingerprint.cli.main import app


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEXT = README + (ROOT / "CHANGELOG.md").read_text()
OF_SCRIPTS = {"--help", "--no-cover-images", "--picture"}


def options_of(command, name: str = "") -> dict[str, set[str]]:
    """The options of a command and of all commands below it, by name."""
    found = {name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)}}
    for part, inner in getattr(command, "commands", {}).items():
        found |= options_of(inner, f"{name} {part}".strip())
    return found


OPTIONS = options_of(typer.main.get_command(app))


def test_each_command_line_is_one_that_there_is():
    lines = re.findall(r"^ +hf-fingerprint (.*)$", README, re.M)
    for line in lines:
        words, name = line.split("#")[0].split(), ""
        while words and f"{name} {words[0]}".strip() in OPTIONS:
            name = f"{name} {words.pop(0)}".strip()
        assert name, line
        assert {word for word in words if word.startswith("--")} <= OPTIONS[name], line
    assert len(lines) > 20


def test_each_option_named_in_the_text_is_one_that_there_is():
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))

    assert named - OF_SCRIPTS <= set[str]().union(*OPTIONS.values())


def test_each_name_imported_is_one_that_there_is():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    imports = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = importlib.import_module(node.module)
        assert {alias.name for alias in node.names} <= set(dir(module)), node.module
    assert len(imports) > 5


def test_each_path_and_module_is_one_that_there_is():
    paths = set(re.findall(r"`((?:hf_fingerprint|examples|tests|docs)/[\w/.]+)`|\]\(([\w/.-]+)\)", TEXT))
    modules = set(re.findall(r"(?:python -m |`)(examples[\w.]+\w)", TEXT))

    assert not [path for pair in paths for path in pair if path and not (ROOT / path).exists()]
    assert not [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists()]


def test_each_attack_in_a_table_is_one_of_the_suite():
    tables = re.findall(r"^\| attack \|.*\n\| --- .*\n((?:\| .*\n)+)", README, re.M)
    named = {row.split()[1] for table in tables for row in table.splitlines()}

    assert named <= SUITE.keys(), named - SUITE.keys()
    assert len(named) > 30
