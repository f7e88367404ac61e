"""Prints the tables of attacks from the results of `attacks.py` and `schemes.py`.

    python -m examples.benchmarks.attacks_table bench_output/attacks lite0 vit --schemes bench_output/schemes/vit

Each cell is one suspect, or a number of runs; `--picture FILE` plots them. The tables are made to be published, so
they have the scores of the accused alone; `--all-scores` shows the others.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples.benchmarks.schemes_report import (
    DEEPMARKS,
    FAILED,
    PAPERS,
    READ,
    SOFT,
    TOOLBOX,
    Row,
    Rows,
    named_cell,
)
from hf_fingerprint.attacks import SUITE
from hf_fingerprint.attacks.suite_entry import ANCESTOR
from hf_fingerprint.evaluation import Trial
from hf_fingerprint.evaluation.coalition_outcomes import CoalitionOutcome, outcomes
from hf_fingerprint.evaluation.controls import NO_BETTER, ControlledTrial, with_controls
from hf_fingerprint.evaluation.frontier import cheapest_escape
from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
from hf_fingerprint.evaluation.planning import quick_steps
from hf_fingerprint.evaluation.trials import COLLUSION, COPY, SINGLE, ResultStore


READINGS = ("plain_", "blind_", "")  # of a trial's scores
UNEVEN, EVEN = ("weighted-average", "layers", "blocks"), "nine even strategies"
USEFUL = 0.02  # below the copy as issued: the accuracy at which a merge is worth something
NOT_COMPARABLE = (
    "finetune-other-data",
    "distill",
    "steal",
    "steal-synthetic",
)  # another task's accuracy, other weights


def load_trials(folder: Path, all_scores: bool = False) -> list[Trial]:
    """Returns the trials in a model's folder, the newest where one was measured twice.

    Without `all_scores` only the accused have scores.
    """
    newest = {(p.attack, p.what, p.colluders, p.shares, p.kind): p for p in ResultStore(folder).trials.values()}
    return [trial if all_scores else trial.redacted() for trial in newest.values()]


def cell(trials: Iterable[Trial], attack: str, steps_shown: list[int]) -> str:
    """Returns accuracy in % and score at three strengths."""
    by_step = {p.step: p for p in trials if p.attack == attack}
    found = [by_step.get(step) for step in steps_shown]
    if not any(found):
        return "-"
    return " / ".join("-" if p is None else f"{100 * p.accuracy:.0f}, {score_cell(p)}" for p in found)


def score_cell(trial: Trial) -> str:
    return f"{trial.score:.0f}" if trial.accused else "lost"


def issued_copy(trials: list[Trial]) -> Trial:
    """Returns the trial of the copy as issued."""
    return next(p for p in reversed(trials) if p.kind == COPY)


def single_copy_table(models: dict[str, list[Trial]], rows: list[Row]) -> Table:
    """Returns the table of all attacks on one copy."""
    copies = {name: issued_copy(trials) for name, trials in models.items()}
    heads = [f"{name} ({100 * p.accuracy:.0f}, {score_cell(p)})" for name, p in copies.items()]
    heads += ["deepmarks, paper's", "deepmarks, soft", "toolbox"] if rows else []
    lines = []
    for attack, found in SUITE.items():
        if found.group not in (COLLUSION, ANCESTOR):
            steps_shown = quick_steps(len(found.attacks))
            strengths = " / ".join(f"{found.attacks[step].strength:g}" for step in steps_shown)
            cells = [cell(trials, attack, steps_shown) for trials in models.values()]
            cells += other_scheme_cells(rows, attack, steps_shown) if rows else []
            if set(cells) != {"-"}:
                lines.append((f"{attack} {strengths}" if len(steps_shown) > 1 else attack, *cells))
    return Table("single", "", ("attack", *heads), tuple(lines))


def other_scheme_cells(rows: list[Row], attack: str, steps_shown: list[int]) -> list[str]:
    """Returns three cells: a `deepmarks` copy under its two decoders, and a copy marked by the toolbox's variant."""
    found = {(row.scheme, row.step): row for row in rows if row.attack == attack and row.kind == SINGLE}

    def each(scheme: str, format_row: Callable[[Row], str]) -> str:
        here = [found.get((scheme, step)) for step in steps_shown]
        texts = ["-" if row is None or row.outcome == FAILED else format_row(row) for row in here]
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    return [
        each(DEEPMARKS, lambda row: named_cell(row, PAPERS)),
        each(DEEPMARKS, lambda row: named_cell(row, SOFT)),
        each(TOOLBOX, lambda row: str(row.wrong) if row.outcome == READ else row.outcome),
    ]


def lost_mark_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of attacks that lose the mark.

    Each cell is the strength with the highest accuracy that loses it, and how many points that is below the copy's.
    """
    lines = []
    for attack in (name for name, entry in SUITE.items() if name not in NOT_COMPARABLE and entry.group != ANCESTOR):
        texts = [lost_mark_cell(attack, trials) for trials in models.values()]
        if any(cell.startswith("at ") for cell in texts):
            lines.append((attack, *texts))
    return Table("lost", "", ("attack", *models), tuple(lines))


def lost_mark_cell(attack: str, trials: list[Trial]) -> str:
    swept = [p for p in trials if p.kind == SINGLE and p.attack == attack]
    if not swept:
        return "-"
    cost = cheapest_escape(attack, swept, issued_copy(trials))
    return f"at {cost.escape.strength:g}: {cost.loss_text}" if cost.escape else "not lost"


def coalition_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of coalitions: runs with all main contributors caught, runs with anybody caught, share caught.

    Strategies that use all copies equally share a row.
    """
    mixed = [p for trials in models.values() for p in trials if p.kind == COLLUSION and group_of(p) != ANCESTOR]
    sizes = sorted({p.colluders for p in mixed})
    rows: dict[str, dict[int, list[CoalitionOutcome]]] = {}
    for attack in SUITE:
        for found in outcomes(p for p in mixed if p.attack == attack):
            strategy, then, follow_up = attack.partition("-then-")
            name = (strategy if strategy in UNEVEN else EVEN) + then.replace("-", " ") + follow_up
            rows.setdefault(name, {}).setdefault(found.size, []).append(found)
    lines = ((name, *(outcome_cell(found.get(size, [])) for size in sizes)) for name, found in rows.items())
    return Table("coalitions", "", ("coalition", *map(str, sizes)), tuple(lines))


def ancestor_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of attacks with the ancestor, by the number of copies, and of their controls.

    Each cell is the most accurate suspect that names nobody: its strength, how many points it is below the copy as
    issued, and *control* where the control is as good.
    """
    sizes = sorted({p.colluders for trials in models.values() for p in trials if group_of(p) == ANCESTOR})
    lines = []
    for attack, entry in SUITE.items():
        if entry.group != ANCESTOR:
            continue
        for size in sizes:
            cells = [ancestor_cell(attack, size, trials) for trials in models.values()]
            if set(cells) != {"-"}:
                lines.append((attack, str(size), *cells))
    return Table("ancestor", "", ("attack", "copies", *models), tuple(lines))


def ancestor_cell(attack: str, copies: int, trials: list[Trial]) -> str:
    swept = [p for p in trials if p.attack == attack and p.colluders == copies]
    if not swept:
        return "-"
    issued = issued_copy(trials).accuracy
    if SUITE[attack].control is None:
        return f"control: {100 * (issued - swept[0].accuracy):.1f} points"
    lost = [each for each in with_controls(trials) if each.trial in swept and not each.trial.accused]
    if not lost:
        lowest = min(swept, key=lambda p: p.accuracy)
        return f"not lost (to {100 * (issued - lowest.accuracy):.1f} points)"
    best: ControlledTrial = max(lost, key=lambda each: each.trial.accuracy)
    cell = f"at {best.trial.strength:g}: {100 * (issued - best.trial.accuracy):.1f} points"
    return f"{cell}, control" if best.outcome == NO_BETTER else cell


def contributors_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of copies merged or averaged with the ancestor: the share of colluders caught in the suspects
    within 2 points of the copy as issued and better than the control, and in the others."""
    rows: dict[tuple[str, int], list[list[Trial]]] = {}
    for trials in models.values():
        issued = issued_copy(trials).accuracy
        for each in with_controls(trials):
            if each.trial.kind == COLLUSION:
                useful = each.trial.accuracy >= issued - USEFUL and each.is_better
                both = rows.setdefault((each.trial.attack, each.trial.colluders), [[], []])
                both[0 if useful else 1].append(each.trial)
    lines = tuple((name, str(size), *map(caught_cell, both)) for (name, size), both in rows.items())
    return Table("contributors", "", ("attack", "copies", "caught where useful", "caught elsewhere"), lines)


