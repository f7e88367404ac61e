"""Compares an evaluation's traces of suspects in memory with the same traces through a file for each suspect.

The model is EfficientNet-Lite0 with its ImageNet weights. Each suspect is traced and built to be run, as `evaluate`
does, by turns in memory and through a file. Both must give the same verdict. The bound is on processor time, which
other processes change less than seconds.

    python -m examples.benchmarks.suspects_in_memory --out bench_output/suspects [--pairs 5]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from examples._common.real_inputs import lite0, save_timm
from examples._common.results import Figure, add_results_option, figure_table, report
from hf_fingerprint import FingerprintConfig
from hf_fingerprint.attacks import Collusion, MagnitudePruning, Quantization
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.evaluation import Testbed
from hf_fingerprint.extraction.alignment.suspect_model import load_into_base_model


State = Mapping[str, torch.Tensor]
Seconds = tuple[float, float]
AMPLITUDE, RECIPIENTS, INNOCENTS = 0.003, 3, 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Traces all suspects both ways, and prints the ratio of the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the model, its copies and the suspects")
    parser.add_argument("--pairs", type=int, default=5, help="number of times that each suspect is traced both ways")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    model = save_timm(lite0(), options.out / "model")
    config = FingerprintConfig(amplitude=AMPLITUDE)
    with Testbed(model, options.out / "testbed", RECIPIENTS, config, INNOCENTS) as testbed:
        rows = {suspect[0]: _compare(testbed, *suspect, options) for suspect in suspects(testbed)}
    report(options, [figure_table(_figures(rows))])


def suspects(testbed: Testbed) -> list[tuple[str, State, tuple[int, ...]]]:
    """Returns suspects: their names, their weights and the indices of their colluders."""
    copies = [testbed.copy(recipient) for recipient in range(RECIPIENTS)]
    return [
        ("the base", testbed.base_state(), ()),
        ("a copy", copies[0], (0,)),
        ("half of a copy pruned", MagnitudePruning(0.5)(copies[0]), (0,)),
        ("a copy in 8 bits", Quantization(bits=8)(copies[0]), (0,)),
        ("the average of three copies", Collusion("average")(copies), (0, 1, 2)),
    ]


def _compare(
    testbed: Testbed, name: str, state: State, colluders: tuple[int, ...], options: argparse.Namespace
) -> list[tuple[float, ...]]:
    """The seconds and the processor time of each trace, in memory and through a file."""
    file = options.out / "suspect.safetensors"

    def in_memory() -> Any:
        testbed.model_of(state)
        return testbed.trace_suspect(state, colluders)

    def through_disk() -> Any:
        for read in (lambda: _built_from(testbed, file), lambda: testbed.trace_suspect(file, colluders)):  # type: ignore[arg-type]
            file.write_bytes(save({n: each.detach().cpu().clone().contiguous() for n, each in state.items()}))
            found = read()
        file.unlink()
        return found

    times: list[list[Seconds]] = [[], []]
    for _ in range(options.pairs + 1):  # the first warms up
        verdicts = []
        for measured, work in zip(times, (in_memory, through_disk), strict=True):
            started, used = time.perf_counter(), time.process_time()
            verdicts.append(work())
            measured.append((time.perf_counter() - started, time.process_time() - used))
        if verdicts[0] != verdicts[1]:
            sys.exit(f"{name} has two verdicts: {verdicts[0]} in memory, and {verdicts[1]} through a file.")
    print(f"{name}: {times[0][-1][0]:.1f} s in memory", file=sys.stderr, flush=True)
    return [(*ours, *theirs) for ours, theirs in zip(times[0][1:], times[1][1:], strict=True)]


def _built_from(testbed: Testbed, file: Path) -> object:
    with open_checkpoint(file) as opened:
        return load_into_base_model(testbed.built, {}, opened)


def _figures(rows: dict[str, list[tuple[float, ...]]]) -> list[Figure]:
    """The ratios of the times by suspect, and of all suspects together by turn."""
    turns = [tuple(map(sum, zip(*turn, strict=True))) for turn in zip(*rows.values(), strict=True)]
    figures = []
    for name, pairs in {"all suspects": turns, **rows}.items():
        for what, first in (("seconds", 0), ("processor time", 1)):
            ratios = sorted(pair[first] / pair[first + 2] for pair in pairs)
            middle = statistics.median(ratios)
            bound, holds = ("< 1", middle < 1) if (name, first) == ("all suspects", 1) else ("reported", True)
            measured = f"{middle:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"
            figures.append(Figure(f"{name}, {what}: in memory / through a file", measured, bound, holds))
    figures.append(Figure("suspects with the same verdict both ways", f"{len(rows)} of {len(rows)}", "all"))
    return figures


if __name__ == "__main__":
    main()
