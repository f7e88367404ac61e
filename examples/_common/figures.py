"""Results of benchmarks: a figure, its bound, and the counts behind it, written as a table and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_fingerprint.evaluation.report import versions


@dataclass(frozen=True)
class Figure:
    """One line of a table.

    Attributes:
        name (`str`): the part of the benchmark that measures it.
        what (`str`): the description of the figure.
        measured (`str`): the figure, formatted.
        bound (`str`): the required value, formatted.
        holds (`bool`): whether the figure keeps the bound.
        counts (mapping): the counts that the figure is computed from.
    """

    name: str
    what: str
    measured: str
    bound: str
    holds: bool
    counts: Mapping[str, Any]


def table(figures: Sequence[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    lines = ["| figure | measured | bound |", "| --- | --- | --- |"]
    lines += [f"| {each.what} | {each.measured}{'' if each.holds else ' (!)'} | {each.bound} |" for each in figures]
    return "\n".join(lines)


def write(figures: Sequence[Figure], out: Path, name: str) -> None:
    """Writes a table and a JSON file into a folder. Figures of an earlier run that are not measured now stay."""
    file = out / f"{name}.json"
    earlier = json.loads(file.read_text())["figures"] if file.exists() else []
    now = {each.name for each in figures}
    kept = [Figure(**values) for values in earlier if values["name"] not in now]
    together = sorted([*kept, *figures], key=lambda each: each.name)
    content = {"versions": versions(), "figures": [asdict(each) for each in together]}
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    (out / f"{name}.md").write_text(table(together) + "\n")
