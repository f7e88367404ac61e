"""The README's tables of attacks, out of what `attacks.py` and `schemes.py` measured.

    python -m examples.benchmarks.attacks_table bench_output/attacks lite0 vit --schemes bench_output/schemes/vit

Nothing is computed here but counts: each cell is one suspect, or a number of runs; `--picture FILE` draws them.
Scores are those of the accused alone, since tables are published; `--all-scores` shows the others.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from examples.benchmarks.schemes_report import (
    DEEPMARKS,
    FAILED,
    PAPERS,
    READ,
    SOFT,
    TOOLBOX,
    Row,
    Rows,
    line,
    named_cell,
)
from hf_fingerprint.attacks import SUITE
from hf_fingerprint.attacks.suite import GROUPS
from hf_fingerprint.evaluation import Point
from hf_fingerprint.evaluation.coalition_outcomes import Outcome, outcomes
from hf_fingerprint.evaluation.frontier import cheapest
from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
from hf_fingerprint.evaluation.planning import quick_steps
from hf_fingerprint.evaluation.trials import COLLUSION, COPY, SINGLE, Ledger


UNEVEN, ALIKE = ("weighted-average", "layers", "blocks"), "nine that take from all alike"
APART = ("finetune-other-data", "distil", "extract", "extract-synthetic")  # another task's accuracy, other weights


def measured(folder: Path, all_scores: bool = False) -> list[Point]:
    """The points of a model's folder; of those that were measured twice, the newer. Without `all_scores`, those of
    the accused alone are in them."""
    newest = {(p.attack, p.what, p.colluders, p.shares, p.kind): p for p in Ledger(folder).points.values()}
    return [point if all_scores else point.published() for point in newest.values()]


def cell(points: Iterable[Point], attack: str, ends: list[int]) -> str:
    """Accuracy in % and score at three strengths."""
    by_step = {p.step: p for p in points if p.attack == attack}
    found = [by_step.get(step) for step in ends]
    if not any(found):
        return "-"
    return " / ".join("-" if p is None else f"{100 * p.accuracy:.0f}, {_evidence(p)}" for p in found)


def _evidence(point: Point) -> str:
    return f"{point.score:.0f}" if point.accused else "lost"


def _copy(points: list[Point]) -> Point:
    """The copy as issued."""
    return next(p for p in reversed(points) if p.kind == COPY)


def singles(models: dict[str, list[Point]], rows: list[Row], group: str) -> list[str]:
    """A table of a group of attacks on one copy."""
    copies = {name: _copy(points) for name, points in models.items()}
    heads = [f"{name} ({100 * p.accuracy:.0f}, {_evidence(p)})" for name, p in copies.items()]
    heads += ["deepmarks, paper's", "deepmarks, soft", "toolbox"] if rows else []
    lines = [line(["attack", *heads]), line(["---"] * (1 + len(heads)))]
    for attack, found in SUITE.items():
        if found.group == group:
            ends = quick_steps(len(found.attacks))
            strengths = " / ".join(f"{found.attacks[step].strength:g}" for step in ends)
            cells = [cell(points, attack, ends) for points in models.values()]
            cells += others(rows, attack, ends) if rows else []
            if set(cells) != {"-"}:
                lines.append(line([f"{attack} {strengths}" if len(ends) > 1 else attack, *cells]))
    return lines


def others(rows: list[Row], attack: str, ends: list[int]) -> list[str]:
    """What is left of a `deepmarks` copy by its two decoders, and of a copy by the toolbox's variant."""
    found = {(row.scheme, row.step): row for row in rows if row.attack == attack and row.kind == SINGLE}

    def each(scheme: str, said: Callable[[Row], str]) -> str:
        here = [found.get((scheme, step)) for step in ends]
        told = ["-" if row is None or row.outcome == FAILED else said(row) for row in here]
        return told[0] if len(set(told)) == 1 else " / ".join(told)

    return [
        each(DEEPMARKS, lambda row: named_cell(row, PAPERS)),
        each(DEEPMARKS, lambda row: named_cell(row, SOFT)),
        each(TOOLBOX, lambda row: str(row.wrong) if row.outcome == READ else row.outcome),
    ]


