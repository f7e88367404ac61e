"""Measures what it costs an attacker to lose the mark: the suite of attacks on four models and Fashion-MNIST.

EfficientNet-Lite0 and Lite2 have their ImageNet weights; a residual network and a vision transformer are trained here,
from random weights, or (`resnet-tuned`, `vit-tuned`) from an ancestor that predicts by how much other images were
rotated (RotNet, arXiv 1803.07728). The attacker has the ancestor of a model that has one.

    python -m examples.benchmarks.attacks lite0       # every attack, every strength, coalitions up to 50
    python -m examples.benchmarks.attacks vit --attacks finetune remove --quick
    python -m examples.benchmarks.attacks resnet-tuned --attacks ancestor --quick

Each model's page, table and trials are in a separate folder. Run the command again to resume.
"""

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from examples._common.real_inputs import FASHION_MNIST, digits, fashion_mnist, lite0, lite2, load_model
from examples._common.results import commit
from examples._common.training import fine_tune
from hf_fingerprint import FingerprintConfig
from hf_fingerprint.attacks import FineTuning
from hf_fingerprint.cli.output import echo_err, progress_bars
from hf_fingerprint.evaluation import EvaluationData, evaluate, write_report


OWNER_IMAGES, TEST_IMAGES = 20_000, 500
CALIBRATION_IMAGES = 1032  # 32 that the amplitudes are searched on, 1,000 that they are measured on
RECIPIENTS = 1000
COALITIONS = (3, 5, 10, 20, 50)
SIZES = {"lite0": 56, "lite2": 56, "resnet": 32, "vit": 28, "resnet-tuned": 32, "vit-tuned": 28}
PUBLIC = {"lite0": lite0, "lite2": lite2}
TUNED = "-tuned"
COMMIT = "_commit"  # of the code that ran, next to a model's folder
FROM_ANCESTOR = [(1e-3, 100), (5e-4, 100), (1e-4, 100)]  # learning rates and steps
LabeledImages = tuple[torch.Tensor, torch.Tensor]
ARCHITECTURES = {"resnet": "resnet10t", "vit": "vit_tiny_patch16_224"}
VIT = {"img_size": 28, "patch_size": 7, "depth": 6}


def real_images(size: int, trained: int, test_count: int) -> tuple[str, LabeledImages, LabeledImages]:
    """Returns Fashion-MNIST if Debian's package is installed, else scikit-learn's digits."""
    if FASHION_MNIST.is_dir():
        return "Fashion-MNIST", fashion_mnist(True, trained, size), fashion_mnist(False, test_count, size)
    images, labels = digits(size)
    return "digits", (images[test_count:], labels[test_count:]), (images[:test_count], labels[:test_count])


def make_ancestor(name: str, folder: Path, images: torch.Tensor, scale: float, seed: int = 0) -> Path | None:
    """Returns the public model that the owner's is fine-tuned from, or `None` if there is none. Keeps it between runs.

    Args:
        name: a model of `SIZES`.
        folder: where to save the ancestor.
        images: images that nobody else has; those of `lite0` and `lite2` are not used.
        scale: factor on the training steps.
        seed: another one gives another model.
    """
    if name not in PUBLIC and not name.endswith(TUNED):
        return None
    if not folder.exists():
        torch.manual_seed(1 + 1000 * seed)
        arguments: dict[str, object] = {}
        if name in PUBLIC:
            model = PUBLIC[name]()
        else:
            arguments = dict(VIT) if name == f"vit{TUNED}" else {}
            model = timm.create_model(ARCHITECTURES[name.removesuffix(TUNED)], num_classes=4, **arguments)
            turns = torch.arange(len(images)) % 4
            rotated = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)])
            for part, (lr, steps) in enumerate([(2e-3, 400), (5e-4, 200)]):
                steps, own = max(1, round(scale * steps)), part + 1000 * seed
                fine_tune(model, rotated, turns, lr, steps, seed=own, label=f"the ancestor of {name} trains")
        save(model, name, folder, arguments)
    return folder


