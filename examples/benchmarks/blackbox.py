"""Measures how many trigger labels survive attacks, and whom they accuse, from labels only.

EfficientNet-Lite0 has its ImageNet weights and images of 64 pixels. The vault has 1,000 recipients; innocents are
counted too.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import digits, fashion_mnist, lite0, save_timm
from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples._common.training import accuracy, fine_tune, predict
from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.attacks import Collusion, MagnitudePruning, Quantization
from hf_fingerprint.blackbox.querying.e_process import EProcess
from hf_fingerprint.blackbox.trigger_set.build import COUNT, STEPS, make_trigger_set
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import build_model
from hf_fingerprint.vault import Base


SIZE, PASSPHRASE = 64, "a passphrase for the benchmark"
COVER_IMAGE_COUNT, CLASSES = 4096, 10  # unlabeled images of the owner
ACCURACY_IMAGES = 1000  # images to measure a suspect's accuracy on
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """Images of the owner, of the attacker and for the test, shape `(n, 3, SIZE, SIZE)`, with their classes."""

    train: tuple[torch.Tensor, torch.Tensor]
    attacker: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """The size of a run."""

    copies: int = 20
    recipients: int = 1000
    innocents: int = 100_000
    trigger_count: int = COUNT
    trigger_steps: int = STEPS
    training: int = 300
    fine_tuned_copies: int = 20  # copies fine-tuned at 1e-4; a quarter of them at 1e-3
    fine_tuning_steps: int = 100  # steps
    test: int = 10_000
    coalitions: int = 6  # of each size


QUICK = Setting(3, 50, 2000, 24, 8, 6, 1, 2, 200, 1)


def fashion(setting: Setting) -> Task:
    """Returns the task on Fashion-MNIST."""
    images, labels = fashion_mnist(True, 34_096, SIZE)
    return Task(
        (images[:24_096], labels[:24_096]),
        (images[24_096:], labels[24_096:]),
        fashion_mnist(False, setting.test, SIZE),
    )


def digits_task(setting: Setting) -> Task:
    """Returns the task on scikit-learn's digits: few images, and easy."""
    images, labels = digits(SIZE)
    return Task((images[:1000], labels[:1000]), (images[1000:1300], labels[1000:1300]), (images[1300:], labels[1300:]))


TASKS: dict[str, Callable[[Setting], Task]] = {"fashion-mnist": fashion, "digits": digits_task}


class Testbed:
    """A base with a trigger set, and a vault with many recipients, some of whom have copies."""

    def __init__(self, out: Path, task: Task, setting: Setting, cover_images: bool):
        self.task, self.setting = task, setting
        self.folder = out / "base"
        if not self.folder.exists():
            make_base(self.folder, task, setting.training)
        if not (out / "vault").exists():
            begun = time.perf_counter()
            self._prepare(out, cover_images)
            print(f"trigger set made in {time.perf_counter() - begun:.0f} s", flush=True)
        self.vault = Vault(out / "vault")
        self.vault.unlock(PASSPHRASE)
        (self.base,) = self.vault.bases()
        self.trigger_set = TriggerSet.from_bytes(self.vault.trigger_set(self.base) or b"")
        self.paths = [out / "copies" / f"recipient-{i}" for i in range(setting.copies)]
        self.records = self.vault.copies(self.base.base_id)
        self.keys = self.vault.copy_keys(self.records)
        with open_checkpoint(self.folder) as checkpoint:
            self.built = build_model(checkpoint)
        pictures = [Image.fromarray(image) for image in self.trigger_set.images(self.base.secret)]
        self.inputs = torch.stack([self.built.preprocess(picture) for picture in pictures])

    def _prepare(self, out: Path, cover_images: bool) -> None:
        vault, setting = Vault.create(out / "vault.part", PASSPHRASE), self.setting
        with Issuer(self.folder, vault, FingerprintConfig(expected_recipients=setting.recipients)) as issuer:
            base: Base = issuer.base
        images = (
            write_cover_images(self.task.train[0][-COVER_IMAGE_COUNT:], out / "cover images") if cover_images else None
        )
        make_trigger_set(base.base_id, vault, images, setting.trigger_count, steps=setting.trigger_steps)
        names = [f"recipient-{i}" for i in range(setting.copies)]
        shutil.rmtree(out / "copies", ignore_errors=True)
        with Issuer(self.folder, vault) as issuer:
            begun = time.perf_counter()
            issued = list(issuer.issue_all(names, out / "copies"))
            print(f"issued and bound in {(time.perf_counter() - begun) / len(issued):.2f} s each", flush=True)
        for i in track(range(setting.copies, setting.recipients), description="further recipients", transient=True):
            record, key = vault.begin_copy(base, f"recipient-{i}", out / "elsewhere" / str(i))
            vault.mark_issued(vault.mark_written(record, key, "0" * 64).copy_id)
        (out / "vault.part").rename(out / "vault")

    def model(self, state: State) -> torch.nn.Module:
        """Returns the base's model with other weights."""
        self.built.module.load_state_dict(state)
        return self.built.module.eval()

    def predicted_labels(self, state: State) -> np.ndarray:
        """Returns the labels that a suspect predicts for the trigger images."""
        return predict(self.model(state), self.inputs).numpy()[: self.trigger_set.count]

    def e_process(self, keys: list[bytes]) -> EProcess:
        """Returns a new e-process for these recipients."""
        return EProcess(
            keys, self.trigger_set.count, self.trigger_set.classes, assigned_share=self.trigger_set.assigned_share
        )

    def accused(self, predicted: np.ndarray, keys: list[bytes], until_proven: bool = False) -> tuple[set[int], int]:
        """Returns whom a suspect's predicted labels accuse, and how many queries it took, in a random order."""
        e_process = self.e_process(keys)
        for queried, trigger in enumerate(np.random.default_rng(0).permutation(len(predicted)), 1):
            e_process.update(int(trigger), int(predicted[trigger]))
            if until_proven and queried % 5 == 0 and len(e_process.accused()):
                return set(e_process.accused().tolist()), queried
        return set(e_process.accused().tolist()), len(predicted)


