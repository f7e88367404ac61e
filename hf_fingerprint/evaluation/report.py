"""The report of an evaluation: JSON, Markdown tables and one self-contained HTML page.

Reports can be published. They hold scores, bounds and evidence by layer of the accused only, and counts of everybody
else, unless the evaluation has all scores.
"""

import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hf_fingerprint
from hf_fingerprint.checkpoints import sync
from hf_fingerprint.evaluation.coalition_outcomes import outcomes
from hf_fingerprint.evaluation.controls import control_of, control_table, is_control, with_controls
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import AttackCost, cheapest_escape, format_score, frontier
from hf_fingerprint.evaluation.page import render
from hf_fingerprint.evaluation.trials import COLLUSION, Trial
from hf_fingerprint.printable import printable
from hf_fingerprint.tables import Block, Table
from hf_fingerprint.vault.storage import translate_disk_errors


FILES = ("results.json", "table.md", "report.html")
_LIBRARIES = ("torch", "timm", "transformers", "numpy")
HEADINGS = ("suspect", "strength", "accuracy", "agreement", "score", "bound at", "caught", "innocents accused")
RUN_HEADINGS = ("coalition", "copies mixed", "runs", "all main contributors caught", "anybody caught", "caught of all")
COST_HEADINGS = ("attack", "accuracy lost to escape", "lowest score")


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Attributes:
        results (`Path`): all results, as JSON.
        table (`Path`): the tables, as Markdown.
        page (`Path`): the HTML page.
    """

    results: Path
    table: Path
    page: Path


def write_report(evaluation: Evaluation, folder: Path) -> ReportFiles:
    """Writes `results.json`, `table.md` and `report.html` into a folder, replacing those of an earlier run."""
    written = ReportFiles(*(folder / name for name in FILES))
    summary = summarize(evaluation)
    page = render(evaluation, costs(evaluation), summary, report_tables(evaluation))
    texts = (json.dumps(summary, indent=1, allow_nan=False) + "\n", render_markdown(evaluation), page)
    for path, text in zip((written.results, written.table, written.page), texts, strict=True):
        partial = path.with_name(f"tmp-{path.name}")
        try:
            with translate_disk_errors(f"{path} can't be written", folder):
                partial.write_text(text, encoding="utf-8")
                sync(partial)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return written


def costs(evaluation: Evaluation) -> list[AttackCost]:
    """The cost of each attack on a single copy: cheapest first, those without an escape last, and before them those
    whose escape is no better than the control. Controls are no attacks on a copy, and are left out."""
    sweeps, copy = evaluation.sweeps, evaluation.copy
    found = [
        cheapest_escape(name, trials, copy, control_of(name, evaluation.trials))
        for name, trials in sweeps.items()
        if not is_control(name)
    ]
    return sorted(found, key=lambda cost: (cost.loss is None, cost.no_better_than_control, cost.loss or 0.0))


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """All results as values for JSON. Withheld values are `None` or empty lists."""
    trials = evaluation.trials
    read = [trial for trial in trials if trial.threshold is not None]  # all but the base
    mixed = [trial for trial in trials if trial.colluders > 1]
    return {
        "format": 3,
        "all_scores": evaluation.all_scores,
        "model": evaluation.model,
        "registration": evaluation.base,
        "data": {
            "name": evaluation.data,
            "test_images": evaluation.images,
            "attacker_images": evaluation.attacker_image_count,
            "attacker_has_base": evaluation.public_base,
            "attacker_has_ancestor": evaluation.ancestor,
            "chance": evaluation.chance,
        },
        "versions": versions(),
        "base_accuracy": evaluation.unmarked.accuracy,
        "copy_accuracy": evaluation.copy.accuracy,
        "copy_agreement_with_base": evaluation.unmarked.agreement,
        "innocents": {
            "scored": sum(trial.innocents for trial in read),
            "accused": sum(trial.innocents_accused for trial in read),
            "highest_score": _highest(trial.highest_innocent for trial in read),
            "accused_without_alignment": sum(trial.unaligned[0] for trial in read),
            "highest_score_without_alignment": _highest(trial.unaligned[1] for trial in read),
        },
        "colluders": {
            "mixed": sum(trial.colluders for trial in mixed),
            "caught": sum(sum(trial.caught) for trial in mixed),
            "main_contributors": sum(sum(trial.main_contributors) for trial in mixed),
            "main_contributors_caught": sum(sum(map(min, trial.main_contributors, trial.caught)) for trial in mixed),
        },
        "coalitions": [asdict(outcome) for outcome in outcomes(mixed)],
        "costs": [
            {
                "attack": cost.attack,
                "accuracy_lost": cost.loss,
                "by": None if cost.escape is None else cost.escape.what,
                "least_score": cost.least_score,
                "control_accuracy": cost.control_accuracy,
                "no_better_than_control": cost.no_better_than_control,
            }
            for cost in costs(evaluation)
        ],
        "controls": [
            {
                "by": each.trial.what,
                "copies": each.trial.colluders,
                "accuracy": each.trial.accuracy,
                "control": each.control.what,
                "control_accuracy": each.control.accuracy,
                "mark": each.outcome,
            }
            for each in with_controls(trials)
        ],
        "frontier": [
            {"by": trial.what, "accuracy": trial.accuracy, "score": trial.score, "accused": trial.accused}
            for trial in frontier(p for p in trials if p.colluders == 1)
        ],
        "skipped": evaluation.skipped,
        "carriers": evaluation.carriers,
        "trials": [trial.to_dict() for trial in trials],
    }


def _highest(scores: Iterable[float | None]) -> float | None:
    return max((score for score in scores if score is not None), default=None)


def versions() -> dict[str, str]:
    """The versions of this package, Python and the libraries that influence a model's outputs."""
    found = {"hf_fingerprint": hf_fingerprint.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def trial_row(trial: Trial) -> tuple[str, ...]:
    """A trial as table cells, in the order of `HEADINGS`."""
    caught = f"{sum(trial.caught)} of {trial.colluders}" if trial.colluders else "-"
    return (
        trial.attack,
        f"{trial.strength:g}",
        f"{trial.accuracy:.1%}",
        f"{trial.agreement:.1%}",
        format_score(trial.score) if trial.colluders else "-",
        "-" if trial.threshold is None else f"{trial.threshold:.1f}",
        caught,
        f"{trial.innocents_accused} of {trial.innocents:,}",
    )


def report_tables(evaluation: Evaluation) -> list[Table]:
    """The tables with their headings: all suspects, the cost of each attack, the outcomes of coalitions, and attacks
    with the ancestor next to their controls."""
    coalition_rows = [
        (o.label, *map(str, (o.size, o.runs, o.all_main_contributors, o.anybody)), f"{o.caught} of {o.runs * o.size}")
        for o in outcomes(evaluation.of(COLLUSION))
    ]
    cost_rows = [(cost.attack, cost.loss_text, cost.lowest_score_text) for cost in costs(evaluation)]
    found = [Table(HEADINGS, tuple(map(trial_row, evaluation.trials))), Table(COST_HEADINGS, tuple(cost_rows))]
    controls = control_table(evaluation.trials)
    found += [Table(RUN_HEADINGS, tuple(coalition_rows))] if coalition_rows else []
    return [*found, controls] if controls.rows else found


def render_markdown(evaluation: Evaluation) -> str:
    """The tables as Markdown."""
    model, data = _escape_markdown(evaluation.model), _escape_markdown(evaluation.data)
    lines = [f"**{model}** on {evaluation.images:,} images of {data}"]
    for table in report_tables(evaluation):
        rows = (table.columns, ["---"] * len(table.columns), *table.rows)
        lines += ["", *map(_markdown_row, rows)]
    skipped = (map(_escape_markdown, each) for each in evaluation.skipped.items())
    lines += [f"\n{name} was skipped: {why}" for name, why in skipped]
    return "\n".join(lines) + "\n"


def report_blocks(evaluation: Evaluation) -> Iterator[Block]:
    """The lines and tables that show the evaluation."""
    yield f"{evaluation.model} on {evaluation.images:,} images of {evaluation.data}"
    yield from report_tables(evaluation)
    for name, why in evaluation.skipped.items():
        yield f"{name} was skipped: {why}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escape_markdown, cells))} |"


def _escape_markdown(text: str) -> str:
    """An untrusted text made safe for Markdown: one line, without markup."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(printable(" ".join(text.split())), quote=False))
