"""Measures what the further readings of a trace cost, by turns with the same traces by the plain reading alone.

    python -m examples.benchmarks.reading_speed --out bench_output/reading_speed

The suspects are copies of a ViT-B/16 (86 M weights): one as issued, and one whose every tensor drifted in a few
directions, as in fine-tuning. The ancestor is on record. Memory is the peak of a process of its own, above imports.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

from examples._common.owner import RECIPIENT
from examples._common.real_inputs import save_timm
from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.speed import AMPLITUDE, PASSPHRASE, measure, ratio, seconds, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace
from hf_fingerprint.extraction import weigh


PAIRS, RANK, DRIFT, DELTA = 4, 8, 3.0, 0.05
MAX_RATIO, MAX_SECONDS = 1.1, 6.0


@contextmanager
def plain_alone() -> Iterator[None]:
    """In this context a trace has no further readings."""
    before = weigh.read_further
    weigh.read_further = lambda place, mixture: (None, None)
    try:
        yield
    finally:
        weigh.read_further = before


def drift(weights: dict[str, torch.Tensor], size: float) -> dict[str, torch.Tensor]:
    """The weights with drift in a few directions, whose size is relative to a matrix's own."""
    found = {}
    for name, values in weights.items():
        moved = values.clone()
        if values.ndim >= 2:
            rows = values.flatten(1)
            change = torch.randn(len(rows), RANK) @ torch.randn(RANK, rows.shape[1])
            moved += (change * (size * rows.norm() / change.norm())).reshape(values.shape)
        found[name] = moved
    return found


def main() -> None:
    """Issues a copy, traces it and what it became, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/reading_speed"))
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm architecture")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    add_results_option(parser)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    torch.manual_seed(0)
    model, ancestor, suspects = (options.out / name for name in ("model", "ancestor", "suspects"))
    save_timm(timm.create_model(options.model), model)
    shutil.copytree(model, ancestor)
    weights = load_file(model / "model.safetensors")
    save_file(drift(weights, DELTA), ancestor / "model.safetensors")
    vault = Vault.create(options.out / "vault", PASSPHRASE)
    config = FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE)
    with unbuilt(), Issuer(model, vault, config, ancestor=ancestor) as issuer:
        issued = issuer.issue(RECIPIENT, suspects / "as issued").path
    drifted = suspects / "drifted"
    shutil.copytree(issued, drifted)
    moved = drift(load_file(issued / "model.safetensors"), DRIFT * AMPLITUDE)
    save_file(moved, drifted / "model.safetensors", {"format": "pt"})
    vault.unlock(PASSPHRASE)

    def read(suspect: Path) -> TraceResult:
        return trace(suspect, vault, ancestor=ancestor)

    figures = []
    for suspect, name in ((issued, "as issued"), (drifted, "every tensor drifted")):
        now: list[float] = []
        before: list[float] = []
        for _ in range(options.pairs):
            with plain_alone():
                before.append(seconds(partial(read, suspect)))
            now.append(seconds(partial(read, suspect)))
        accused = [each.recipient for each in read(suspect).accused]
        figures += figures_of(name, now, before, accused == [RECIPIENT])
        used, _ = measure("trace", str(suspect), str(options.out / "vault"))
        allowed = 4 * max(values.numel() for values in weights.values()) * 4 / 1e6 + 200
        holds = float(used) <= allowed
        figures.append(Figure(f"{name}: peak memory above the imports", f"{used} MB", f"<= {allowed:.0f} MB", holds))
    report(options, [figure_table(figures)])


def figures_of(name: str, now: list[float], before: list[float], accused: bool) -> list[Figure]:
    """The figures of one suspect."""
    found = [Figure(f"{name}: the leaker alone is accused", str(accused), "True", accused)]
    times, most = ratio(now, before), sorted(now)[len(now) // 2]
    if name == "as issued":
        holds = float(times.split()[0]) <= MAX_RATIO
        return [*found, Figure(f"{name}: trace / by the plain reading alone", times, f"<= {MAX_RATIO}", holds)]
    found.append(Figure(f"{name}: trace / by the plain reading alone", times, "reported"))
    return [*found, Figure(f"{name}: trace, seconds", f"{most:.1f}", f"<= {MAX_SECONDS:g}", most <= MAX_SECONDS)]


if __name__ == "__main__":
    main()
