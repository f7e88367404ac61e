"""Model extraction: models trained on a copy's outputs. A new model copies the function, not the weights, so no mark
in weights survives, and any accusation of it is a false one within the bound."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, Loss, State
from hf_fingerprint.attacks.model_layers import reinitialize_tensors
from hf_fingerprint.attacks.training_loop import cpu_state_dict, kl_divergence, make_optimizer, predict_logits, train
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import synthetic_images


if TYPE_CHECKING:
    import torch

IMAGES = ("attacker's", "synthetic")


@dataclass(frozen=True)
class Distillation(Attack):
    """Trains a new model of the same architecture on the copy's probabilities for the attacker's images.

    Args:
        steps (`int`, *optional*, defaults to 300): the strength: training steps. More steps make a better student.
            With `start`, the strength is that of `start`.
        lr (`float`, *optional*, defaults to 1e-3): AdamW's learning rate.
        temperature (`float`, *optional*, defaults to 4): the divisor of both models' logits.
        seed (`int`, *optional*, defaults to 0): seed of the initial weights and the order of images.
        start ([`Attack`], *optional*): an attack on the copy that makes the student's initial weights. By default they
            are random.
    """

    paper = "G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, arXiv 1503.02531"
    strengths = (100, 300, 1000)
    needs_attacker = True
    steps: int = 300
    lr: float = 1e-3
    temperature: float = 4.0
    seed: int = 0
    start: Attack | None = None

    @property
    def strength(self) -> float:
        return self.steps if self.start is None else self.start.strength

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        attacker = self.require_attacker(attacker)
        expected = predict_logits(attacker.model(state), attacker.images, attacker.batch)

        def loss(logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return self.temperature**2 * kl_divergence(logits, expected[pick], self.temperature)

        initial = None if self.start is None else self.start(state, attacker)
        return _train_student(state, attacker, attacker.images, loss, self.steps, self.lr, self.seed, initial)


@dataclass(frozen=True)
class ModelExtraction(Attack):
    """Trains a new model of the same architecture on the labels that the copy predicts for query images.

    Args:
        steps (`int`, *optional*, defaults to 300): the strength: training steps. More steps make a better student.
        images (`str`, *optional*, defaults to `"attacker's"`): the query images: `"attacker's"` or `"synthetic"`.
        queries (`int`, *optional*, defaults to 4,096): the most query images.
        lr (`float`, *optional*, defaults to 1e-3): AdamW's learning rate.
        seed (`int`, *optional*, defaults to 0): seed of the initial weights, synthetic images and order of images.
    """

    paper = "F. Tramer et al., Stealing machine learning models via prediction APIs, USENIX Security 2016"
    strengths = (100, 300, 1000)
    needs_attacker = True
    steps: int = 300
    images: str = "attacker's"
    queries: int = 4096
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images not in IMAGES or self.queries < 1:
            raise FingerprintError(
                f"ModelExtraction got {self.queries} queries of {self.images!r} images: choose at least 1 query of "
                f"{' or '.join(IMAGES)} images."
            )

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        from torch.nn.functional import cross_entropy

        attacker = self.require_attacker(attacker)
        query_images = attacker.images[: self.queries]
        if self.images == "synthetic":
            built = attacker.as_built_model(state)
            query_images = synthetic_images(built, self.queries, self.seed).to(query_images.device)
        predicted = predict_logits(attacker.model(state), query_images, attacker.batch).argmax(-1)

        def loss(logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            return cross_entropy(logits, predicted[pick])

        return _train_student(state, attacker, query_images, loss, self.steps, self.lr, self.seed)


def _train_student(
    state: State,
    attacker: Attacker,
    images: "torch.Tensor",
    loss: Loss,
    steps: int,
    lr: float,
    seed: int,
    initial: State | None = None,
) -> "dict[str, torch.Tensor]":
    student = attacker.model(initial or reinitialize_tensors(state, list(state), seed)).train()
    optimizer = make_optimizer(student.parameters(), "adamw", lr, 0.01)
    return cpu_state_dict(train(student, attacker, loss, optimizer, steps, seed, images))