def make_base(
    name: str,
    folder: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    scale: float,
    ancestor: Path | None = None,
    seed: int = 0,
) -> Path:
    """Returns the owner's model: its ancestor fine-tuned, or trained from scratch. Keeps it between runs."""
    if folder.exists():
        return folder
    torch.manual_seed(1000 * seed)
    arguments: dict[str, object] = {}
    if name in PUBLIC:
        model, rates = PUBLIC[name](), FROM_ANCESTOR
        model.reset_classifier(10)
    elif name.endswith(TUNED):
        if ancestor is None:
            raise SystemExit(f"{name} is fine-tuned from an ancestor: make it first.")
        arguments = dict(VIT) if name == f"vit{TUNED}" else {}
        model, rates = load_model(ancestor), FROM_ANCESTOR
        model.reset_classifier(10)
    elif name == "resnet":
        model, rates = timm.create_model(ARCHITECTURES[name], num_classes=10), [(2e-3, 400), (5e-4, 300), (1e-4, 200)]
    else:
        arguments = dict(VIT)
        model = timm.create_model(ARCHITECTURES[name], num_classes=10, **VIT)
        rates = [(1e-3, 600), (3e-4, 400), (1e-4, 200)]
    for part, (lr, steps) in enumerate(rates):
        steps, own = max(1, round(scale * steps)), part + 1000 * seed
        fine_tune(model, images, labels, lr, steps, seed=own, label=f"the owner trains {name}")
    save(model, name, folder, arguments)
    return folder


def save(model: torch.nn.Module, name: str, folder: Path, arguments: dict[str, object]) -> None:
    """Saves a model of this name with its size of images."""
    half = (0.5, 0.5, 0.5)  # as the images are prepared
    model.pretrained_cfg.update(input_size=(3, SIZES[name], SIZES[name]), mean=half, std=half, crop_pct=1.0)
    save_for_hf(model, folder, safe_serialization=True, model_args=arguments)


def save_images(images: torch.Tensor, folder: Path) -> Path:
    """Writes prepared images as PNG files that the model's own preprocessing reads back, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (images * 127.5 + 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def main() -> None:
    """Attacks a model and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SIZES)
    parser.add_argument("--attacks", nargs="+", help="names or groups of the suite; all by default")
    parser.add_argument("--coalitions", nargs="+", type=int, help="sizes; 3 to 50 by default, 3 with --quick")
    parser.add_argument("--runs", type=int, default=1, help="number of coalitions of each kind")
    parser.add_argument("--quick", action="store_true", help="three strengths of each attack, coalitions of 3")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the owner's training steps and images")
    parser.add_argument("--seed", type=int, default=0, help="of the owner's training: another gives another model")
    parser.add_argument("--max-kl", type=float, help="the mark's only budget on the output, in nats")
    parser.add_argument(
        "--own-images", action="store_true", help="calibrate on images of the owner, not on synthetic ones"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_output/attacks"))
    arguments = parser.parse_args()
    owner_count, test_count = round(arguments.scale * OWNER_IMAGES), max(50, round(arguments.scale * TEST_IMAGES))
    known = owner_count + owner_count // 10
    name, train, test = real_images(SIZES[arguments.model], known + owner_count // 2, test_count)
    called = f"{arguments.model}-seed{arguments.seed}" if arguments.seed else arguments.model
    folder, others = arguments.out / called, train[0][known:]
    ancestor = make_ancestor(
        arguments.model, folder.with_name(f"{called}_ancestor"), others, arguments.scale, arguments.seed
    )
    images, labels = (part[:owner_count] for part in train)
    base = make_base(
        arguments.model, folder.with_name(f"{called}_base"), images, labels, arguments.scale, ancestor, arguments.seed
    )
    calibration = save_images(others[:CALIBRATION_IMAGES], folder.with_name(f"{folder.name}_calibration"))
    data = EvaluationData(name, (train[0][owner_count:known], train[1][owner_count:known]), test)
    folder.with_name(f"{folder.name}{COMMIT}").write_text(commit())
    with progress_bars() as progress:
        found = evaluate(
            base,
            data,
            folder,
            arguments.attacks,
            arguments.coalitions or (None if arguments.quick else COALITIONS),
            FingerprintConfig(
                arguments.max_kl,
                calibration if arguments.own_images else None,
                expected_recipients=RECIPIENTS,
            ),
            quick=arguments.quick,
            runs=arguments.runs,
            public_base=True,
            progress=progress,
            ancestor=ancestor,
            fine_tuning_steps=FineTuning.steps,  # with --quick too
        )
    written = write_report(found, folder)
    echo_err(f"Wrote {written.page}.")


if __name__ == "__main__":
    main()