def make_base(folder: Path, task: Task, steps: int) -> None:
    """Saves EfficientNet-Lite0 with its ImageNet weights, fine-tuned on the task."""
    torch.manual_seed(0)
    model = lite0()
    model.reset_classifier(CLASSES)
    for part, lr in enumerate((1e-3, 5e-4, 1e-4)):
        fine_tune(model, *task.train, lr=lr, steps=steps // 3, seed=part, label="the owner trains the base")
    model.pretrained_cfg.update(input_size=(3, SIZE, SIZE), crop_pct=1.0)
    save_timm(model, folder)


def write_cover_images(images: torch.Tensor, folder: Path) -> Path:
    """Writes images in [-1, 1] as files, and returns the folder."""
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray((image * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")
    return folder


def suspects(testbed: Testbed) -> Iterator[tuple[str, list[int], State]]:
    """Yields suspects as `(description, contributors, weights)`."""
    setting, task = testbed.setting, testbed.task
    states = [load_file(path / "model.safetensors") for path in testbed.paths]
    attacks: dict[str, Callable[[State], State]] = {
        "untouched": lambda state: state,
        "int8": Quantization(8),
        "pruned 50 %, all tensors together": MagnitudePruning(0.5, scope="global"),
        "pruned 50 %, each tensor": MagnitudePruning(0.5),
    }
    for name, attack in attacks.items():
        for contributor, state in enumerate(states):
            yield name, [contributor], attack(state)
    for lr, copies in (
        (1e-4, setting.fine_tuned_copies),
        (3e-4, -(-setting.fine_tuned_copies // 4)),
        (1e-3, -(-setting.fine_tuned_copies // 4)),
    ):
        for contributor in range(copies):
            model = fine_tune(
                testbed.model(states[contributor]),
                *task.attacker,
                lr=lr,
                steps=setting.fine_tuning_steps,
                seed=contributor,
            )
            yield f"fine-tuned at {lr:.0e}", [contributor], {k: v.clone() for k, v in model.state_dict().items()}
    rng = np.random.default_rng(1)
    for size in (2, 3, 5):
        for strategy in ("average", "random pick", "layers"):
            for trial in range(setting.coalitions):
                contributors = rng.choice(len(states), min(size, len(states)), replace=False).tolist()
                mixed = Collusion(strategy, seed=trial)([states[contributor] for contributor in contributors])
                yield f"{strategy} of {size}", contributors, mixed
    base = load_file(testbed.folder / "model.safetensors")
    yield "the base", [], base
    yield "the base in int8", [], Quantization(8)(base)
    fine_tuned = fine_tune(testbed.model(base), *task.attacker, lr=1e-4, steps=setting.fine_tuning_steps)
    yield "the base fine-tuned", [], {k: v.clone() for k, v in fine_tuned.state_dict().items()}
    torch.manual_seed(1)
    other = lite0()
    other.reset_classifier(CLASSES)
    yield "another model", [], fine_tune(other, *task.attacker, lr=1e-3, steps=setting.training // 3).state_dict()


def weight_scores(testbed: Testbed, contributor: int, out: Path) -> tuple[float, float]:
    """Returns the score of a copy's weights, without and with its head update."""
    plain = out / "without_head_update"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(testbed.paths[contributor], plain)
    state = load_file(plain / "model.safetensors")
    change = torch.from_numpy(testbed.trigger_set.head_update(testbed.keys[contributor]))
    state[testbed.trigger_set.head] = state[testbed.trigger_set.head] - change.reshape(
        state[testbed.trigger_set.head].shape
    )
    save_file(state, plain / "model.safetensors", {"format": "pt"})
    found = [trace(path, testbed.vault).accused[0].score for path in (plain, testbed.paths[contributor])]
    return found[0], found[1]


@dataclass
class Row:
    """Suspects of one kind: a line of the table."""

    label_recall: list[float]  # shares of the contributors' trigger labels that were predicted
    accused_counts: list[int]  # contributors accused
    contributors: list[int]
    queried: list[int]  # triggers queried until a recipient was accused
    accuracies: list[float]  # of the first few
    innocents: int = 0  # accused, over all suspects

    def cells(self) -> tuple[str, ...]:
        """Returns the cells of the table."""
        accused = np.array(self.accused_counts)
        some, all_ = accused > 0, accused == np.maximum(self.contributors, 1)
        recall = f"{np.mean(self.label_recall):.0%}" if max(self.contributors) else "-"
        return (
            *(f"{len(accused)}", f"{some.mean():.0%}", f"{all_.mean():.0%}", recall),
            *(f"{np.mean(self.queried):.0f}", f"{self.innocents}", f"{np.mean(self.accuracies):.1%}"),
        )


def measure(testbed: Testbed) -> dict[str, Row]:
    """Returns a row for each kind of suspect, tested against the vault's recipients and against never-issued keys."""
    stream = np.random.default_rng(7)
    innocents = [stream.bytes(32) for _ in range(testbed.setting.innocents)]
    test = tuple(part[:ACCURACY_IMAGES] for part in testbed.task.test)
    rows: dict[str, Row] = {}
    for name, contributors, state in suspects(testbed):
        predicted = testbed.predicted_labels(state)
        accused, _ = testbed.accused(predicted, testbed.keys)
        labels, assigned = testbed.trigger_set.assigned_labels([testbed.keys[each] for each in contributors])
        row = rows.setdefault(name, Row([], [], [], [], []))
        row.label_recall.append(float((labels == predicted)[assigned].mean()) if contributors else 0.0)
        row.accused_counts.append(len(accused & set(contributors)))
        row.contributors.append(len(contributors))
        row.queried.append(testbed.accused(predicted, testbed.keys, until_proven=True)[1])
        row.innocents += len(accused - set(contributors)) + len(testbed.accused(predicted, innocents)[0])
        if len(row.accuracies) < 3:
            row.accuracies.append(accuracy(testbed.model(state), *test))
        print(
            f"{name}: {row.label_recall[-1]:.0%} of labels, {row.accused_counts[-1]} of {len(contributors)} accused",
            flush=True,
        )
    return rows


def tables(testbed: Testbed, out: Path) -> list[Table]:
    """Measures everything and returns the tables."""
    setting, test = testbed.setting, testbed.task.test
    plain = accuracy(testbed.model(load_file(testbed.folder / "model.safetensors")), *test)
    bound = [accuracy(testbed.model(load_file(path / "model.safetensors")), *test) for path in testbed.paths]
    scores = [weight_scores(testbed, contributor, out) for contributor in range(min(5, setting.copies))]
    kept = [after / before for before, after in scores]
    figures = [
        Figure(
            f"accuracy of the base / of {len(bound)} copies in the mean / of the worst, {len(test[1]):,} test images",
            f"{plain:.2%} / {np.mean(bound):.2%} / {min(bound):.2%}",
            "within 0.3 points, and above 95 % of the base's",
        ),
        Figure(
            f"score of the weight mark with a bound head / without, {len(kept)} copies: in the mean / the lowest",
            f"{np.mean(kept):.1%} / {min(kept):.1%}",
            ">= 95 %",
        ),
    ]
    columns = ("suspect", "n", "any contributor accused", "all contributors", "trigger labels predicted", "queries")
    columns += ("innocents accused", "accuracy")
    rows = tuple((name, *row.cells()) for name, row in measure(testbed).items())
    return [figure_table(figures), Table("suspects", "", columns, rows)]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_output/blackbox"), help="where to work")
    parser.add_argument("--task", choices=TASKS, default="fashion-mnist")
    parser.add_argument(
        "--no-cover-images", action="store_true", help="make the trigger set without the owner's images"
    )
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    add_results_option(parser)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    setting = QUICK if chosen.quick else Setting()
    testbed = Testbed(chosen.out, TASKS[chosen.task](setting), setting, not chosen.no_cover_images)
    report(chosen, tables(testbed, chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
