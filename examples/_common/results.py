"""Results of benchmarks: tables, printed as Markdown and written as JSON with the commit, the date and the machine.

Every benchmark ends in [`report`]. `python -m examples.results` fills the pages in `docs/results` from the JSON.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from hf_fingerprint.evaluation.report import versions


RUN, TRANSCRIBED = "run", "transcribed"
ROOT = Path(__file__).parents[2]
CODE = ("hf_fingerprint", "examples", "tests")
FIGURE_COLUMNS = ("figure", "measured", "bound")


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        name (`str`): its name in the file, by which a page asks for it.
        title (`str`): the line above it; may be empty.
        columns (`tuple[str, ...]`): the headings.
        rows (`tuple[tuple[str, ...], ...]`): the cells, formatted.
        notes (`tuple[str, ...]`): paragraphs below it, with figures that belong to it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"Table {self.name}: each row needs {len(self.columns)} cells.")

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        cells = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n\n".join([*([f"**{self.title}**"] if self.title else []), "\n".join(lines), *self.notes])


@dataclass(frozen=True)
class Figure:
    """One line of a table: a figure and its bound.

    Attributes:
        what (`str`): the description of the figure.
        measured (`str`): the figure, formatted.
        bound (`str`): the required value, formatted.
        holds (`bool`): whether the figure keeps the bound.
        counts (mapping): the counts that the figure is computed from.
    """

    what: str
    measured: str
    bound: str
    holds: bool = True
    counts: Mapping[str, Any] = field(default_factory=dict)


def figure_table(figures: Iterable[Figure], name: str = "figures", title: str = "") -> Table:
    """Returns the figures as a table. `(!)` marks those that do not keep their bound."""
    rows = ((each.what, each.measured + ("" if each.holds else " (!)"), each.bound) for each in figures)
    return Table(name, title, FIGURE_COLUMNS, tuple(rows))


@dataclass(frozen=True)
class Results:
    """The tables of one run of a benchmark.

    Attributes:
        benchmark (`str`): the command.
        commit (`str`): of the code that ran; `-dirty` is appended if files were changed.
        date (`str`): as `YYYY-MM-DD`.
        machine (`str`): cores, processor and memory.
        source (`str`): `"run"`, or `"transcribed"` from an earlier README: then commit and date are those at which
            the figures entered it.
        versions (mapping): the versions of the libraries, where they are known.
        tables (`tuple[Table, ...]`): the tables.
    """

    benchmark: str
    commit: str
    date: str
    machine: str
    source: str
    versions: Mapping[str, str]
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        if self.source not in (RUN, TRANSCRIBED):
            raise ValueError(f"source must be {RUN} or {TRANSCRIBED}, got {self.source}.")
        if not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", self.commit):
            raise ValueError(f"commit must be a hash, got {self.commit}.")
        date.fromisoformat(self.date)
        if len({table.name for table in self.tables}) < len(self.tables) or not self.tables:
            raise ValueError("There must be a table, and no two of one name.")

    def write(self, file: Path) -> None:
        """Writes the results as JSON, next to the file first."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}")
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        partial.replace(file)

    @classmethod
    def read(cls, file: Path) -> "Results":
        """Returns the results in a JSON file. Raises `TypeError` or `ValueError` if it has another form."""
        content = json.loads(file.read_text())
        tables = tuple(
            Table(**{name: _tuples(value) for name, value in table.items()}) for table in content.pop("tables")
        )
        return cls(**content, tables=tables)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--results FILE` to a benchmark's options."""
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="also write the tables as JSON, with commit, date and machine"
    )


def report(arguments: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Prints the tables, and writes them to the file of `--results`, if there is one."""
    print("\n\n".join(table.markdown() for table in tables))
    write_results(arguments, tables)


def write_results(arguments: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Writes the tables to the file of `--results`, if there is one."""
    if arguments.results is not None:
        today = datetime.now(UTC).date().isoformat()
        made = Results(command(arguments), commit(), today, machine(), RUN, versions(), tuple(tables))
        made.write(arguments.results)


def command(arguments: argparse.Namespace) -> str:
    """Returns the command line of this process, without its files and folders."""
    places = {str(value) for value in vars(arguments).values() if isinstance(value, Path)}
    words = sys.argv[1:]
    kept = [
        word
        for word, following in zip(words, [*words[1:], ""], strict=False)
        if word not in places and not (word.startswith("--") and following in places)
    ]
    spec = sys.modules["__main__"].__spec__
    return " ".join(["python -m", spec.name if spec else Path(sys.argv[0]).stem, *kept])


def commit() -> str:
    """Returns the commit of the code, with `-dirty` if code was changed since."""
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *CODE], cwd=ROOT, check=False).returncode
    return found.stdout.strip() + ("-dirty" if changed else "")


def machine() -> str:
    """Returns cores, processor and memory of this machine. Its name is left out."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text() if info.exists() else "", re.M)
    processor = named[1].strip() if named else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else 0
    return f"{os.cpu_count()} cores, {processor}" + (f", {memory:.0f} GB of memory" if memory else "")
