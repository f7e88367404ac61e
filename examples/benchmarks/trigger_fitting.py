"""Measures how long a trigger image takes to fit, and what copies then predict.

EfficientNet-Lite0 at 64 pixels, fine-tuned on Fashion-MNIST, as in `blackbox.py`, which also measures whom the labels
accuse. `--out` keeps the base for another run.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples._common.results import Figure, add_results_option, figure_table, report
from examples._common.training import accuracy, fine_tune, predict
from examples.benchmarks.blackbox import COVER_IMAGE_COUNT, Setting, fashion, make_base, write_cover_images
from hf_fingerprint.attacks import MagnitudePruning, Quantization
from hf_fingerprint.blackbox.trigger_set import build
from hf_fingerprint.blackbox.trigger_set.optimize import optimize_patterns
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import BuiltModel, build_model, map_parameter_names


VIEWS, SECRET = 4, bytes(range(32))
State = dict[str, torch.Tensor]
ATTACKS = {
    "as issued": lambda state: state,
    "int8": Quantization(8),
    "pruned 50 %, each tensor": MagnitudePruning(0.5),
    "pruned 50 %, all tensors together": MagnitudePruning(0.5, scope="global"),
}


@dataclass
class Fitted:
    """A base with a trigger set, and the seconds that its patterns took."""

    built: BuiltModel
    trigger_set: TriggerSet
    seconds: float


def main() -> None:
    """Fits a trigger set and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("fitting_output"))
    parser.add_argument("--keys", type=int, default=6, help="copies to try")
    add_results_option(parser)
    arguments = parser.parse_args()
    setting = Setting()
    task = fashion(setting)
    arguments.out.mkdir(exist_ok=True)
    if not (arguments.out / "base").exists():
        make_base(arguments.out / "base", task, setting.training)
    images = write_cover_images(task.train[0][-COVER_IMAGE_COUNT:], arguments.out / "cover images")
    fitted = fit(arguments.out / "base", images)
    rows = fitting_rows(fitted, (task.test[0][:2000], task.test[1][:2000]), task.attacker, arguments.keys)
    report(arguments, [figure_table(rows)])


def fit(base: Path, images: Path | None, **sizes: int) -> Fitted:
    """Makes the trigger set of a base."""
    seconds: list[float] = []

    def timed(*given: object) -> torch.Tensor:
        started = time.perf_counter()
        patterns = optimize_patterns(*given)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - started)
        return patterns

    with open_checkpoint(base) as checkpoint:
        built = build_model(checkpoint)
        names = map_parameter_names(built.module, checkpoint)
    build.optimize_patterns = timed
    try:
        trigger_set = build.build_trigger_set(built, names, SECRET, "00" * 8, images, **sizes)
    finally:
        build.optimize_patterns = optimize_patterns
    return Fitted(built, trigger_set, seconds[0])


def fitting_rows(
    fitted: Fitted, test: tuple[torch.Tensor, torch.Tensor], attacker: tuple[torch.Tensor, torch.Tensor], keys: int
) -> list[Figure]:
    """Returns the time for each trigger and view, the recall of copies and attacked copies, and what accuracy they
    lose."""
    triggers, model = fitted.trigger_set, fitted.built.module
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = [fitted.built.preprocess(Image.fromarray(image)) for image in triggers.images(SECRET)[: triggers.count]]
    before, recalls, lost = accuracy(model, *test), {name: [] for name in (*ATTACKS, "fine-tuned")}, []
    for number in range(keys):
        key = (1000 + number).to_bytes(32, "big")
        labels, assigned = (each[0] for each in triggers.assigned_labels([key]))
        copy = dict(state)
        copy[triggers.head] = copy[triggers.head] + torch.from_numpy(triggers.head_update(key)).view_as(
            copy[triggers.head]
        )

        def recall(labels: np.ndarray = labels, assigned: np.ndarray = assigned) -> float:
            return float((predict(model, torch.stack(inputs)).numpy() == labels)[assigned].mean())

        for name, attack in ATTACKS.items():
            model.load_state_dict(attack(copy))
            recalls[name].append(recall())
            if name == "as issued":
                lost.append(before - accuracy(model, *test))
        if number < -(-keys // 2):
            model.load_state_dict(copy)
            fine_tune(model.requires_grad_(True), *attacker, lr=1e-4, steps=20, seed=number)
            recalls["fine-tuned"].append(recall())
    model.load_state_dict(state)
    each = fitted.seconds / triggers.count / VIEWS
    rows = [
        Figure(
            f"fitting a trigger in one view, {torch.get_num_threads()} threads",
            f"{each:.3f} s",
            "<= 0.1 s",
            each <= 0.1,
        )
    ]
    rows += [
        Figure(f"assigned labels that copies predict, {name}", f"{np.mean(values):.1%}", "reported")
        for name, values in recalls.items()
    ]
    points = f"{100 * np.mean(lost):.2f} / {100 * max(lost):.2f} points"
    return [*rows, Figure("accuracy that copies lose, in the mean / at worst", points, "reported")]


if __name__ == "__main__":
    main()
