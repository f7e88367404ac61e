"""Simulates coalitions against the codes over 3 M weights, and tests the bound over 10^7 innocents for each code.

Counts the colluders caught and the innocents accused. `--quick` runs a small part.
"""

import argparse
import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from examples._common.results import Table, add_results_option, report
from hf_fingerprint.codes import FAMILIES, FORGERIES, Codebook, decode, decode_all, forge, make_codebook
from hf_fingerprint.codes.bounds import ChernoffBound
from hf_fingerprint.codes.codebook import SCALE
from hf_fingerprint.codes.residual import residual_signal
from hf_fingerprint.codes.strategy import infer_strategy, log_likelihood_ratio


ALPHA = 1e-6
COALITION = 20
DRIFTS = (0.0, 5.0)
TWENTIETH = 0.05
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
PARTS = ("innocents", "coalitions", "many")
_BATCH = 4096


@dataclass(frozen=True)
class Plan:
    """The size of the simulation."""

    length: int = 65536
    weights: int = 46
    recipients: int = 1000
    runs: tuple[tuple[int, int], ...] = ((3, 5), (5, 5), (10, 5), (20, 5), (50, 3), (100, 1))
    many: int = 1_000_000
    among_many: int = 20
    innocents: int = 10_000_000


QUICK = Plan(length=2048, recipients=100, runs=((3, 1), (5, 1)), many=17_000, among_many=3, innocents=50_000)


@dataclass(frozen=True)
class Row:
    """Simulated collusions of one kind.

    `caught` of `gave` contributors were accused, `sure` of `large` who contributed a twentieth or more; `hits` counts
    runs that caught anybody.
    """

    recipients: int
    colluders: int
    strategy: str
    drift: float
    runs: int
    gave: int
    caught: int
    large: int
    sure: int
    hits: int
    innocents_accused: int
    seconds: float


def keys_of(count: int) -> list[bytes]:
    """Returns copy keys that are the same in every run."""
    pool = hashlib.shake_256(b"recipients of the benchmark").digest(32 * count)
    return [pool[32 * i : 32 * i + 32] for i in range(count)]


