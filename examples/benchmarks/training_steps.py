"""Measures what the callback costs a training step: time, in pairs with and without it, and memory.

    python -m examples.benchmarks.training_steps --device cuda --batch 128      # on a GPU
    python -m examples.benchmarks.training_steps                                # on this machine's CPU

Each pair is a step with and a step without the term, in one process on the same batch, through the events that the
Trainer calls.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from rich.progress import track

from examples._common.real_inputs import save_timm
from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.speed import unbuilt
from hf_fingerprint import FingerprintConfig, Vault
from hf_fingerprint.training import Fingerprint, FingerprintCallback
from hf_fingerprint.training.processes import is_first_process


MODELS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_base_patch16_224"}
PASSPHRASE = "a passphrase for the benchmark"


class Loop:
    """A model, its optimizer and a batch, with steps with or without the callback's events.

    Args:
        architecture (`str`): a timm architecture.
        batch (`int`): images in a step.
        device (`str`): `"cpu"` or `"cuda"`.
        marked (`bool`): whether to make the fingerprint at all.
        timed (`bool`): whether to sum the seconds of the term, for which a GPU is waited for.
        wrap (callable): wraps the model, for several processes, each of which makes a loop.
    """

    def __init__(
        self,
        architecture: str,
        batch: int,
        device: str,
        marked: bool = True,
        timed: bool = True,
        wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model,
    ):
        torch.manual_seed(0)
        model = timm.create_model(architecture)
        work = Path(tempfile.mkdtemp())
        folder = work / "base"
        if marked and is_first_process():
            save_timm(model, folder)
        self.model = wrap(model.to(device))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.images = torch.randn(batch, *model.default_cfg["input_size"], device=device)
        self.labels = torch.randint(model.num_classes, (batch,), device=device)
        self.device, self.callback = device, None
        if marked:
            vault = Vault.create(work / "vault", PASSPHRASE)
            fingerprint = Fingerprint(
                folder, "alice", vault, FingerprintConfig(amplitude=0.01, expected_recipients=10)
            )
            self.callback = FingerprintCallback(fingerprint, embed=False)
            self.trainer_args = SimpleNamespace(output_dir=str(work / "out"), fp16=False, deepspeed=None)
            with unbuilt():  # the amplitude is fixed, so nothing has to be measured
                self._fire_event("on_train_begin")
            self.term_seconds = 0.0
            for name in ("measure", "add_gradient") if timed else ():
                self._time_method(name)
        shutil.rmtree(work)

    def _time_method(self, name: str) -> None:
        """Sums the seconds that a method of the regularizer takes."""
        assert self.callback is not None
        regularizer = self.callback.regularizer
        method = getattr(regularizer, name)

        def counted(*arguments: object) -> object:
            began = self._now()
            found = method(*arguments)
            self.term_seconds += self._now() - began
            return found

        setattr(regularizer, name, counted)

    def _fire_event(self, event: str) -> None:
        assert self.callback is not None
        getattr(self.callback, event)(self.trainer_args, None, None, model=self.model, optimizer=self.optimizer)

    def steps(self, count: int, marked: bool) -> float:
        """Runs steps, and waits for the device at their end only. Returns their seconds."""
        began = self._now()
        for _ in range(count):
            self._run_step(marked)
        return self._now() - began

    def step(self, marked: bool) -> float:
        """Runs one step and returns its seconds."""
        return self.steps(1, marked)

    def _run_step(self, marked: bool) -> None:
        if marked:
            self._fire_event("on_step_begin")
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            loss = torch.nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        if marked:
            self._fire_event("on_pre_optimizer_step")
        self.optimizer.step()
        if marked:
            self._fire_event("on_optimizer_step")
        self.optimizer.zero_grad()

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def time_ratios(architecture: str, batch: int, device: str, pairs: int) -> tuple[list[float], float]:
    """Returns the ratio of each pair (step with the term / step without), and the term's share of the step time.

    The order within a pair alternates. The share is less affected by noise of a shared machine.
    """
    loop = Loop(architecture, batch, device)
    for _ in range(2):
        loop.step(False), loop.step(True)
    found, loop.term_seconds, total = [], 0.0, 0.0
    for pair in track(range(pairs), description=f"{architecture}, batch {batch}", transient=True):
        seconds = {}
        for marked in (True, False) if pair % 2 else (False, True):
            seconds[marked] = loop.step(marked)
        found.append(seconds[True] / seconds[False])
        total += seconds[True]
    return found, loop.term_seconds / total


def peak_memory(architecture: str, batch: int, device: str, marked: bool) -> int:
    """Returns the peak memory of a few steps in a separate process, in bytes, of the device or of the process."""
    code = (
        "import sys; from examples.benchmarks import training_steps as b; "
        "b.print_peak(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == 'True')"
    )
    command = [sys.executable, "-c", code, architecture, str(batch), device, str(marked)]
    quiet = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # returns freed tensors to the system, so that the peak is the tensors'
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=quiet).stdout.split()[-1])


def print_peak(architecture: str, batch: int, device: str, marked: bool) -> None:
    """Prints the peak over three steps, without the setup of the fingerprint."""
    import resource

    loop = Loop(architecture, batch, device, marked=True)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the process' peak
    for _ in range(3):
        loop.step(marked)
    if device != "cpu":
        print(torch.cuda.max_memory_allocated())
        return
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def training_figures(device: str, batch: int, pairs: int, models: list[str]) -> list[Figure]:
    """Returns time and memory that the callback adds."""
    rows = []
    bound = "<= 1.03" if device == "cpu" else "<= 1.01"
    for title in models:
        architecture = MODELS[title]
        ratios, term_seconds = time_ratios(architecture, batch, device, pairs)
        figure = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f}, {pairs} pairs)"
        figure += f"; own time {term_seconds:.2%}"
        rows.append(
            Figure(f"step with the callback / without, {title}, batch {batch}, V = 65,536, {device}", figure, bound)
        )
    for title in models:
        architecture = MODELS[title]
        largest = max(p.numel() for p in timm.create_model(architecture).parameters()) * 4
        small = min(batch, 8)
        extra = peak_memory(architecture, small, device, True) - peak_memory(architecture, small, device, False)
        figure = f"{extra / 1e6:+.0f} MB (V and the largest tensor: {(4 * 65536 + largest) / 1e6:.0f} MB)"
        what = f"peak memory with the callback, above without, {title}, batch {small}, {device}"
        rows.append(Figure(what, figure, "O(V + largest tensor)"))
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS))
    add_results_option(parser)
    arguments = parser.parse_args()
    figures = training_figures(arguments.device, arguments.batch, arguments.pairs, arguments.models.split(","))
    report(arguments, [figure_table(figures)])


if __name__ == "__main__":
    main()
