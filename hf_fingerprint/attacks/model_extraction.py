"""Models trained on a copy's answers: the function is stolen, the weights are new, and no mark in weights is left.

An honest row of every table: whatever is traced here is by chance, within the bound.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker
from hf_fingerprint.attacks.model_layers import reinitialize_tensors
from hf_fingerprint.attacks.training_loop import cpu_state_dict, kl_divergence, make_optimizer, predict_logits, train
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
    needs_attacker = True
    steps: int = 300
    lr: float = 1e-3
    temperature: float = 4.0
    seed: int = 0

    def __call__(self, state: "State", attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        attacker = self.require_attacker(attacker)
        expected = predict_logits(attacker.model(state), attacker.images, attacker.batch)

        def loss(student_logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return self.temperature**2 * kl_divergence(student_logits, expected[pick], self.temperature)

        return _train_student(state, attacker, attacker.images, loss, self.steps, self.lr, self.seed)


@dataclass(frozen=True)
class ModelExtraction(Attack):
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
    needs_attacker = True
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

    def __call__(self, state: "State", attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        from torch.nn.functional import cross_entropy

        attacker = self.require_attacker(attacker)
        query_images = attacker.images[: self.queries]
        if self.images == "synthetic":
            query_images = synthetic_images(attacker.built(state), self.queries, self.seed).to(attacker.images.device)
        predicted = predict_logits(attacker.model(state), query_images, attacker.batch).argmax(-1)

        def loss(student_logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return cross_entropy(student_logits, predicted[pick])

        return _train_student(state, attacker, query_images, loss, self.steps, self.lr, self.seed)


def _train_student(
    state: "State", attacker: Attacker, images: "torch.Tensor", loss: "Loss", steps: int, lr: float, seed: int
) -> "dict[str, torch.Tensor]":
    student = attacker.model(reinitialize_tensors(state, list(state), seed)).train()
    optimizer = make_optimizer(student.parameters(), "adamw", lr, 0.01)
    return cpu_state_dict(train(student, attacker, loss, optimizer, steps, seed, images))
