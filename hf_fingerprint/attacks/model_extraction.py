"""Models trained on a copy's answers: the function is stolen, the weights are new, and no mark in weights is left.

An honest row of every table: whatever is traced here is by chance, within the bound.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Thief
from hf_fingerprint.attacks.model_layers import reinitialised
from hf_fingerprint.attacks.training_loop import answers, divergence, optimizer_over, state_of, train
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import synthetic_images


if TYPE_CHECKING:
    import torch

    from hf_fingerprint.attacks.attack import State
    from hf_fingerprint.attacks.training_loop import Loss

IMAGES = ("thief's", "synthetic")


@dataclass(frozen=True)
class Distillation(Attack):
    """A fresh model of the same architecture, trained on the copy's probabilities for the thief's images.

    Args:
        steps (`int`, *optional*, defaults to 300): the strength: steps of training; more are a better thief.
        lr (`float`, *optional*, defaults to 1e-3): AdamW's learning rate.
        temperature (`float`, *optional*, defaults to 4): that both sets of logits are divided by.
        seed (`int`, *optional*, defaults to 0): of the fresh weights and the order of images.
    """

    paper = "G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, arXiv 1503.02531"
    strengths = (100, 300, 1000)
    needs_thief = True
    steps: int = 300
    lr: float = 1e-3
    temperature: float = 4.0
    seed: int = 0

    def __call__(self, state: "State", thief: Thief | None = None) -> "dict[str, torch.Tensor]":
        thief = self.equipped(thief)
        expected = answers(thief.model(state), thief.images, thief.batch)

        def loss(told: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return self.temperature**2 * divergence(told, expected[pick], self.temperature)

        return _taught(state, thief, thief.images, loss, self.steps, self.lr, self.seed)


@dataclass(frozen=True)
class Extraction(Attack):
    """A fresh model of the same architecture, trained on the classes alone that the copy tells for the images asked.

    Args:
        steps (`int`, *optional*, defaults to 300): the strength: steps of training; more are a better thief.
        images (`str`, *optional*, defaults to `"thief's"`): what is asked, or `"synthetic"` images.
        queries (`int`, *optional*, defaults to 4,096): how many at most.
        lr (`float`, *optional*, defaults to 1e-3): AdamW's learning rate.
        seed (`int`, *optional*, defaults to 0): of the fresh weights, synthetic images and the order of images.
    """

    paper = "F. Tramer et al., Stealing machine learning models via prediction APIs, USENIX Security 2016"
    strengths = (100, 300, 1000)
    needs_thief = True
    steps: int = 300
    images: str = "thief's"
    queries: int = 4096
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images not in IMAGES or self.queries < 1:
            raise FingerprintError(
                f"{self.queries} {self.images} images can't be asked: choose 1 or more, {' or '.join(IMAGES)}."
            )

    def __call__(self, state: "State", thief: Thief | None = None) -> "dict[str, torch.Tensor]":
        from torch.nn.functional import cross_entropy

        thief = self.equipped(thief)
        asked = thief.images[: self.queries]
        if self.images == "synthetic":
            asked = synthetic_images(thief.built(state), self.queries, self.seed).to(thief.images.device)
        classes = answers(thief.model(state), asked, thief.batch).argmax(-1)

        def loss(told: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return cross_entropy(told, classes[pick])

        return _taught(state, thief, asked, loss, self.steps, self.lr, self.seed)


def _taught(
    state: "State", thief: Thief, images: "torch.Tensor", loss: "Loss", steps: int, lr: float, seed: int
) -> "dict[str, torch.Tensor]":
    student = thief.model(reinitialised(state, list(state), seed)).train()
    optimizer = optimizer_over(student.parameters(), "adamw", lr, 0.01)
    return state_of(train(student, thief, loss, optimizer, steps, seed, images))
