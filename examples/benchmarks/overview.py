"""Measures robustness, speed, memory and the Hub in about half an hour on two cores (`make bench`)."""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples.benchmarks.hub import hub_rows
from examples.benchmarks.robustness import robustness_rows
from examples.benchmarks.speed import memory_rows, scoring_rows, speed_rows, start_rows


def main() -> None:
    """Runs the chosen parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_output"))
    parser.add_argument("--parts", default="help,speed,memory,scoring,hub,robustness")
    add_results_option(parser)
    parser.add_argument("--recipients", type=int, default=1_000_000, help="recipients to decode among")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path], list[Figure]]] = {
        "help": start_rows,
        "speed": speed_rows,
        "memory": memory_rows,
        "scoring": lambda work: scoring_rows(work, arguments.recipients, 10 * arguments.recipients),
        "hub": hub_rows,
        "robustness": lambda work: robustness_rows(arguments.out),
    }
    tables: list[Table] = []
    for name in arguments.parts.split(","):
        work = arguments.out / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for folder in ("vault_robustness", "copies_robustness", "vault_other", "copy_of_another_vault"):
            shutil.rmtree(arguments.out / folder, ignore_errors=True)
        print(f"measuring {name}", file=sys.stderr)
        tables.append(figure_table(parts[name](work), name))
        shutil.rmtree(work, ignore_errors=True)
    report(arguments, tables)


if __name__ == "__main__":
    main()
