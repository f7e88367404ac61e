"""Makes the three models whose copies are converted to every form: a base, a vault with ten copies, and the copies.

    python -m examples.benchmarks.forms_models --out forms

EfficientNet-Lite0 starts with its ImageNet weights, ResNet18 and the ViT at random; all are trained on real images.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from examples._common.owner import PASSPHRASE, RECIPIENT, empty_folder
from examples._common.real_inputs import FASHION_MNIST, digits, fashion_mnist, lite0
from examples._common.training import fine_tune
from hf_fingerprint import FingerprintConfig, Issuer, Vault


SIZE, IMAGES, OTHERS = 56, 4000, 9
CONFIG = FingerprintConfig(coalition=3, expected_recipients=1000)


@dataclass(frozen=True)
class Kind:
    """A model: how it is built, how many steps it is trained for, and what timm needs to build it again."""

    build: Callable[[], torch.nn.Module]
    steps: int
    model_args: dict[str, Any] = field(default_factory=dict)


def _lite0() -> torch.nn.Module:
    model: Any = lite0()
    model.reset_classifier(10)
    return model


_VIT = {"img_size": SIZE, "patch_size": 8, "depth": 6}
KINDS = {
    "lite0": Kind(_lite0, 60),
    "resnet18": Kind(lambda: timm.create_model("resnet18", num_classes=10), 150),
    "vit": Kind(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, **_VIT), 300, _VIT),
}


def make(name: str, out: Path) -> None:
    """Trains a model and issues its copies, in `base`, `vault` and `copies` of a folder."""
    kind = KINDS[name]
    torch.manual_seed(0)
    model: Any = kind.build()
    images, labels = fashion_mnist(True, IMAGES, SIZE) if FASHION_MNIST.is_dir() else digits(SIZE)
    fine_tune(model, images[:IMAGES], labels[:IMAGES], lr=1e-3, steps=kind.steps, seed=0, label=f"{name} is trained")
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    save_for_hf(model.eval(), out / "base", model_args=kind.model_args or None, safe_serialization=True)
    vault = Vault.create(out / "vault", PASSPHRASE)
    with Issuer(out / "base", vault, CONFIG) as issuer:
        list(issuer.issue_all([RECIPIENT, *(f"recipient {number}" for number in range(OTHERS))], out / "copies"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the models")
    options = parser.parse_args(arguments)
    for name in KINDS:
        make(name, empty_folder(options.out / name))


if __name__ == "__main__":
    main()