def collusion(
    codebook: Codebook, keys: list[bytes], size: int, strategy: str, weights: int, drift: float, run: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `(coalition, extracted signal, shares)` of one simulated collusion."""
    rng = np.random.default_rng([run, size, FORGERIES.index(strategy)])
    coalition = rng.permutation(len(keys))[:size]
    copies = 2.0 * np.unpackbits(codebook.packed([keys[i] for i in coalition]), axis=1) - 1
    return coalition, *forge(strategy, copies, weights, drift, rng)


def make_row(
    found: list[tuple[np.ndarray, np.ndarray, set[int]]], recipients: int, strategy: str, drift: float, seconds: float
) -> Row:
    """Returns a row from the coalition, its shares and the accused of each run."""
    totals = np.zeros(6, int)
    for coalition, shares, accused in found:
        caught = np.isin(coalition, list(accused))
        large = shares >= TWENTIETH
        innocent = len(accused - {int(i) for i in coalition})
        totals += [(shares > 0).sum(), caught.sum(), large.sum(), (large & caught).sum(), caught.any(), innocent]
    return Row(recipients, len(found[0][0]), strategy, drift, len(found), *map(int, totals), seconds)


def coalition_rows(plan: Plan) -> Iterator[Row]:
    """Yields a row for each coalition size, drift and strategy among the recipients of one base."""
    codebook = make_codebook("tardos", plan.length, COALITION, bytes(32))
    keys = keys_of(plan.recipients)
    for size, runs in plan.runs:
        for drift in DRIFTS:
            for strategy in FORGERIES:
                found, started = [], time.perf_counter()
                for run in range(runs):
                    coalition, extracted, shares = collusion(codebook, keys, size, strategy, plan.weights, drift, run)
                    accused = decode(codebook, keys, extracted, np.ones(plan.length), ALPHA).accused
                    found.append((coalition, shares, set(accused)))
                seconds = (time.perf_counter() - started) / runs
                yield make_row(found, plan.recipients, strategy, drift, seconds)


def many_rows(plan: Plan) -> Iterator[Row]:
    """Yields a row for each strategy among a million recipients, decoded in one pass over their codewords."""
    codebook = make_codebook("tardos", plan.length, COALITION, bytes(32))
    keys = keys_of(plan.many)
    kinds = [(drift, strategy) for drift in DRIFTS for strategy in FORGERIES]
    made = [collusion(codebook, keys, plan.among_many, strategy, plan.weights, drift, 0) for drift, strategy in kinds]
    started = time.perf_counter()
    decodings = decode_all(codebook, keys, [(extracted, np.ones(plan.length)) for _, extracted, _ in made], ALPHA)
    seconds = (time.perf_counter() - started) / len(kinds)
    for (drift, strategy), (coalition, _, shares), decoding in zip(kinds, made, decodings, strict=True):
        yield make_row([(coalition, shares, set(decoding.accused))], plan.many, strategy, drift, seconds)


def innocents_tail(family: str, count: int, length: int = 1024) -> dict[str, float]:
    """Returns the observed share of false accusations divided by the proven bound, for each of `LEVELS`.

    The share is the highest over the score functions that colluders can cause. The ratio is at most 1, but for chance.
    The code has 1,024 positions, with heavier tails than a longer one. Codewords are drawn by numpy instead of key
    streams, which is faster and has the same distribution.
    """
    codebook = make_codebook(family, length, 5, bytes(32))
    highest = observed_over_proven(codebook, colluder_score_functions(codebook), count).max(axis=0)
    return {f"{level:.0e}": float(share) for level, share in zip(LEVELS, highest, strict=True)}


def observed_over_proven(codebook: Codebook, functions: np.ndarray, count: int) -> np.ndarray:
    """Returns the observed share of innocents at or above each level's threshold, over the level: one row a function.

    Args:
        codebook: the code.
        functions: standardized score functions, shape `(functions, V)`.
        count: how many innocents are drawn.
    """
    length = codebook.length
    thresholds = np.array(
        [
            [ChernoffBound(function, codebook.probability).threshold(math.log(level)) for level in LEVELS]
            for function in functions
        ]
    )
    rng = np.random.default_rng(1)
    cut = (codebook.probability * SCALE).astype(np.uint16)
    weights = (2 * functions.T).astype(np.float32)
    offset = (functions * (1 + codebook.mean)).sum(axis=1)
    reached = np.zeros(thresholds.shape, int)
    for start in range(0, count, _BATCH):
        draws = rng.integers(0, SCALE, (min(_BATCH, count - start), length), np.uint16)
        scores = (draws < cut).astype(np.float32) @ weights - offset
        reached += (scores[:, :, None] >= thresholds).sum(axis=0)
    return reached / count / np.array(LEVELS)


def colluder_score_functions(codebook: Codebook) -> np.ndarray:
    """Returns standardized score functions of signals that colluders make.

    They cover all strategies, with little and much drift, and one function of rare bits alone.
    """
    mass, functions = np.ones(codebook.length), []
    keys = keys_of(5)
    nobody = np.empty((0, codebook.length))
    for drift in (0.2, 5.0):
        for strategy in ("average", "random pick", "min-max", "median", "minority"):
            _, extracted, _ = collusion(codebook, keys, 5, strategy, 46, drift, 0)
            functions.extend(codebook.score_functions(residual_signal(codebook, extracted, mass, nobody)))
            inferred = infer_strategy(codebook, extracted, mass, np.zeros(codebook.length, int), 0)
            if inferred is not None:
                functions.append(
                    log_likelihood_ratio(codebook, extracted, mass, nobody.sum(axis=0, dtype=int), inferred)
                )
    rare = np.argsort(codebook.variance)[:64]
    functions.append(np.where(np.isin(np.arange(codebook.length), rare), -np.sign(codebook.mean - 1e-9), 0.0))
    return codebook.standardize(np.stack(functions))


def main() -> None:
    """Runs all parts, or those of `--only`, and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    add_results_option(parser)
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    makers: dict[str, Callable[[Plan], Table]] = {
        "innocents": innocents_table,
        "coalitions": partial(collusion_table, "coalitions", coalition_rows),
        "many": partial(collusion_table, "many", many_rows),
    }
    report(arguments, [makers[part](plan) for part in arguments.only])


def innocents_table(plan: Plan) -> Table:
    """Returns the table of the bound: for each code, the observed share of false accusations over the proven one."""
    found = ((family, innocents_tail(family, plan.innocents)) for family in FAMILIES)
    rows = ((name, f"{plan.innocents:,}", *(f"{share:.2f}" for share in tail.values())) for name, tail in found)
    return Table("innocents", "", ("code", "innocents", *(f"{level:.0e}" for level in LEVELS)), tuple(rows))


def collusion_table(name: str, rows_of: Callable[[Plan], Iterator[Row]], plan: Plan) -> Table:
    """Returns the table of simulated collusions. Prints each row to stderr when it is measured."""
    columns = ("recipients", "colluders", "strategy", "drift", "runs", "caught", "main contributors caught")
    rows = []
    for row in rows_of(plan):
        cells = (f"{row.recipients:,}", f"{row.colluders}", row.strategy, f"{row.drift:g}", f"{row.runs}")
        cells += (f"{row.caught} of {row.gave}", f"{row.sure} of {row.large}", f"{row.hits} of {row.runs}")
        rows.append((*cells, f"{row.innocents_accused}", f"{row.seconds:.1f}"))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    columns += ("runs that caught anybody", "innocents accused", "seconds a suspect")
    return Table(name, "", columns, tuple(rows), (f"{plan.length:,} positions; peak memory {peak:,.0f} MB.",))


if __name__ == "__main__":
    main()
