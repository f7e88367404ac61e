"""Measures how much faster two processes are than one, by turns: an evaluation of 40 trials, and a list of suspects.

Each process has a core and a thread of its own. Registration and the copies are made before, since one process makes
them; starting the processes is part of the time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from examples._common.real_inputs import fashion_mnist, lite0, save_timm
from examples._common.results import Figure, add_results_option, figure_table, report
from examples._common.training import fine_tune
from examples.benchmarks.speed import PASSPHRASE, ratio
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.evaluation.trials import PRIVATE
from hf_fingerprint.sharing import RESULTS


SIZE, CLASSES, AMPLITUDE = 64, 10, 0.01
ATTACKS = ("prune", "prune-rows", "int", "int-channel", "noise", "low-rank", "clip", "average", "median")
FIRST = ("average",)  # makes the copies


COUNTING = """
import sys, time
import torch
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import build_model
with open_checkpoint(sys.argv[1]) as checkpoint:
    model = build_model(checkpoint).module
images, count = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last), 0
with torch.inference_mode():
    model(images)
    end = time.monotonic() + 15
    while time.monotonic() < end:
        model(images)
        count += len(images)
print(count)
"""


def main() -> None:
    """Runs both by turns and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="the least number of trials")
    parser.add_argument("--suspects", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    add_results_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = shared_rows(Path(folder), arguments.trials, arguments.suspects, arguments.images, arguments.turns)
        report(arguments, [figure_table(rows)])


def shared_rows(out: Path, trials: int, suspects: int, images: int, turns: int) -> list[Figure]:
    """Returns how many times as fast two processes are, and whether each result was written once."""
    model = make_model(out / "model")
    pictures = write_pictures(out / "pictures", images)
    evaluation = ["evaluate", model, "--data", pictures, "--max-images", images, "--out", out / "evaluation"]
    run(1, [*evaluation, "--attacks", ",".join(FIRST)])
    evaluation += ["--attacks", ",".join(ATTACKS)]
    listed = make_suspects(out, model, suspects)
    tracing = ["trace-all", listed, "--vault", out / "vault", "--passphrase-file", out / "passphrase"]
    tracing += ["--out", out / "results"]
    run(1, tracing)  # the first trace unseals the copy keys
    alone: dict[str, list[float]] = {"evaluate": [], "trace-all": []}
    shared: dict[str, list[float]] = {"evaluate": [], "trace-all": []}
    counts: dict[str, int] = {}
    for _ in range(turns):
        for name, command, results in (
            ("evaluate", evaluation, out / "evaluation" / PRIVATE / RESULTS),
            ("trace-all", tracing, out / "results" / RESULTS),
        ):
            for processes, seconds in ((1, alone[name]), (2, shared[name])):
                results.unlink(missing_ok=True)
                seconds.append(run(processes, command))
                counts[name] = check_results(results)
            print(f"{name}: {alone[name][-1]:.0f} s alone, {shared[name][-1]:.0f} s with two", file=sys.stderr)
    if counts["evaluate"] < trials:
        raise SystemExit(f"{counts['evaluate']} trials are fewer than {trials}: choose more attacks.")
    gain = statistics.median(a / b for a, b in zip(alone["evaluate"], shared["evaluate"], strict=True))
    names = {"evaluate": f"evaluate, {counts['evaluate']} trials", "trace-all": f"trace-all, {suspects} suspects"}
    evaluated, traced = (f"{names[each]}: one process / two" for each in names)
    return [
        Figure(evaluated, ratio(alone["evaluate"], shared["evaluate"]), ">= 1.8", gain >= 1.8),
        Figure(traced, ratio(alone["trace-all"], shared["trace-all"]), "reported"),
        Figure("the model on two cores at once / on one, images classified", machine_limit(model), "reported"),
    ]


def run(processes: int, command: Sequence[object]) -> float:
    """Returns the seconds that a command takes in so many processes, each on a core of its own."""
    started = time.perf_counter()
    launched = [
        subprocess.Popen(
            [sys.executable, "-m", "hf_fingerprint", *map(str, command)],
            env=os.environ | _launch_environment(rank, processes),
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda core=rank: os.sched_setaffinity(0, {core}),
        )
        for rank in range(processes)
    ]
    if failed := [process.returncode for process in launched if process.wait() not in (0, 1)]:
        raise SystemExit(f"{command[0]} ended with {failed[0]}.")
    return time.perf_counter() - started


def _launch_environment(rank: int, processes: int) -> dict[str, str]:
    """What a launcher sets for a process."""
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes} if processes > 1 else {}
    return {name: str(value) for name, value in {**launch, "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}.items()}


def machine_limit(model: Path) -> str:
    """Returns how many times as fast two processes are that share nothing, by the images that they classify."""
    alone, both = (count_images(model, cores) for cores in ((0,), (0, 1)))
    return f"{both / alone:.2f}"


def count_images(model: Path, cores: Sequence[int]) -> int:
    """Returns how many images one process on each core classifies in some seconds, in all."""
    launched = [
        subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-c", COUNTING, str(model)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in cores
    ]
    return sum(int(process.communicate()[0]) for process in launched)


def check_results(file: Path) -> int:
    """Returns the number of results in a file, each of which must be there once."""
    keys = [json.loads(line)["key"] for line in file.read_bytes().splitlines()]
    if len(keys) != len(set(keys)):
        raise SystemExit(f"{len(keys) - len(set(keys))} results were written twice.")
    return len(keys)


def make_model(folder: Path, size: int = SIZE) -> Path:
    """Saves EfficientNet-Lite0 with its ImageNet weights and a head for the classes of the pictures."""
    model = lite0()
    model.reset_classifier(CLASSES)
    fine_tune(model, *fashion_mnist(True, 512, size), lr=1e-3, steps=8)
    model.pretrained_cfg.update(input_size=(3, size, size), crop_pct=1.0)
    return save_timm(model, folder)


def write_pictures(folder: Path, count: int, size: int = SIZE) -> Path:
    """Writes test images as files, in a folder for each class."""
    from PIL import Image

    for number, (image, label) in enumerate(zip(*fashion_mnist(False, 2 * count, size), strict=True)):
        place = folder / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        pixels = (image * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{number:05}.png")
    return folder


def make_suspects(out: Path, model: Path, count: int) -> Path:
    """Writes a list of suspects, which are four copies over and over, each in a folder of its own."""
    (out / "passphrase").write_text(PASSPHRASE)
    vault = Vault.create(out / "vault", PASSPHRASE)
    with Issuer(model, vault, FingerprintConfig(amplitude=AMPLITUDE)) as issuer:
        copies = [copy.path for copy in issuer.issue_all([f"r{n}" for n in range(4)], out / "copies")]
    folders = [shutil.copytree(copies[n % 4], out / "suspects" / str(n), copy_function=os.link) for n in range(count)]
    listed = out / "suspects.txt"
    listed.write_text("\n".join(map(str, folders)) + "\n")
    return listed


if __name__ == "__main__":
    main()
