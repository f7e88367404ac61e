"""What remains of a recipient's answers after what thieves do: EfficientNet-Lite0 with real weights and images at 64
pixels, among 1,000 recipients, with labels only, innocents counted."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import digits, fashion_mnist, lite0, save_timm
from examples._common.training import accuracy, fine_tune, predict
from hf_fingerprint import Issuer, Settings, Vault, trace
from hf_fingerprint.attacks import Collusion, MagnitudePruning, Quantization
from hf_fingerprint.blackbox.querying.e_process import Evidence
from hf_fingerprint.blackbox.trigger_set.build import COUNT, STEPS, prepare_questions
from hf_fingerprint.blackbox.trigger_set.triggers import Questions
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import build_model
from hf_fingerprint.vault import Base


SIZE, PASSPHRASE = 64, "a passphrase for the benchmark"
PHOTOS, CLASSES = 4096, 10  # unlabelled images of the owner's
CHECKED = 1000  # images that a suspect's accuracy is measured on
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """Images for the owner, the thief and the test, `(n, 3, SIZE, SIZE)`, and their classes."""

    train: tuple[torch.Tensor, torch.Tensor]
    thief: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """How large a run is."""

    copies: int = 20
    recipients: int = 1000
    innocents: int = 100_000
    questions: int = COUNT
    fitting: int = STEPS
    training: int = 300
    tuned: int = 20  # copies fine-tuned at 1e-4; a quarter of them at 1e-3
    tuning: int = 100  # steps
    test: int = 10_000
    coalitions: int = 6  # of each size


QUICK = Setting(3, 50, 2000, 24, 8, 6, 1, 2, 200, 1)


def fashion(setting: Setting) -> Task:
    """Fashion-MNIST."""
    images, labels = fashion_mnist(True, 34_096, SIZE)
    return Task(
        (images[:24_096], labels[:24_096]),
        (images[24_096:], labels[24_096:]),
        fashion_mnist(False, setting.test, SIZE),
    )


def handwriting(setting: Setting) -> Task:
    """scikit-learn's digits: few, and easy."""
    images, labels = digits(SIZE)
    return Task((images[:1000], labels[:1000]), (images[1000:1300], labels[1000:1300]), (images[1300:], labels[1300:]))


TASKS: dict[str, Callable[[Setting], Task]] = {"fashion-mnist": fashion, "digits": handwriting}


class Scene:
    """A base with questions, a vault with many recipients of whom some hold copies, and what thieves make of these."""

    def __init__(self, out: Path, task: Task, setting: Setting, photos: bool):
        self.task, self.setting = task, setting
        self.folder = out / "base"
        if not self.folder.exists():
            make_base(self.folder, task, setting.training)
        if not (out / "vault").exists():
            begun = time.perf_counter()
            self._prepare(out, photos)
            print(f"questions fitted in {time.perf_counter() - begun:.0f} s", flush=True)
        self.vault = Vault(out / "vault")
        self.vault.unlock(PASSPHRASE)
        (self.base,) = self.vault.bases()
        self.asked = Questions.from_bytes(self.vault.questions(self.base) or b"")
        self.paths = [out / "copies" / f"recipient-{i}" for i in range(setting.copies)]
        self.records = self.vault.copies(self.base.base_id)
        self.keys = self.vault.copy_keys(self.records)
        with open_checkpoint(self.folder) as checkpoint:
            self.built = build_model(checkpoint)
        pictures = [Image.fromarray(image) for image in self.asked.images(self.base.secret)]
        self.inputs = torch.stack([self.built.preprocess(picture) for picture in pictures])

    def _prepare(self, out: Path, photos: bool) -> None:
        vault, setting = Vault.create(out / "vault.part", PASSPHRASE), self.setting
        with Issuer(self.folder, vault, Settings(recipients_planned=setting.recipients)) as issuer:
            base: Base = issuer.base
        images = write_photos(self.task.train[0][-PHOTOS:], out / "photos") if photos else None
        prepare_questions(base.base_id, vault, images, setting.questions, steps=setting.fitting)
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
        """The base's model with other weights."""
        self.built.module.load_state_dict(state)
        return self.built.module.eval()

    def answers(self, state: State) -> np.ndarray:
        """The classes that a suspect tells the questions."""
        return predict(self.model(state), self.inputs).numpy()[: self.asked.count]

    def evidence(self, keys: list[bytes]) -> Evidence:
        """Of the base's questions against recipients."""
        return Evidence(keys, self.asked.count, self.asked.classes, share=self.asked.share)

    def accused(self, answers: np.ndarray, keys: list[bytes], until_proven: bool = False) -> tuple[set[int], int]:
        """Whom a suspect's answers accuse, and how many of them it took; in an order drawn anew."""
        evidence = self.evidence(keys)
        for asked, question in enumerate(np.random.default_rng(0).permutation(len(answers)), 1):
            evidence.hear(int(question), int(answers[question]))
            if until_proven and asked % 5 == 0 and len(evidence.accused()):
                return set(evidence.accused().tolist()), asked
        return set(evidence.accused().tolist()), len(answers)


