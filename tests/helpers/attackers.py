"""Attackers with a handful of easy images, and small models trained on them."""

from functools import cache, partial

import torch

from hf_fingerprint.attacks import Attacker, FineTuning
from hf_fingerprint.attacks.training_loop import predict_logits


CLASSES = 4
CNN, VIT = "test_efficientnet", "test_vit"


def make_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright quarter at the class's position: `(count, 3, 32, 32)` and `(count,)`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.5 * torch.randn(count, 3, 32, 32, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 16 * (label // 2), 16 * (label % 2)
        image[:, row : row + 16, column : column + 16] += 1.5
    return images, labels


def build(architecture: str) -> torch.nn.Module:
    """One of timm's test architectures for such images, random weights."""
    import timm

    size = {"img_size": 32} if "vit" in architecture else {}
    return timm.create_model(architecture, num_classes=CLASSES, **size).eval()


def make_attacker(architecture: str, count: int = 64, seed: int = 1, **others: object) -> Attacker:
    """An attacker with images."""
    return Attacker(partial(build, architecture), *make_images(count, seed), **{"batch": 16} | others)


def fresh(architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Untrained weights."""
    torch.manual_seed(seed)
    return build(architecture).state_dict()


@cache
def _trained_state() -> dict[str, torch.Tensor]:
    return FineTuning(3e-3, steps=20)(fresh(CNN), make_attacker(CNN, 256, seed=0))


def trained_state() -> dict[str, torch.Tensor]:
    """Weights of `CNN` trained on such images."""
    return {name: tensor.clone() for name, tensor in _trained_state().items()}


def accuracy(state: dict[str, torch.Tensor]) -> float:
    """The accuracy of `CNN` on 128 held-out images."""
    images, labels = make_images(128, seed=2)
    return float((predict_logits(make_attacker(CNN).model(state), images, 64).argmax(-1) == labels).double().mean())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal, dtypes too."""
    return one.keys() == other.keys() and all(t.dtype == other[n].dtype and t.equal(other[n]) for n, t in one.items())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The names of tensors that differ."""
    return {name for name, tensor in before.items() if not tensor.equal(after[name])}
