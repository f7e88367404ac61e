"""Reads README.md and the pages of docs/, and runs their code blocks as a reader would.

A page's blocks run from top to bottom, in one fresh folder:

- `python` blocks run in one namespace. A block that begins with a comment that is a file name, such as `# train.py`,
  is written to that file instead; a later `bash` block runs it.
- `bash` blocks run line by line. `hf-fingerprint` and `hf fingerprint` run in this process, everything else in bash.
  What sets up a machine is checked and not run: extras of `pip install`, targets of `make`, modules of `examples`.
- A line must end with the exit code 0, or with the one that its comment begins with: `# exit code 1: nobody`.

Other blocks (`text`, `json`, `console`, `csv`) show output and do not run. A comment `<!-- tests: vault suspect -->`
at the top of a page names what must exist before its first block; see `docs_setup`.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_fingerprint.cli.main import main


ROOT = Path(__file__).parents[2]
RUN, SHOWN = {"python", "bash"}, {"text", "json", "console", "csv"}
# Lines of bash that are checked and not run, with the reason.
NOT_RUN = {
    "git clone": "no network",
    "cd hf_fingerprint": "the clone",
    "python -m venv": "slow",
    "source": "a venv",
    "accelerate launch": "run by test_several_processes.py and test_many.py",
}
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
SETUP = re.compile(r"<!-- tests: ([\w ]+) -->")
FILE_NAME = re.compile(r"# ([\w-]+\.\w+)$")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the line of the page where its text begins."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Returns README.md and all pages of docs/, without what Sphinx wrote."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = page.read_text()
    return [Block(m[1].strip(), m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text)]


def setup_of(page: Path) -> list[str]:
    """Returns the names of what a page needs before its first block."""
    return [name for names in SETUP.findall(page.read_text()) for name in names.split()]


@dataclass
class PageRun:
    """A page that is followed in a folder, as somebody who reads it would.

    Attributes:
        folder (`Path`): the current folder.
        addresses (`dict[str, str]`): loopback URLs for the addresses that a page names.
        namespace (`dict`): the names that `python` blocks share.
    """

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__page__"})

    def follow(self, page: Path) -> None:
        """Runs all blocks of a page.

        Raises:
            `AssertionError`: if a line of bash ends with another exit code than the page says.
        """
        for block in blocks_of(page):
            text = block.text
            for address, url in self.addresses.items():
                text = text.replace(address, url)
            if block.language == "bash":
                for line in bash_lines(text):
                    self.run_line(line, f"{page.name}:{block.line}")
            elif block.language == "python" and (name := FILE_NAME.match(text.split("\n")[0])):
                (self.folder / name[1]).write_text(text)
            elif block.language == "python":
                source = "\n" * (block.line - 1) + text
                exec(compile(source, str(page), "exec"), self.namespace)

    def run_line(self, line: str, where: str) -> None:
        """Runs one line of bash, or checks one that sets up a machine."""
        command, _, comment = line.partition("  #")
        expected = int(found[1]) if (found := re.match(r"\s*exit code (\d)", comment)) else 0
        if check := next((check for start, check in CHECKS.items() if command.startswith(start)), None):
            check(command)
        elif not command.startswith(tuple(NOT_RUN)):
            code, output = self._run(command)
            assert code == expected, f"{where}: `{command}` ended with {code}:\n{output}"

    def _run(self, command: str) -> tuple[int, str]:
        if setting := re.fullmatch(r"export (\w+)=(.*)", command):
            os.environ[setting[1]] = self._bash(f"printf %s {setting[2]}").stdout
            return 0, ""
        ours = re.match(r"(hf-fingerprint|hf fingerprint|python -m hf_fingerprint) ", command)
        if ours is None or set(shlex.shlex(command, punctuation_chars=True)) & {"|", ">", "<", "&&", "&"}:
            done = self._bash(command)
            return done.returncode, done.stdout + done.stderr
        words = self._bash(f"printf '%s\\0' {command[ours.end() :]}").stdout.split("\0")[:-1]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            return main(words), shown.getvalue()

    def _bash(self, command: str) -> "subprocess.CompletedProcess[str]":
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        given = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = ["bash", "-c", command]
        return subprocess.run(words, cwd=self.folder, env=given, capture_output=True, text=True, timeout=200)


def bash_lines(text: str) -> Iterator[str]:
    """Yields the commands of a block, continued lines joined, without empty lines and comments."""
    for line in text.replace("\\\n", " ").split("\n"):
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def check_extras(command: str) -> None:
    """Checks the extras of a `pip install` of this package."""
    names = re.search(r"(?:hf-fingerprint|\.)\[([\w,]+)\]", command)
    missing = set(names[1].split(",") if names else []) - PROJECT["optional-dependencies"].keys()
    assert not missing, f"`{command}`: pyproject.toml has no extras {missing}"


def check_target(command: str) -> None:
    """Checks that the Makefile has the target."""
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"the Makefile has no target {target}"


def check_module(command: str) -> None:
    """Checks that a module of `examples` exists; tests/examples runs it."""
    name = command.split()[2]
    assert importlib.util.find_spec(name), f"there is no module {name}"


CHECKS: dict[str, Callable[[str], None]] = {
    "pip install ": check_extras,
    "python -m pip install ": check_extras,
    "make ": check_target,
    "python -m examples.": check_module,
}
