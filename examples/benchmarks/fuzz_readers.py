"""Feeds mutated inputs to every reader: counts errors that are not one sentence, and inputs that take 10 s or 1 GB.

    python -m examples.benchmarks.fuzz_readers --count 100000 --out fuzz

Each reader runs in a separate process, to measure its peak memory; an input that takes five minutes is killed and
counted. The output has the seed of each failure: `--reader NAME --only SEED` repeats it.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples.benchmarks.fuzz_targets import TARGETS, Target, targets_in
from hf_fingerprint.errors import FingerprintError


SECONDS, MEGABYTES, KILLED = 10.0, 1000, 300.0  # CPU time; for each reader; wall time
BOMBS = 8  # at most, for each reader
SHOWN = 3  # lines of a traceback
WARM = -1000  # the seed of a valid input


@dataclass
class Found:
    """Counts for one reader.

    Attributes:
        reader (`str`): the name of the reader.
        inputs (`int`): the number of inputs.
        refused (`int`): the number refused with one sentence.
        escaped (`list[str]`): seed and error of each input that raised anything else.
        slow (`list[str]`): seed and seconds of each input that took 10 s of CPU time or was killed.
        slowest (`float`): CPU seconds of the slowest input.
        peak (`int`): peak memory of the process in MB.
        started (`int`): the same after valid inputs only, in MB.
    """

    reader: str
    inputs: int = 0
    refused: int = 0
    escaped: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0
    started: int = 0

    @property
    def taken(self) -> int:
        """Peak memory of the inputs in MB."""
        return self.peak - self.started


def feed(target: Target, seeds: Iterable[int], found: Found, announce: Callable[[int], None] | None = None) -> None:
    """Feeds a reader the inputs of these seeds; negative seeds are its bombs."""
    for seed in seeds:
        if announce is not None:
            announce(seed)
        content = input_of(target, seed)
        begun = time.process_time()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                target.read(content)
        except FingerprintError:
            found.refused += 1
        except Exception as error:
            lines = traceback.format_exception(error)
            found.escaped.append(f"{seed}: {' '.join(' '.join(lines[-1 - SHOWN :]).split())[:600]}")
        seconds = time.process_time() - begun
        found.inputs += 1
        found.slowest = max(found.slowest, seconds)
        found.peak = peak()
        if seconds > SECONDS:
            found.slow.append(f"{seed}: {seconds:.0f} s")


def input_of(target: Target, seed: int) -> bytes:
    """Returns the input of a seed."""
    if seed == WARM:
        return target.valid
    if seed < 0:
        return target.bombs[-1 - seed]() if -seed <= len(target.bombs) else target.valid
    rng = np.random.default_rng([seed, *target.name.encode()])
    return target.mutate(target.samples[int(rng.integers(0, len(target.samples)))], rng)


def peak() -> int:
    """Returns the peak memory of this process in MB."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


def watched(name: str, seeds: list[int]) -> Found:
    """Feeds a reader in a separate process, and starts a new one after an input that had to be killed."""
    total = Found(name)
    context = multiprocessing.get_context("spawn")
    while seeds:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(name, seeds, theirs), daemon=True)
        worker.start()
        theirs.close()
        last: Any = None
        while True:
            if not ours.poll(KILLED if last is not None else 10 * KILLED):
                worker.kill()
                break
            try:
                got = ours.recv()
            except EOFError:
                break
            if isinstance(got, int):
                last = got
                continue
            _add(total, got)
        worker.join()
        done = seeds.index(last) + 1 if last is not None else len(seeds)
        if worker.exitcode == -signal.SIGKILL:
            total.slow.append(f"{last}: killed after {KILLED:.0f} s")
        elif worker.exitcode != 0:
            total.escaped.append(f"{last}: the process died ({worker.exitcode})")
        seeds = seeds[done:]
    return total


def _work(name: str, seeds: list[int], pipe: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = targets_in(Path(folder), [name])[0]
        feed(target, [WARM] * 3, Found(name))
        started = peak()
        for start in range(0, len(seeds), 50):
            found = Found(name, started=started)
            feed(target, seeds[start : start + 50], found, pipe.send)
            pipe.send(found)


def _add(total: Found, part: Found) -> None:
    total.inputs += part.inputs
    total.refused += part.refused
    total.escaped += part.escaped
    total.slow += part.slow
    total.slowest, total.peak = max(total.slowest, part.slowest), max(total.peak, part.peak)
    total.started = total.started or part.started


def shares(count: int, names: Iterable[str]) -> dict[str, int]:
    """Returns how many of `count` inputs each reader gets, by its weight."""
    chosen = [name for name in TARGETS if name in set(names)]
    whole = sum(TARGETS[name] for name in chosen)
    found = {name: max(1, count * TARGETS[name] // whole) for name in chosen}
    found[chosen[0]] += max(0, count - sum(found.values()))
    return found


def figure_of(all_found: list[Found]) -> Figure:
    """Returns the figure over all readers."""
    inputs, escaped = sum(f.inputs for f in all_found), sum(len(f.escaped) for f in all_found)
    slow, large = sum(len(f.slow) for f in all_found), sum(f.taken > MEGABYTES for f in all_found)
    slowest, highest = max(f.slowest for f in all_found), max(f.taken for f in all_found)
    measured = (
        f"{inputs:,} inputs of {len(all_found)} readers: {escaped} tracebacks, {slow} over 10 s (slowest "
        f"{slowest:.1f} s), {large} readers over 1 GB (most {highest} MB)"
    )
    holds = not (escaped or slow or large)
    bound = "0 tracebacks, 0 over 10 s, 0 over 1 GB"
    counts = {each.reader: asdict(each) for each in all_found}
    return Figure("mutated inputs to all readers", measured, bound, holds, counts)


def readers_table(all_found: list[Found]) -> Table:
    """Returns a table of the readers."""
    columns = ("reader", "inputs", "refused", "slowest, s", "MB taken (of libraries)", "tracebacks", "over 10 s")
    rows = (
        (
            *(f.reader, f"{f.inputs:,}", f"{f.refused:,}", f"{f.slowest:.2f}"),
            *(f"{f.taken} ({f.started})", f"{len(f.escaped)}", f"{len(f.slow)}"),
        )
        for f in all_found
    )
    return Table("readers", "", columns, tuple(rows))


def main() -> int:
    """Feeds all readers; the exit code is 0 if the bounds hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--reader", action="append", choices=list(TARGETS))
    parser.add_argument("--only", type=int, help="one seed, in this process, with its traceback")
    add_results_option(parser)
    arguments = parser.parse_args()
    names = arguments.reader or list(TARGETS)
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            (target,) = targets_in(Path(folder), names)
            content = input_of(target, arguments.only)
            print(len(content), content[:2000])
            print(target.read(content))
        return 0
    all_found = []
    for name, count in shares(arguments.count, names).items():
        found = watched(name, [*range(-BOMBS, 0), *range(arguments.first, arguments.first + count)])
        all_found.append(found)
        print(json.dumps(asdict(found)), file=sys.stderr, flush=True)
    figure = figure_of(all_found)
    report(arguments, [figure_table([figure]), readers_table(all_found)])
    return 0 if figure.holds else 1


if __name__ == "__main__":
    sys.exit(main())
