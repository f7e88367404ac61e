"""An evaluation written down: JSON for programs, a table and one self-contained page for people.

Reports are made to be published. They hold scores, bounds and evidence by layer of the accused alone, and counts of
everybody else, unless the evaluation was asked for all scores.
"""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_fingerprint
from hf_fingerprint.checkpoints import sync
from hf_fingerprint.evaluation.coalition_outcomes import outcomes
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import Cost, cheapest, frontier, score_in_words
from hf_fingerprint.evaluation.page import Tables, render
from hf_fingerprint.evaluation.trials import COLLUSION, Point
from hf_fingerprint.printable import printable
from hf_fingerprint.vault.storage import writing


if TYPE_CHECKING:
    from rich.table import Table

FILES = ("results.json", "table.md", "report.html")
_LIBRARIES = ("torch", "timm", "transformers", "numpy")
HEADINGS = ("suspect", "strength", "accuracy", "agreement", "score", "bound at", "caught", "innocents accused")
RUN_HEADINGS = (
    "coalition",
    "copies mixed",
    "runs",
    "all who gave a twentieth caught",
    "somebody caught",
    "caught of all",
)
COST_HEADINGS = ("attack", "accuracy lost to get under the bound", "lowest score")


@dataclass(frozen=True)
class Written:
    """The files of a report.

    Attributes:
        results (`Path`): all of it, as JSON.
        table (`Path`): the figures, as Markdown.
        page (`Path`): the page.
    """

    results: Path
    table: Path
    page: Path


def write_report(evaluation: Evaluation, folder: Path) -> Written:
    """Writes `results.json`, `table.md` and `report.html` into a folder, over those of an earlier run."""
    written = Written(*(folder / name for name in FILES))
    summary = summarise(evaluation)
    content = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    texts = (content, markdown(evaluation), render(evaluation, costs(evaluation), summary, contents(evaluation)))
    for path, text in zip((written.results, written.table, written.page), texts, strict=True):
        partial = path.with_name(f"tmp-{path.name}")
        try:
            with writing(f"{path} can't be written", folder):
                partial.write_text(text, encoding="utf-8")
                sync(partial)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return written


def costs(evaluation: Evaluation) -> list[Cost]:
    """What each attack on a single copy has to give up to get under the bound: the cheapest first, then those that
    never get there."""
    found = [cheapest(name, points, evaluation.copy) for name, points in evaluation.sweeps.items()]
    return sorted(found, key=lambda cost: (cost.loss is None, cost.loss or 0.0))


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """All of it as values for JSON; what is withheld is `None`, or empty if it is a list."""
    points = evaluation.points
    read = [point for point in points if point.threshold is not None]  # whoever is the base says nothing of anybody
    mixed = [point for point in points if point.colluders > 1]
    return {
        "format": 2,
        "all_scores": evaluation.all_scores,
        "model": evaluation.model,
        "registration": evaluation.base,
        "data": {
            "name": evaluation.data,
            "test_images": evaluation.images,
            "thief_images": evaluation.stolen,
            "thief_has_base": evaluation.public_base,
            "chance": evaluation.chance,
        },
        "versions": versions(),
        "base_accuracy": evaluation.unmarked.accuracy,
        "copy_accuracy": evaluation.copy.accuracy,
        "copy_agreement_with_base": evaluation.unmarked.agreement,
        "innocents": {
            "scored": sum(point.innocents for point in read),
            "accused": sum(point.innocents_accused for point in read),
            "highest_score": _highest(point.highest_innocent for point in read),
            "accused_without_alignment": sum(point.unaligned[0] for point in read),
            "highest_score_without_alignment": _highest(point.unaligned[1] for point in read),
        },
        "colluders": {
            "mixed": sum(point.colluders for point in mixed),
            "caught": sum(sum(point.caught) for point in mixed),
            "gave_a_twentieth": sum(sum(point.main_givers) for point in mixed),
            "of_those_caught": sum(sum(map(min, point.main_givers, point.caught)) for point in mixed),
        },
        "coalitions": [asdict(outcome) for outcome in outcomes(mixed)],
        "costs": [
            {
                "attack": cost.attack,
                "accuracy_lost": cost.loss,
                "by": None if cost.escape is None else cost.escape.what,
                "least_score": cost.least_score,
            }
            for cost in costs(evaluation)
        ],
        "frontier": [
            {"by": point.what, "accuracy": point.accuracy, "score": point.score, "accused": point.accused}
            for point in frontier(p for p in points if p.colluders == 1)
        ],
        "skipped": evaluation.skipped,
        "carriers": evaluation.carriers,
        "points": [point.to_dict() for point in points],
    }


def _highest(scores: Iterable[float | None]) -> float | None:
    return max((score for score in scores if score is not None), default=None)


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that decide what a model answers."""
    found = {"hf_fingerprint": hf_fingerprint.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def row(point: Point) -> tuple[str, ...]:
    """A point in words, in the order of `HEADINGS`."""
    caught = f"{sum(point.caught)} of {point.colluders}" if point.colluders else "nobody to catch"
    return (
        point.attack,
        f"{point.strength:g}",
        f"{point.accuracy:.1%}",
        f"{point.agreement:.1%}",
        score_in_words(point.score) if point.colluders else "-",
        "-" if point.threshold is None else f"{point.threshold:.1f}",
        caught,
        f"{point.innocents_accused} of {point.innocents:,}",
    )


def contents(evaluation: Evaluation) -> Tables:
    """The tables, each with its headings: every suspect, what each attack has to give up, how coalitions ended."""
    formed = [
        (o.attack, *map(str, (o.size, o.runs, o.all_main_givers, o.somebody)), f"{o.caught} of {o.runs * o.size}")
        for o in outcomes(evaluation.of(COLLUSION))
    ]
    given_up = [(cost.attack, cost.words, cost.lowest) for cost in costs(evaluation)]
    found: Tables = [(HEADINGS, [row(point) for point in evaluation.points]), (COST_HEADINGS, given_up)]
    return [*found, (RUN_HEADINGS, formed)] if formed else found


def markdown(evaluation: Evaluation) -> str:
    """The tables as Markdown."""
    lines = [f"**{_plain(evaluation.model)}** on {evaluation.images:,} images of {_plain(evaluation.data)}"]
    for headings, rows in contents(evaluation):
        lines += ["", *(_line(cells) for cells in (headings, ["---"] * len(headings), *rows))]
    lines += [f"\n{_plain(name)} was left out: {_plain(why)}" for name, why in evaluation.skipped.items()]
    return "\n".join(lines) + "\n"


def tables(evaluation: Evaluation) -> "list[Table]":
    """The tables for a terminal."""
    from rich.table import Table
    from rich.text import Text

    found = []
    for headings, rows in contents(evaluation):
        found.append(Table(*headings))
        for cells in rows:
            found[-1].add_row(*map(Text, cells))
    return found


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """A text from outside, with nothing in it that Markdown or HTML would obey."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(printable(" ".join(text.split())), quote=False))
