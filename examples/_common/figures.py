"""What a benchmark found: a figure, what was promised of it, and the counts behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_fingerprint.evaluation.report import versions


@dataclass(frozen=True)
class Figure:
    """A line of a table.

    Attributes:
        name (`str`): the part of the benchmark that measures it.
        what (`str`): what was measured.
        measured (`str`): the figure for people.
        bound (`str`): what it should be.
        holds (`bool`): whether it is.
        counts (mapping): what the figure is made of.
    """

    name: str
    what: str
    measured: str
    bound: str
    holds: bool
    counts: Mapping[str, Any]


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| figure | measured | bound |", "| --- | --- | --- |"]
    lines += [f"| {each.what} | {each.measured}{'' if each.holds else ' (!)'} | {each.bound} |" for each in figures]
    return "\n".join(lines)


def write(figures: Sequence[Figure], out: Path, name: str) -> None:
    """Writes a table and JSON into a folder. Parts of an earlier run that are not measured now stay."""
    file = out / f"{name}.json"
    earlier = json.loads(file.read_text())["figures"] if file.exists() else []
    now = {each.name for each in figures}
    kept = [Figure(**told) for told in earlier if told["name"] not in now]
    together = sorted([*kept, *figures], key=lambda each: each.name)
    told = {"versions": versions(), "figures": [asdict(each) for each in together]}
    file.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    (out / f"{name}.md").write_text(table(together) + "\n")
