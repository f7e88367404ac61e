"""Fine-tuning: the copy is trained on, on whatever images the thief has, for the same task or another."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Thief
from hf_fingerprint.attacks.model_layers import reinitialised, weighted_layers
from hf_fingerprint.attacks.training_loop import OPTIMIZERS, optimizer_over, state_of, train
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

    from hf_fingerprint.attacks.attack import State

LAYERS = ("all", "last", "reinitialised last")


@dataclass(frozen=True)
class FineTuning(Attack):
    """Trains a copy on the thief's images and labels, by cross-entropy.

    The paper's names: `"all"` is FTAL, `"last"` FTLL, `"reinitialised last"` RTAL (all layers are trained once the
    last ones are fresh). Where the last ones alone are trained, the others' normalisations stand still too.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): the strength: the learning rate, constant.
        steps (`int`, *optional*, defaults to 100): how many, of `thief.batch` images each.
        layers (`str`, *optional*, defaults to `"all"`): one of `LAYERS`.
        optimizer (`str`, *optional*, defaults to `"adamw"`): or `"sgd"`, with momentum 0.9.
        weight_decay (`float`, *optional*, defaults to 0.01): as the optimizer takes it.
        last (`int`, *optional*, defaults to 1): how many layers are the last.
        seed (`int`, *optional*, defaults to 0): of the order of images, and of fresh layers.

    Raises:
        [`FingerprintError`]: if the labels aren't the model's, or the training diverges.
    """

    paper = "Y. Adi et al., Turning your weakness into a strength, USENIX Security 2018, arXiv 1802.04633"
    strengths = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    needs_thief = True
    lr: float = 1e-4
    steps: int = 100
    layers: str = "all"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    last: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layers not in LAYERS or self.optimizer not in OPTIMIZERS:
            raise FingerprintError(
                f"Nobody trains {self.layers} layers by {self.optimizer}: choose {', '.join(LAYERS)} and "
                f"{' or '.join(OPTIMIZERS)}."
            )

    def __call__(self, state: "State", thief: Thief | None = None) -> "dict[str, torch.Tensor]":
        from torch.nn.functional import cross_entropy

        thief = self.equipped(thief)
        last = [name for layer in weighted_layers(state)[-self.last :] for name in layer]
        model = thief.model(reinitialised(state, last, self.seed) if self.layers == "reinitialised last" else state)
        if self.layers == "last":
            trained = [p for name, p in model.named_parameters() if name in last]
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)
        else:
            trained = list(model.train().parameters())

        def loss(told: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            labels = thief.labels.to(pick.device)[pick]
            if labels.max() >= told.shape[-1]:
                raise FingerprintError(
                    f"The thief's labels go up to {int(labels.max())}, the model has {told.shape[-1]} classes: give "
                    "labels that it knows."
                )
            return cross_entropy(told, labels)

        optimizer = optimizer_over(trained, self.optimizer, self.lr, self.weight_decay)
        return state_of(train(model, thief, loss, optimizer, self.steps, self.seed))


@dataclass(frozen=True)
class TransferLearning(Attack):
    """Fine-tunes a copy on other data, for another task: a fresh last layer, then all layers.

    Unless the thief has data of another kind, a task is made of what there is: the images on their side, in negative,
    each class under another's number. What the suspect still knows of the owner's task is then not what it is worth.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): the strength: AdamW's learning rate, constant.
        steps (`int`, *optional*, defaults to 100): how many, of `thief.batch` images each.
        seed (`int`, *optional*, defaults to 0): of the order of images, and of the fresh layer.
        other ([`Thief`], *optional*): who has the other data.

    Raises:
        [`FingerprintError`]: if the labels aren't the model's, or the training diverges.
    """

    paper = "J. Yosinski et al., How transferable are features in deep neural networks?, NeurIPS 2014, arXiv 1411.1792"
    strengths = FineTuning.strengths
    needs_thief = True
    lr: float = 1e-4
    steps: int = 100
    seed: int = 0
    other: Thief | None = field(default=None, repr=False, compare=False)

    def __call__(self, state: "State", thief: Thief | None = None) -> "dict[str, torch.Tensor]":
        other = self.other or _with_another_task(self.equipped(thief))
        return FineTuning(self.lr, self.steps, "reinitialised last", seed=self.seed)(state, other)


def _with_another_task(thief: Thief) -> Thief:
    classes = int(thief.labels.max()) + 1
    return replace(thief, images=-thief.images.rot90(1, (2, 3)), labels=(thief.labels + 1) % classes)