def readings_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of what each reading adds: suspects whose lowest colluder scores differently without them.

    A cell is the lowest colluder's score by the plain reading, without the ancestor and with all readings.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for column, trials in enumerate(models.values()):
        for trial in trials:
            if trial.scores and trial.plain_caught and len({lowest(trial, kind) for kind in READINGS}) > 1:
                steps = SUITE[trial.attack].attacks if trial.attack in SUITE else ()
                strength = f"{steps[trial.step].strength:g}" if trial.step < len(steps) else ""
                key = trial.attack, strength, str(trial.colluders)
                cells = lines.setdefault(key, ["-"] * len(models))
                cells[column] = f"{100 * trial.accuracy:.0f}, {' / '.join(lowest(trial, kind) for kind in READINGS)}"
    columns = ("attack", "strength", "copies", *models)
    return Table("readings", "", columns, tuple((*key, *cells) for key, cells in lines.items()))


def lowest(trial: Trial, kind: str) -> str:
    """Returns the lowest colluder's score by some readings, or how many of the colluders are accused."""
    scores, caught = (getattr(trial, f"{kind}{field}") for field in ("scores", "caught"))
    if all(caught):
        return f"{min(scores):.0f}"
    return f"{sum(caught)} of {len(caught)}" if any(caught) else "lost"


def without_ancestor(trial: Trial) -> list[Trial]:
    """Returns the trial as it is if the ancestor is not registered; nothing if that was not measured."""
    if not trial.scores or trial.blind_caught:
        return [replace(trial, scores=trial.blind_scores, caught=trial.blind_caught)]
    return []


def unique_names(tables: Iterable[Table]) -> list[Table]:
    """Returns the tables, with `-unregistered` in a name that is there already."""
    found: dict[str, Table] = {}
    for table in tables:
        name = f"{table.name}-unregistered" if table.name in found else table.name
        found[name] = replace(table, name=name)
    return list(found.values())


def caught_cell(trials: list[Trial]) -> str:
    if not trials:
        return "-"
    return f"{sum(sum(p.caught) for p in trials)} of {sum(p.colluders for p in trials)}"


def group_of(trial: Trial) -> str | None:
    """Returns the group of a trial's attack; `None` for the base and the copy as issued."""
    return SUITE[trial.attack].group if trial.attack in SUITE else None


def innocents_table(models: dict[str, list[Trial]], all_scores: bool) -> Table:
    """Returns the table of innocents accused, over all suspects of all models."""
    read = [p for trials in models.values() for p in trials if p.threshold is not None]
    accused, scored = sum(p.innocents_accused for p in read), sum(p.innocents for p in read)
    unaligned, what = sum(p.unaligned[0] for p in read), f"innocents accused, {len(read):,} suspects"
    figures = [
        Figure(what, f"{accused} of {scored:,}", "0", accused == 0),
        Figure("the same without alignment", f"{unaligned} of {scored:,}", "0", unaligned == 0),
    ]
    if all_scores:
        highest, plain = max(p.highest_innocent for p in read), max(p.unaligned[1] for p in read)
        figures.append(Figure("highest score of an innocent / without alignment", f"{highest:.1f} / {plain:.1f}", "-"))
    return figure_table(figures, "innocents")


def outcome_cell(found: list[CoalitionOutcome]) -> str:
    runs = sum(each.runs for each in found)
    if not runs:
        return "-"
    main_contributors, anybody = sum(each.all_main_contributors for each in found), sum(each.anybody for each in found)
    caught = sum(each.caught for each in found) / sum(each.size * each.runs for each in found)
    return f"{main_contributors}, {anybody} of {runs}; {caught:.0%}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--picture", type=Path, help="plot accuracy against score, one panel per model, to this file")
    parser.add_argument(
        "--all-scores", action="store_true", help="show the scores of recipients who are not accused too"
    )
    parser.add_argument("--schemes", type=Path, help="the folder of one model's comparison of schemes")
    add_results_option(parser)
    arguments = parser.parse_args()
    if arguments.all_scores:
        print(NOT_TO_PUBLISH, file=sys.stderr)
    models = {name: load_trials(arguments.folder / name, arguments.all_scores) for name in arguments.models}
    rows = [] if arguments.schemes is None else [*Rows(arguments.schemes / "rows.jsonl").known.values()]
    if arguments.picture is not None:
        from examples._common.plots import plot_frontiers

        kept = {name: [p for p in trials if p.attack not in NOT_COMPARABLE] for name, trials in models.items()}
        plot_frontiers(kept, arguments.picture)
    tables = [single_copy_table(models, rows), lost_mark_table(models), coalition_table(models)]
    blind = {name: [p for trial in trials for p in without_ancestor(trial)] for name, trials in models.items()}
    tables.append(readings_table(models))
    tables += [table for each in (models, blind) for table in (ancestor_table(each), contributors_table(each))]
    tables = [table for table in unique_names(tables) if table.rows]
    report(arguments, [*tables, innocents_table(models, arguments.all_scores)])


if __name__ == "__main__":
    main()
