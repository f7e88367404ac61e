"""Measures what private training costs and what leaks: every figure of the README's section, and its picture.

The owner trains a base on its own images, some of them labeled. The base is then trained further on images that stay
with their data holders, over the cut, at several noise strengths. Each released model is compared with two others:
the plain split, which sends features without noise, and training on the owner's images alone. The adversary has public
images of the same kind, the client part, the bottleneck and the noise distribution. The baseline is an adversary who
has only the labels, which leak anyway. The data holders' codes are used twice: a student learns from them first, and
its pseudo-labels for the owner's public images then train the server part too.

The loop is that of `owner_loop` and `data_holder_loop` in one process. Each image's noise is drawn as a data holder
draws it.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from rich.progress import Progress
from torch.nn.functional import one_hot

from examples._common.plots import plot_privacy
from examples._common.real_inputs import fashion_mnist, lite0
from examples._common.results import Table, add_results_option, report
from examples._common.training import accuracy, fine_tune
from hf_fingerprint.keys import new_secret
from hf_fingerprint.privacy import (
    Bottleneck,
    FrozenSegment,
    ImageNoise,
    Partition,
    Student,
    calibrate_noise,
    init_task_directions,
    matching_auc,
    measure_membership,
    measure_reconstruction,
    release,
    train_decoder,
    train_denoiser,
)
from hf_fingerprint.privacy.leakage import seeded


STUDENT_LR = 3e-3
PLAIN = "plain split"


@dataclass(frozen=True)
class Setting:
    """One model's experiment. The owner has the first `labeled_count` public images with labels."""

    name: str
    build: Callable[[], torch.nn.Module]
    at: str
    segment_end: str | None  # the end of the frozen segment
    size: int
    numbers: int
    public: int
    private: int
    steps: int
    lr: float
    whole_base: bool
    base_steps: int
    labeled_count: int
    test: int = 10000
    batch: int = 64
    student_steps: int = 1000  # steps of the student
    denoising: int = 600  # steps of the denoiser
    attack_steps: int = 400
    strengths: tuple[float, ...] = (1.0, 0.5)
    share: float = 0.5  # of the plain split's SSIM


SETTINGS = {
    "small": Setting(
        "test_resnet",
        lambda: timm.create_model("test_resnet", num_classes=10),
        "act1", "layer1", 32, 33, 10000, 40000, 3000, 2e-3, True, 1000, labeled_count=10000, strengths=(1.0, 0.6),
    ),
    "lite0": Setting(
        "EfficientNet-Lite0",
        lambda: with_classes(lite0()),
        "blocks.0", "blocks.2", 64, 64, 8000, 16000, 400, 1e-3, False, 500, labeled_count=4000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The figures of one training."""

    name: str
    sigma: float | None
    bits: float | None
    accuracy: float | None
    psnr: float | None
    ssim: float | None
    membership_auc: float | None
    matching_auc: float | None


def with_classes(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a model with a new head for ten classes."""
    model.reset_classifier(10)
    return model


class Bench:
    """The images of a setting, its base, and their features."""

    def __init__(self, setting: Setting, progress: Progress):
        self.setting, self.progress = setting, progress
        count = setting.public + setting.private
        images, labels = fashion_mnist(True, count, setting.size)
        self.test = fashion_mnist(False, setting.test, setting.size)
        self.public, self.private = images[: setting.public], images[setting.public :]
        self.public_labels, self.labels = labels[: setting.public], labels[setting.public :]
        self.own_labels = self.public_labels[: setting.labeled_count]
        torch.manual_seed(0)
        model = setting.build().to(memory_format=torch.channels_last)  # twice as fast on a CPU
        if setting.whole_base:
            fine_tune(model, self.public[: setting.labeled_count], self.own_labels, setting.lr, setting.base_steps)
        self.partition = Partition(model, setting.at, (3, setting.size, setting.size))
        self.public_features, self.private_features = self.features(self.public), self.features(self.private)
        self.test_features = self.features(self.test[0][:2000])
        if not setting.whole_base:
            self.train(None, None, setting.base_steps)
            release(self.partition, self.public_features)
        self.base = deepcopy(model.state_dict())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the features at the cut."""
        parts = images.split(256)
        return torch.cat(
            [self.partition.client_part(part) for part in self.progress.track(parts, description="client part")]
        )

    def train(
        self,
        features: torch.Tensor | None,
        labels: torch.Tensor | None,
        steps: int,
        pseudo_labels: torch.Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Trains the server part on the owner's images, on denoised codes, and on pseudo-labels of public images."""
        setting, server_part = self.setting, self.partition.server_part
        optimizer = torch.optim.AdamW(self.partition.server_parameters().values(), setting.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.lr, total_steps=steps)
        generator, loss = torch.Generator().manual_seed(seed), torch.nn.functional.cross_entropy
        self.partition.model.train()
        for _ in self.progress.track(range(steps), description="training"):
            optimizer.zero_grad()
            if features is not None:
                pick = torch.randint(len(labels), (setting.batch,), generator=generator)
                loss(server_part(features[pick]), labels[pick]).backward()
            pick = torch.randint(setting.labeled_count, (setting.batch // 2,), generator=generator)
            loss(server_part(self.public_features[pick]), self.own_labels[pick]).backward()
            if pseudo_labels is not None:
                pick = torch.randint(len(pseudo_labels), (setting.batch,), generator=generator)
                loss(server_part(self.public_features[pick]), pseudo_labels[pick]).backward()
            optimizer.step()
            schedule.step()

    def train_student(self, bottleneck: Bottleneck, sent: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Trains a student on all codes, and returns its pseudo-labels for all public images."""
        setting, loss = self.setting, torch.nn.functional.cross_entropy
        with seeded(seed):
            student = Student(bottleneck.code_shape, 10)
            optimizer = torch.optim.AdamW(student.parameters(), STUDENT_LR)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, STUDENT_LR, total_steps=setting.student_steps)
            for _ in self.progress.track(range(setting.student_steps), description="student"):
                pick, own_pick = torch.randint(len(sent), (128,)), torch.randint(setting.labeled_count, (32,))
                optimizer.zero_grad()
                loss(student(sent[pick]), self.labels[pick]).backward()
                own_codes = bottleneck.send(self.public_features[own_pick])
                (loss(student(own_codes), self.own_labels[own_pick]) / 2).backward()
                optimizer.step()
                schedule.step()
        return student.pseudo_labels(bottleneck, self.public_features)

    def make_bottleneck(self, target_ssim: float) -> Bottleneck:
        """Returns a bottleneck over the task directions of the owner's server part, calibrated to the target."""
        self.partition.model.load_state_dict(self.base)
        self.train(None, None, self.setting.steps // 2)
        release(self.partition, self.public_features)
        segment = FrozenSegment(self.partition, self.setting.segment_end) if self.setting.segment_end else None
        bottleneck = Bottleneck(self.partition.shape, self.setting.numbers, flatten_features=True, segment=segment)
        init_task_directions(self.partition, bottleneck, self.public_features)
        found = calibrate_noise(bottleneck, self.public_features, self.public, target_ssim, self.setting.attack_steps)
        print(f"  sigma {found.sigma:.3g}: SSIM {found.reconstruction.ssim:.3f}, {found.bits_per_image:.0f} bits")
        return bottleneck

    def measure(self, name: str, bottleneck: Bottleneck | None, sends: bool = True) -> Row:
        """Trains from the base, releases the model and returns its figures."""
        setting, seen = self.setting, min(self.setting.test, 2000)
        self.partition.model.load_state_dict(self.base)
        drawn = match = None
        if bottleneck is not None:
            noise = ImageNoise(new_secret()).draw(self.private, bottleneck.code_shape)
            with torch.no_grad():
                sent = torch.cat(
                    [
                        bottleneck.send(*part)
                        for part in zip(self.private_features.split(512), noise.split(512), strict=True)
                    ]
                )
                codes = tuple(
                    torch.cat([bottleneck.encode(part) for part in features[:seen].split(512)])
                    for features in (self.private_features, self.test_features)
                )
            match = matching_auc(sent, *codes, bottleneck.sigma)
            pseudo_labels = self.train_student(bottleneck, sent)
            restore = train_denoiser(bottleneck, self.public_features, setting.denoising)
            with torch.no_grad():
                restored = torch.cat([restore(part) for part in sent.split(512)])
            self.train(restored, self.labels, setting.steps, pseudo_labels)
            decoder = train_decoder(bottleneck.send, self.public_features, self.public, setting.attack_steps)
            drawn = measure_reconstruction(decoder, sent[:seen], self.private[:seen])
        elif sends:
            self.train(self.private_features, self.labels, setting.steps)
            decoder = train_decoder(lambda features: features, self.public_features, self.public, setting.attack_steps)
            drawn = measure_reconstruction(decoder, self.private_features[:seen], self.private[:seen])
        else:
            self.train(None, None, setting.steps)
        model = release(self.partition, self.public_features)
        membership_result = measure_membership(
            model, (self.private[:seen], self.labels[:seen]), (self.test[0][:seen], self.test[1][:seen])
        )
        row = Row(
            name,
            bottleneck and bottleneck.sigma,
            bottleneck and bottleneck.bits_per_image,
            accuracy(model, *self.test),
            drawn and drawn.psnr,
            drawn and drawn.ssim,
            membership_result.auc,
            match,
        )
        print(" ", row, flush=True)
        return row

    def labels_alone(self) -> Row:
        """Returns the figures of an adversary who has only the label of an image, which leaks anyway."""
        public, private = (one_hot(labels, 10).float() for labels in (self.public_labels, self.labels[:2000]))
        decoder = train_decoder(lambda label: label, public, self.public, self.setting.attack_steps)
        drawn = measure_reconstruction(decoder, private, self.private[:2000])
        row = Row("the label alone", None, None, None, drawn.psnr, drawn.ssim, None, None)
        print(" ", row, flush=True)
        return row


def main() -> None:
    """Runs the benchmark and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(SETTINGS), help=f"of {', '.join(SETTINGS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("bench_output/privacy"))
    parser.add_argument("--picture", type=Path, help="also plot the results of all models in --out")
    add_results_option(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = []
    for name in arguments.models:
        with Progress(transient=True) as progress:
            rows = run(SETTINGS[name], arguments.out / f"{name}.json", progress)
        tables.append(table_of(name, f"{SETTINGS[name].name}, cut at {SETTINGS[name].at}", rows))
    report(arguments, tables)
    if arguments.picture:
        found = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*.json"), reverse=True)]
        plot_privacy({each["model"]: each["rows"] for each in found}, arguments.picture)


def run(setting: Setting, path: Path, progress: Progress) -> list[Row]:
    """Returns all rows of a setting. Reuses the rows of an earlier run."""
    print(f"{setting.name}, cut at {setting.at}", flush=True)
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []
    if len(rows) >= 3 + len(setting.strengths):
        return rows
    bench = Bench(setting, progress)

    def save_row(row: Row) -> None:
        rows.append(row)
        path.write_text(json.dumps({"model": setting.name, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")

    if len(rows) < 1:
        save_row(bench.measure("the owner's images alone", None, sends=False))
    if len(rows) < 2:
        save_row(bench.measure(PLAIN, None))
    if len(rows) < 3:
        save_row(bench.labels_alone())
    bottleneck = bench.make_bottleneck(round(setting.share * rows[1].ssim, 3))
    chosen = bottleneck.sigma
    for strength in setting.strengths[len(rows) - 3 :]:
        bottleneck.sigma = strength * chosen
        save_row(bench.measure(f"partitioned, noise x {strength:g}", bottleneck))
    return rows


def table_of(name: str, title: str, rows: list[Row]) -> Table:
    """Returns the table of a setting. `of plain` is the share of the plain split's SSIM."""
    columns = ("training", "noise", "bits at most", "accuracy", "PSNR, dB", "SSIM", "of plain", "membership AUC")
    plain = next((row.ssim for row in rows if row.name == PLAIN), None)
    cells = []
    for row in rows:
        share = row.ssim / plain if row.ssim and plain else None
        shown: list[tuple[float | None, str]] = [(row.sigma, ".2f"), (row.bits, ".0f"), (row.accuracy, ".1%")]
        shown += [(row.psnr, ".1f"), (row.ssim, ".2f"), (share, ".2f"), (row.membership_auc, ".3f")]
        shown += [(row.matching_auc, ".2f")]
        cells.append((row.name, *("-" if figure is None else f"{figure:{form}}" for figure, form in shown)))
    return Table(name, title, (*columns, "matching AUC"), tuple(cells))


if __name__ == "__main__":
    main()