def falls(models: dict[str, list[Point]]) -> list[str]:
    """A table of the attacks that lose the mark: at which strength the accuracy is highest without it, and by how many
    points it is under the copy's."""
    lines = [line(["attack", *models]), line(["---"] * (1 + len(models)))]
    for attack in (name for name in SUITE if name not in APART):
        told = [_fall(attack, points) for points in models.values()]
        if any(cell.startswith("at ") for cell in told):
            lines.append(line([attack, *told]))
    return lines


def _fall(attack: str, points: list[Point]) -> str:
    swept = [p for p in points if p.kind == SINGLE and p.attack == attack]
    if not swept:
        return "-"
    cost = cheapest(attack, swept, _copy(points))
    return f"at {cost.escape.strength:g}: {cost.words}" if cost.escape else "not lost"


def coalitions(models: dict[str, list[Point]]) -> list[str]:
    """A table of runs: in how many all were caught who gave a twentieth, in how many anybody, and the share caught;
    strategies that take from all copies alike together."""
    mixed = [p for points in models.values() for p in points if p.kind == COLLUSION]
    sizes = sorted({p.colluders for p in mixed})
    rows: dict[str, dict[int, list[Outcome]]] = {}
    for attack in SUITE:
        for found in outcomes(p for p in mixed if p.attack == attack):
            strategy, then, follow_up = attack.partition("-then-")
            name = (strategy if strategy in UNEVEN else ALIKE) + then.replace("-", " ") + follow_up
            rows.setdefault(name, {}).setdefault(found.size, []).append(found)
    lines = [line(["coalition", *map(str, sizes)]), line(["---"] * (1 + len(sizes)))]
    for name, by_size in rows.items():
        lines.append(line([name, *(_ended(by_size.get(size, [])) for size in sizes)]))
    return lines


def _ended(found: list[Outcome]) -> str:
    runs = sum(each.runs for each in found)
    if not runs:
        return "-"
    main_givers, somebody = sum(each.all_main_givers for each in found), sum(each.somebody for each in found)
    caught = sum(each.caught for each in found) / sum(each.size * each.runs for each in found)
    return f"{main_givers}, {somebody} of {runs}; {caught:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--picture", type=Path, help="draw accuracy against evidence, a panel a model, to this file")
    parser.add_argument("--all-scores", action="store_true", help="scores of those who are not accused too")
    parser.add_argument("--schemes", type=Path, help="the folder of one model's comparison")
    arguments = parser.parse_args()
    if arguments.all_scores:
        print(NOT_TO_PUBLISH, file=sys.stderr)
    models = {name: measured(arguments.folder / name, arguments.all_scores) for name in arguments.models}
    rows = [] if arguments.schemes is None else [*Rows(arguments.schemes / "rows.jsonl").known.values()]
    if arguments.picture is not None:
        from examples._common.plots import plot_frontiers

        kept = {name: [p for p in points if p.attack not in APART] for name, points in models.items()}
        plot_frontiers(kept, arguments.picture)
    for group in GROUPS[:-1]:
        print("\n".join(singles(models, rows, group)), end="\n\n")
    print("\n".join(falls(models)), end="\n\n")
    print("\n".join(coalitions(models)), end="\n\n")
    read = [p for points in models.values() for p in points if p.threshold is not None]
    accused, scored = sum(p.innocents_accused for p in read), sum(p.innocents for p in read)
    plainly = sum(p.unaligned[0] for p in read)
    print(f"innocents accused: {accused} of {scored:,} over {len(read)} suspects; without alignment {plainly}")
    if arguments.all_scores:
        highest, plain = max(p.highest_innocent for p in read), max(p.unaligned[1] for p in read)
        print(f"highest score of an innocent: {highest:.1f}; without alignment {plain:.1f}")


if __name__ == "__main__":
    main()