def make_base(folder: Path, task: Task, steps: int) -> None:
    """EfficientNet-Lite0, ImageNet weights, fine-tuned on the task."""
    torch.manual_seed(0)
    model = lite0()
    model.reset_classifier(CLASSES)
    for part, lr in enumerate((1e-3, 5e-4, 1e-4)):
        fine_tune(model, *task.train, lr=lr, steps=steps // 3, seed=part, label="the owner trains the base")
    model.pretrained_cfg.update(input_size=(3, SIZE, SIZE), crop_pct=1.0)
    save_timm(model, folder)


def write_photos(images: torch.Tensor, folder: Path) -> Path:
    """Normalised images as files."""
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray((image * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")
    return folder


def suspects(scene: Scene) -> Iterator[tuple[str, list[int], State]]:
    """What is found in the wild: `(what it is, the givers, its weights)`."""
    setting, task = scene.setting, scene.task
    states = [load_file(path / "model.safetensors") for path in scene.paths]
    attacks: dict[str, Callable[[State], State]] = {
        "untouched": lambda state: state,
        "int8": Quantization(8),
        "pruned 50 %, all tensors together": MagnitudePruning(0.5, scope="global"),
        "pruned 50 %, each tensor": MagnitudePruning(0.5),
    }
    for name, attack in attacks.items():
        for giver, state in enumerate(states):
            yield name, [giver], attack(state)
    for lr, copies in ((1e-4, setting.tuned), (3e-4, -(-setting.tuned // 4)), (1e-3, -(-setting.tuned // 4))):
        for giver in range(copies):
            model = fine_tune(scene.model(states[giver]), *task.thief, lr=lr, steps=setting.tuning, seed=giver)
            yield f"fine-tuned at {lr:.0e}", [giver], {k: v.clone() for k, v in model.state_dict().items()}
    rng = np.random.default_rng(1)
    for size in (2, 3, 5):
        for strategy in ("average", "random pick", "layers"):
            for trial in range(setting.coalitions):
                givers = rng.choice(len(states), min(size, len(states)), replace=False).tolist()
                mixed = Collusion(strategy, seed=trial)([states[giver] for giver in givers])
                yield f"{strategy} of {size}", givers, mixed
    base = load_file(scene.folder / "model.safetensors")
    yield "the base", [], base
    yield "the base in int8", [], Quantization(8)(base)
    tuned = fine_tune(scene.model(base), *task.thief, lr=1e-4, steps=setting.tuning)
    yield "the base fine-tuned", [], {k: v.clone() for k, v in tuned.state_dict().items()}
    torch.manual_seed(1)
    other = lite0()
    other.reset_classifier(CLASSES)
    yield "another model", [], fine_tune(other, *task.thief, lr=1e-3, steps=setting.training // 3).state_dict()


def weight_score(scene: Scene, giver: int, out: Path) -> tuple[float, float]:
    """The score of a copy's weights, without and with what binds its answers."""
    plain = out / "unbound"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(scene.paths[giver], plain)
    state = load_file(plain / "model.safetensors")
    change = torch.from_numpy(scene.asked.head_change(scene.keys[giver]))
    state[scene.asked.head] = state[scene.asked.head] - change.reshape(state[scene.asked.head].shape)
    save_file(state, plain / "model.safetensors", {"format": "pt"})
    found = [trace(path, scene.vault).accused[0].score for path in (plain, scene.paths[giver])]
    return found[0], found[1]


@dataclass
class Row:
    """Suspects of one kind: a line of the table."""

    agreeing: list[float]  # shares of the givers' labels told
    right: list[int]  # givers accused
    givers: list[int]
    asked: list[int]  # questions until somebody was accused
    accuracies: list[float]  # of the first few
    innocents: int = 0  # accused, over all suspects

    def __str__(self) -> str:
        some, all_ = np.array(self.right) > 0, np.array(self.right) == np.maximum(self.givers, 1)
        own = f"{np.mean(self.agreeing):.0%}" if max(self.givers) else "-"
        return (
            f"{len(self.right)} | {some.mean():.0%} | {all_.mean():.0%} | {own} | {np.mean(self.asked):.0f} | "
            f"{self.innocents} | {np.mean(self.accuracies):.1%}"
        )


def measured(scene: Scene) -> dict[str, Row]:
    """Each kind of suspect, judged against the vault's recipients and against never-issued keys."""
    stream = np.random.default_rng(7)
    innocents = [stream.bytes(32) for _ in range(scene.setting.innocents)]
    test = tuple(part[:CHECKED] for part in scene.task.test)
    rows: dict[str, Row] = {}
    for name, givers, state in suspects(scene):
        answers = scene.answers(state)
        accused, _ = scene.accused(answers, scene.keys)
        labels, owned = scene.asked.answers([scene.keys[giver] for giver in givers])
        row = rows.setdefault(name, Row([], [], [], [], []))
        row.agreeing.append(float((labels == answers)[owned].mean()) if givers else 0.0)
        row.right.append(len(accused & set(givers)))
        row.givers.append(len(givers))
        row.asked.append(scene.accused(answers, scene.keys, until_proven=True)[1])
        row.innocents += len(accused - set(givers)) + len(scene.accused(answers, innocents)[0])
        if len(row.accuracies) < 3:
            row.accuracies.append(accuracy(scene.model(state), *test))
        print(f"{name}: {row.agreeing[-1]:.0%} told, {row.right[-1]} of {len(givers)} accused", flush=True)
    return rows


def report(scene: Scene, out: Path) -> dict[str, object]:
    """Measures, prints, and returns what was found."""
    setting, test = scene.setting, scene.task.test
    plain = accuracy(scene.model(load_file(scene.folder / "model.safetensors")), *test)
    bound = [accuracy(scene.model(load_file(path / "model.safetensors")), *test) for path in scene.paths]
    print(f"accuracy: base {plain:.2%}, copies {np.mean(bound):.2%} on average, {min(bound):.2%} at least", flush=True)
    scores = [weight_score(scene, giver, out) for giver in range(min(5, setting.copies))]
    kept = [after / before for before, after in scores]
    print(f"weight mark: {np.mean(kept):.1%} of its score kept, {min(kept):.1%} at least", flush=True)
    rows = measured(scene)
    print("\n| suspect | n | somebody who gave | all who gave | own labels | asked | innocents | accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row} |")
    found = {name: asdict(row) for name, row in rows.items()}
    return {"accuracy": plain, "copies": bound, "weight_mark": scores, "rows": found}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench_output/blackbox"), help="where to work")
    parser.add_argument("--task", choices=TASKS, default="fashion-mnist")
    parser.add_argument("--no-photos", action="store_true", help="fit the questions without the owner's images")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    setting = QUICK if chosen.quick else Setting()
    found = report(Scene(chosen.out, TASKS[chosen.task](setting), setting, not chosen.no_photos), chosen.out)
    (chosen.out / "found.json").write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
