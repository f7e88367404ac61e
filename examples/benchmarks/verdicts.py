"""Measures verdicts where they are easiest to get wrong.

Bases that tie, verify after trace, an adaptive attacker, suspects that can't be read, authors with large models.

    python -m examples.benchmarks.verdicts --out bench_output/verdicts   # all parts
    python -m examples.benchmarks.verdicts --parts ties,price          # some parts
    python -m examples.benchmarks.verdicts --quick               # a small run, to test the script

Prints a table of figure, measured and bound. The exit code is 1 if a bound does not hold.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.verdicts_bases import price_figure, ties_figure
from examples.benchmarks.verdicts_claims import adaptive_attacker_figure, claims_figure
from examples.benchmarks.verdicts_extraction import unreadable_figure, watching_figure
from examples.benchmarks.verdicts_scale import FULL, QUICK, Scale


PARTS: dict[str, Callable[[Path, Scale], Figure]] = {
    "ties": ties_figure,
    "price": price_figure,
    "claims": claims_figure,
    "adaptive": adaptive_attacker_figure,
    "unreadable": unreadable_figure,
    "watching": watching_figure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the chosen parts; the exit code is 0 if the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/verdicts"))
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; all by default")
    parser.add_argument("--quick", action="store_true", help="run a small part, to test the script")
    add_results_option(parser)
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"there is no part called {unknown[0]}: choose among {', '.join(PARTS)}")
    figures = []
    for name in arguments.parts.split(","):
        work = arguments.out / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        started = time.monotonic()
        figures.append(PARTS[name](work, QUICK if arguments.quick else FULL))
        shutil.rmtree(work, ignore_errors=True)
        print(f"{name}: {figures[-1].measured} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    report(arguments, [figure_table(figures)])
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
