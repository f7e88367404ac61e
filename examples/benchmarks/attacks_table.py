"""Prints the tables of attacks from the results of `attacks.py` and `schemes.py`.

    python -m examples.benchmarks.attacks_table bench_output/attacks lite0 vit --schemes bench_output/schemes/vit

Each cell is one suspect, or a number of runs; `--picture FILE` plots them. The tables are made to be published, so
they have the scores of the accused alone; `--all-scores` shows the others. `--trials FILE` adds the trials to those of
earlier runs, and makes the tables of all.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from examples._common.results import Figure, Table, add_results_option, commit, figure_table, report
from examples.benchmarks.ancestor_tables import (
    ancestor_table,
    before_table,
    contributors_table,
    group_of,
    issued_copy,
    lowest,
    readings_table,
    unique_names,
    without_ancestor,
)
from examples.benchmarks.attack_trials import KeptTrial, add_trials
from examples.benchmarks.attacks import COMMIT
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
from hf_fingerprint.evaluation.frontier import cheapest_escape
from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
from hf_fingerprint.evaluation.planning import quick_steps
from hf_fingerprint.evaluation.trials import COLLUSION, SINGLE, ResultStore


UNEVEN, EVEN = ("weighted-average", "layers", "blocks"), "nine even strategies"
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
    if not folder.exists():
        return []
    newest = {(p.attack, p.what, p.colluders, p.shares, p.kind): p for p in ResultStore(folder).trials.values()}
    return [trial if all_scores else trial.redacted() for trial in newest.values()]


def kept_trials(folder: Path, models: dict[str, list[Trial]]) -> Iterator[KeptTrial]:
    """Yields the trials of a run with the commit that ran."""
    for model, trials in models.items():
        file = folder / f"{model}{COMMIT}"
        made = file.read_text() if file.exists() else commit()
        yield from (KeptTrial.of(model, made, trial) for trial in trials)


def cell(trials: Iterable[Trial], attack: str, steps_shown: list[int]) -> str:
    """Returns accuracy in % and score at three strengths."""
    by_step = {p.step: p for p in trials if p.attack == attack}
    found = [by_step.get(step) for step in steps_shown]
    if not any(found):
        return "-"
    return " / ".join("-" if p is None else f"{100 * p.accuracy:.0f}, {score_cell(p)}" for p in found)


def score_cell(trial: Trial) -> str:
    """Returns the score, after that of the plain reading alone where that is another."""
    now = f"{trial.score:.0f}" if trial.accused else "lost"
    before = lowest(trial, "plain_") if trial.plain_caught else now
    return now if before == now else f"{before} → {now}"


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
    parser.add_argument("--trials", type=Path, metavar="FILE", help="trials of earlier runs, to which these are added")
    parser.add_argument("--schemes", type=Path, help="the folder of one model's comparison of schemes")
    add_results_option(parser)
    arguments = parser.parse_args()
    if arguments.all_scores:
        print(NOT_TO_PUBLISH, file=sys.stderr)
    models = {name: load_trials(arguments.folder / name, arguments.all_scores) for name in arguments.models}
    notes = ()
    if arguments.trials is not None:
        kept = add_trials(arguments.trials, kept_trials(arguments.folder, models))
        models = {name: [each.trial for each in kept if each.model == name] for name in arguments.models}
        commits = sorted({each.commit for each in kept if each.model in arguments.models})
        notes = (f"The trials ran at commit {', '.join(commits)}.",)
    rows = [] if arguments.schemes is None else [*Rows(arguments.schemes / "rows.jsonl").known.values()]
    if arguments.picture is not None:
        from examples._common.plots import plot_frontiers

        shown = {name: [p for p in trials if p.attack not in NOT_COMPARABLE] for name, trials in models.items()}
        plot_frontiers(shown, arguments.picture)
    tables = [single_copy_table(models, rows), lost_mark_table(models), coalition_table(models)]
    blind = {name: [p for trial in trials for p in without_ancestor(trial)] for name, trials in models.items()}
    tables += [before_table(models), readings_table(models)]
    tables += [table for each in (models, blind) for table in (ancestor_table(each), contributors_table(each))]
    tables = [table for table in unique_names(tables) if table.rows]
    innocents = innocents_table(models, arguments.all_scores)
    report(arguments, [*tables, replace(innocents, notes=(*innocents.notes, *notes))])


if __name__ == "__main__":
    main()
