"""Measures everything that a GPU is for, in at most four minutes, and writes one JSON.

    bash examples/benchmarks/gpu.sh                                  # sets up what is missing, then runs this
    python -m examples.benchmarks.gpu --small --out FILE             # tiny models on a CPU: a test of the script

Each part runs in processes of its own, as long as the budget lasts. The JSON is written after each part, with its
figures or the reason why it has none. The parts need about 10 GB of disk for temporary files.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from examples._common.results import (
    FIGURE_COLUMNS,
    ROOT,
    RUN,
    Figure,
    Results,
    Table,
    command,
    commit,
    figure_table,
    machine,
    versions,
)
from examples.benchmarks.gpu_sizes import read_figures
from hf_fingerprint.native import passes


OUT = ROOT / "docs" / "results" / "data" / "gpu.json"
BUDGET, PROCESSES = 240.0, 2  # seconds; processes on a CPU
START = 15.0  # seconds that a part needs before its first figure
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name (`str`): its name, and that of its table.
        title (`str`): what it measures.
        module (`str`): the module that runs it.
        seconds (`float`): the most that it may take, of a budget of 240.
    """

    name: str
    title: str
    module: str
    seconds: float

    def processes(self, device: str) -> int:
        """Returns how many processes run it."""
        if self.name != "sharded":
            return 0
        return PROCESSES if device == "cpu" else torch.cuda.device_count()


PARTS = (
    Part("step", "training steps with and without the term", "gpu_steps", 75),
    Part("sharded", "training steps under DDP and FSDP2", "gpu_steps", 50),
    Part("triggers", "fitting trigger images", "gpu_jobs", 70),
    Part("decoding", "decoding among many recipients", "gpu_jobs", 60),
    Part("issue and trace", "issuing and tracing", "gpu_jobs", 60),
)


def measure(part: Part, device: str, small: bool, seconds: float) -> tuple[list[Figure], str]:
    """Runs a part for at most so many seconds.

    Returns:
        its figures, and the reason why some are missing, or "".
    """
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        work, figures, errors = (Path(folder, name) for name in ("work", "figures", "errors"))
        work.mkdir()
        launch = [sys.executable]
        if processes := part.processes(device):
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        arguments = [part.name, "--device", device, "--work", str(work), "--figures", str(figures)]
        arguments += ["--seconds", str(max(seconds - START, 0.0)), *(["--small"] if small else [])]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [*launch, "-m", f"examples.benchmarks.{part.module}", *arguments],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            try:
                failed = process.wait(seconds)
                reason = last_error(errors.read_text()) if failed else ""
            except subprocess.TimeoutExpired:
                reason = f"the part took more than {seconds:.0f} s"
            finally:
                stop(process)
        return read_figures(figures), reason


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, if it still runs, and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_error(text: str) -> str:
    """Returns the line of the first exception in a process's output, without folders."""
    lines = re.findall(r"^(?:\[rank\d+\]: ?)?([\w.]+(?:Error|Exception|Interrupt)\b.*)$", text, re.M)
    return re.sub(r"(?:/[\w.+-]+)+/", "", lines[0])[:300] if lines else "the process ended without an error message"


def table_of(part: Part, figures: Sequence[Figure], reason: str) -> Table:
    """Returns the part's figures as a table, and the reason why some are missing."""
    table = figure_table(figures, part.name, part.title)
    left_out = ((part.title, f"{NOT_MEASURED}: {reason}", ""),) if reason else ()
    return Table(table.name, table.title, FIGURE_COLUMNS, (*table.rows, *left_out))


def device_table(device: str) -> Table:
    """Returns what the figures are of."""
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
    count = 1 if device == "cpu" else torch.cuda.device_count()
    row = (name, str(count), torch.__version__, str(torch.version.cuda or "-"), "yes" if passes else "no")
    return Table("device", "", ("device", "devices", "torch", "CUDA", "compiled passes"), (row,))


def main() -> int:
    """Runs the parts and writes the JSON after each. Returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--out", type=Path, help="the JSON, by default docs/results/data/gpu.json")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all parts (%(default)g)")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="by default all")
    parser.add_argument("--commit", metavar="HASH", help="of the code, where there is no git")
    options = parser.parse_args()
    started, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("torch finds no GPU here, so there is nothing to measure: add --small to try the script.")
    if options.small and (options.out is None or options.out.resolve() == OUT):
        parser.error("Small sizes are no results: give another file with --out.")
    try:
        version = options.commit or commit()
    except (subprocess.CalledProcessError, FileNotFoundError):
        parser.error("This folder is no git checkout: give the commit of the code with --commit.")
    chosen = options.parts.split(",")
    tables, ending = [device_table(device)], 0
    where = machine() if device == "cpu" else f"{machine()}, {tables[0].rows[0][1]} x {tables[0].rows[0][0]}"
    for part in PARTS:
        left = options.budget - (time.monotonic() - started)
        figures: list[Figure] = []
        if part.name not in chosen:
            reason = "not among --parts"
        elif left < START:
            reason = f"the budget of {options.budget:.0f} s was spent"
        else:
            print(f"{time.monotonic() - started:4.0f} s  {part.title}", file=sys.stderr, flush=True)
            figures, reason = measure(part, device, options.small, min(left, part.seconds * options.budget / BUDGET))
            ending = 1 if reason else ending
        tables.append(table_of(part, figures, reason))
        print(f"\n{tables[-1].markdown()}", flush=True)
        today = datetime.now(UTC).date().isoformat()
        made = Results(command(options), version, today, where, RUN, versions(), tuple(tables))
        made.write(options.out or OUT)
    print(f"{time.monotonic() - started:4.0f} s  written to {options.out or OUT}", file=sys.stderr)
    return ending


if __name__ == "__main__":
    sys.exit(main())
