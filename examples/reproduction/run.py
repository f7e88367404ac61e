"""Reproduces DeepMarks on real images and compares it with `spread`: one table and its plots.

    python -m examples.reproduction.run --out reproduction_output

The data are Fashion-MNIST and not the paper's MNIST and CIFAR-10, so no figure is the paper's. Every task (a model, a
mode, a seed) is stored as JSON when it is done; run the command again to resume.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from examples._common.real_inputs import Images
from examples._common.results import add_results_option, report
from examples._common.training import accuracy
from examples.reproduction.arms import PASSPHRASE, ArmVerdict, make_arm
from examples.reproduction.models import Architecture, architectures, load_images, train
from examples.reproduction.report import make_tables
from hf_fingerprint import Vault
from hf_fingerprint.attacks import MagnitudePruning, collude


ARMS = ("unmarked", "deepmarks", "toolbox", "spread")
PRUNING = (0.2, 0.4, 0.6, 0.8)
ATTACKER_LR = (1e-4, 1e-3, 5e-3)
COLLUDERS = 5
IMAGES_UNDER_ATTACK = 1000
Record = dict[str, Any]


def tasks(chosen: list[str], seeds: int | None) -> Iterator[tuple[str, str, int]]:
    """Yields all `(model, mode, seed)`, the longest first."""
    for key in sorted(chosen, reverse=True):
        shape = architectures()[key]
        for mode in shape.modes:
            for seed in range(min(seeds or shape.seeds, shape.seeds)):
                yield key, mode, seed


def run_task(key: str, mode: str, seed: int, out: Path, data: str, quick: float) -> list[Record]:
    """Returns all rows of one model, mode and seed: trains every arm from the same start and attacks it.

    Args:
        quick (`float`): a factor on the steps of every training, for trials; far below 1 also on the images.
    """
    shape = architectures()[key]
    few = min(1.0, 20 * quick)
    count = round(few * (20000 if key == "lite0" else 60000))
    images = load_images(data, shape.size, shape.channels, count, round(few * shape.test))
    counts = (shape.steps, shape.owner_steps, shape.tune_steps)
    steps, owner, tune = (max(3, round(quick * count)) for count in counts)
    began = 0 if key == "lite0" else seed  # ImageNet weights: one base for all seeds
    start = starting_point(shape, images, began, out / "starts" / f"{key}-{began}.pt", steps, mode)
    length, lr = (steps, shape.lr) if mode == "scratch" else (owner, shape.owner_lr)
    work = out / "work" / f"{key}-{mode}-{seed}"
    shutil.rmtree(work, ignore_errors=True)
    vault = Vault.create(work / "vault", PASSPHRASE)
    vault.unlock(PASSPHRASE)
    records: list[Record] = []

    def note(arm: str, attack: str, level: float, model: nn.Module, verdict: ArmVerdict | None, users: int) -> None:
        test = images.test if attack == "none" else tuple(part[:IMAGES_UNDER_ATTACK] for part in images.test)
        common = {"model": key, "mode": mode, "seed": seed, "attack": attack, "level": level}
        common |= {"accuracy": accuracy(model, *test), "colluders": users}
        if verdict is None:
            records.append(common | {"arm": arm})
            return
        for decoder, named in verdict.named.items():
            caught = len({user for user in named if user < users})
            found = {"arm": decoder, "caught": caught, "innocents": len(named) - caught}
            records.append(common | found | {"wrong": verdict.wrong, "bits": verdict.bits, "score": verdict.score})

    for name in ARMS:
        if name == "toolbox" and seed >= shape.attacked:
            continue
        model = copy.deepcopy(start)
        if name == "unmarked":
            note(name, "none", 0, train(model, images, length, lr, shape.batch, seed), None, 0)
            continue
        arm = make_arm(name, start, seed, vault, work / name, shape, mode == "scratch")
        train(model, images, length, lr, shape.batch, seed, arm.term(model, 0))
        note(name, "none", 0, model, arm.decode_suspect(model), 1)
        if seed >= shape.attacked:
            continue
        for sparsity in PRUNING:
            pruned = with_state(model, MagnitudePruning(sparsity)(model.state_dict()))
            note(name, "pruned", sparsity, pruned, arm.decode_suspect(pruned), 1)
        for attacker_lr in ATTACKER_LR:
            tuned = train(copy.deepcopy(model), images, tune, attacker_lr, shape.batch, seed + 100)
            note(name, "fine-tuned", attacker_lr, tuned, arm.decode_suspect(tuned), 1)
        other = make_arm(name, model, seed + 1000, vault, work / f"{name} again", shape, False)
        over = copy.deepcopy(model)
        train(over, images, tune, shape.tune_lr, shape.batch, seed + 200, other.term(over, 7))
        note(name, "overwritten", 1, over, arm.decode_suspect(over), 1)
        if name != "toolbox" and (mode == "fine-tuned" or seed == 0):
            copies = [model.state_dict()]
            for user in range(1, COLLUDERS):
                copy_model = copy.deepcopy(start)
                copies.append(
                    train(copy_model, images, length, lr, shape.batch, seed, arm.term(copy_model, user)).state_dict()
                )
                mixed = with_state(start, collude(copies, "average"))
                note(name, "averaged", user + 1, mixed, arm.decode_suspect(mixed), user + 1)
    shutil.rmtree(work)
    return records


def starting_point(shape: Architecture, images: Images, seed: int, file: Path, steps: int, mode: str) -> nn.Module:
    """Returns the initialization (from scratch) or the owner's trained model (fine-tuned), kept between tasks."""
    torch.manual_seed(seed)
    model = shape.make()
    if mode == "fine-tuned":
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            train(model, images, steps, shape.lr, shape.batch, seed)
            partial = file.with_name(f".{file.name}.{os.getpid()}")
            torch.save(model.state_dict(), partial)
            partial.rename(file)
        model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def with_state(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Returns a copy of the model with other weights."""
    changed = copy.deepcopy(model)
    changed.load_state_dict(state)
    return changed.eval()


def main() -> None:
    """Runs all open tasks in parallel, and writes the table and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reproduction_output"))
    parser.add_argument("--data", choices=["fashion_mnist", "mnist", "cifar10"], default="fashion_mnist")
    parser.add_argument("--models", default="cnn,wrn,lite0")
    parser.add_argument("--seeds", type=int, help="at most this many, for trials")
    parser.add_argument("--quick", type=float, default=1.0, help="factor on all steps, for trials")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--task", nargs=3, metavar=("MODEL", "MODE", "SEED"), help="run one task (internal)")
    add_results_option(parser)
    arguments = parser.parse_args()
    done = arguments.out / "tasks"
    done.mkdir(parents=True, exist_ok=True)
    if arguments.task:
        key, mode, seed = arguments.task
        torch.set_num_threads(1)
        records = run_task(key, mode, int(seed), arguments.out, arguments.data, arguments.quick)
        partial = done / f".{key}-{mode}-{seed}"
        partial.write_text(json.dumps(records))
        partial.rename(done / f"{key}-{mode}-{seed}.json")
        return
    everything = list(tasks(arguments.models.split(","), arguments.seeds))
    left = [task for task in everything if not (done / "{}-{}-{}.json".format(*task)).exists()]
    with Progress(disable=not sys.stderr.isatty()) as bar:
        counted = bar.add_task("training and attacking", total=len(everything), completed=len(everything) - len(left))
        options = ["--out", str(arguments.out), "--data", arguments.data, "--quick", str(arguments.quick)]

        def run(task: tuple[str, str, int]) -> int:
            return subprocess.run(
                [sys.executable, "-m", "examples.reproduction.run", *options, "--task", *map(str, task)]
            ).returncode

        with ThreadPoolExecutor(arguments.workers) as pool:
            for finished in as_completed([pool.submit(run, task) for task in left]):
                if finished.result():
                    pool.shutdown(cancel_futures=True)
                    sys.exit("A task failed, see its output above. Run the command again to resume.")
                bar.advance(counted)
    records = [json.loads((done / "{}-{}-{}.json".format(*task)).read_text()) for task in everything]
    report(arguments, make_tables([row for rows in records for row in rows], arguments.out, arguments.data))


if __name__ == "__main__":
    main()
