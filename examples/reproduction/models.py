"""The reproduction's models and images: a small CNN, a wide residual network, EfficientNet-Lite0; Fashion-MNIST.

The paper used MNIST and CIFAR-10. `--data mnist` and `--data cifar10` load them through `datasets`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from examples._common.real_inputs import Images, fashion_mnist


HUB = {"mnist": ("ylecun/mnist", "image"), "cifar10": ("uoft-cs/cifar10", "img")}


def load_images(name: str, size: int, channels: int, train: int, test: int) -> Images:
    """Returns images at a size and number of channels.

    Args:
        name (`str`): `"fashion_mnist"` (Debian's package), or `"mnist"` or `"cifar10"` from the Hub, which needs the
            package `datasets`.
        size, channels (`int`): of the model's input.
        train, test (`int`): number of images.
    """
    parts = []
    for training, count in ((True, train), (False, test)):
        if name == "fashion_mnist":
            images, labels = fashion_mnist(training, count, size)
        else:
            images, labels = from_hub(name, training, count, size)
        parts.append((images[:, :channels].contiguous() if channels < 3 else images, labels))
    return Images(name, parts[0], parts[1])


def from_hub(name: str, train: bool, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first `count` images of MNIST or CIFAR-10, with three channels, and their classes."""
    from datasets import load_dataset

    repo, column = HUB[name]
    rows = load_dataset(repo, split=f"{'train' if train else 'test'}[:{count}]")
    pixels = np.stack([np.asarray(row[column].convert("RGB"), np.uint8) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return (images - 0.5) / 0.5, torch.tensor(rows["label"])


def small_cnn(channels: int = 1) -> nn.Module:
    """Returns a CNN for 28 pixels: convolutions of 16, 32 and 64 filters and two linear layers."""
    layers: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10))


class WideBlock(nn.Module):
    """A residual block with batch norm and activation before each convolution."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu(self.bn1(x))
        return self.shortcut(h) + self.conv2(functional.relu(self.bn2(self.conv1(h))))


def wide_resnet(channels: int = 1, widen: int = 2) -> nn.Module:
    """Returns WRN-10-2 (S. Zagoruyko, N. Komodakis, arXiv 1605.07146), with a stride of 2 in the first convolution."""
    blocks = [WideBlock(16, 16 * widen, 1), WideBlock(16 * widen, 32 * widen, 2), WideBlock(32 * widen, 64 * widen, 2)]
    head = [nn.BatchNorm2d(64 * widen), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64 * widen, 10)]
    return nn.Sequential(nn.Conv2d(channels, 16, 3, 2, 1, bias=False), *blocks, *head)


@dataclass(frozen=True)
class Architecture:
    """A model of the table and its training.

    Attributes:
        title (`str`): its name in the table.
        make (callable): returns a new model from the current seed; EfficientNet-Lite0 has its ImageNet weights.
        size, channels (`int`): of its input.
        steps, lr: of a training from scratch (for Lite0: of the fine-tuning that makes the base).
        owner_steps, owner_lr: of the owner's fine-tuning.
        tune_steps, tune_lr: of the attacker's fine-tuning, and of another owner who overwrites the mark.
        batch (`int`): images in a step.
        test (`int`): test images.
        seeds (`int`): number of trainings.
        attacked (`int`): number of trainings that are attacked too.
        modes (`tuple[str, ...]`): from scratch, fine-tuned.
        max_kl (`float`): the budget of `spread` when fine-tuned, in nats.
        embed (`bool`): whether `deepmarks` too is embedded in closed form when fine-tuned, because the steps are too
            few for the gradient.
        amplitude (`float`, *optional*): a fixed amplitude of `spread` when fine-tuned, instead of the budget.
    """

    title: str
    make: Callable[[], nn.Module]
    size: int
    channels: int
    steps: int
    lr: float
    owner_steps: int
    owner_lr: float
    tune_steps: int
    tune_lr: float
    batch: int
    test: int
    seeds: int
    attacked: int
    modes: tuple[str, ...]
    max_kl: float
    embed: bool = False
    amplitude: float | None = None


def _lite0() -> nn.Module:
    from examples._common.real_inputs import lite0

    model = lite0()
    model.reset_classifier(10)
    return model


def architectures() -> dict[str, Architecture]:
    """Returns the models of the table."""
    both = ("scratch", "fine-tuned")
    return {
        "cnn": Architecture(
            title="small CNN",
            make=small_cnn,
            size=28,
            channels=1,
            steps=600,
            lr=2e-3,
            owner_steps=900,
            owner_lr=1e-3,
            tune_steps=150,
            tune_lr=5e-4,
            batch=64,
            test=10000,
            seeds=6,
            attacked=2,
            modes=both,
            max_kl=1e-3,
            amplitude=0.05,
        ),
        "wrn": Architecture(
            title="WRN-10-2",
            make=wide_resnet,
            size=28,
            channels=1,
            steps=700,
            lr=2e-3,
            owner_steps=100,
            owner_lr=5e-4,
            tune_steps=100,
            tune_lr=5e-4,
            batch=64,
            test=10000,
            seeds=6,
            attacked=2,
            modes=both,
            max_kl=1e-3,
        ),
        "lite0": Architecture(
            title="EfficientNet-Lite0",
            make=_lite0,
            size=56,
            channels=3,
            steps=300,
            lr=1e-3,
            owner_steps=40,
            owner_lr=2e-4,
            tune_steps=40,
            tune_lr=2e-4,
            batch=32,
            test=3000,
            seeds=5,
            attacked=2,
            modes=("fine-tuned",),
            max_kl=1e-4,
            embed=True,
        ),
    }


def train(
    model: nn.Module,
    images: Images,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
    term: Callable[[], torch.Tensor] | None = None,
) -> nn.Module:
    """Trains in place with AdamW and one cycle of the learning rate; adds the term to the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    pixels, labels = images.train
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(pixels), (batch,), generator=generator)
        loss = functional.cross_entropy(model(pixels[pick]), labels[pick])
        if term is not None:
            loss = loss + term()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def save_state(model: nn.Module, folder: Path) -> Path:
    """Saves a model's weights as `model.safetensors` in a folder, and returns the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder
