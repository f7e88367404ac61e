"""Fine-tuning of a copy on the attacker's images, for the same task or another."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.model_layers import group_by_layer, reinitialize_tensors
from hf_fingerprint.attacks.training_loop import OPTIMIZERS, cpu_state_dict, make_optimizer, train
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

LAYERS = ("all", "last", "reinitialized last")


@dataclass(frozen=True)
class FineTuning(Attack):
    """Trains a copy on the attacker's images and labels with cross-entropy.

    The paper's names: `"all"` is FTAL, `"last"` is FTLL, `"reinitialized last"` is RTAL, which reinitializes the last
    layers and trains all. With `"last"`, the normalization statistics of the other layers stay fixed too.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): the strength: the learning rate, constant.
        steps (`int`, *optional*, defaults to 100): training steps, of `attacker.batch` images each.
        layers (`str`, *optional*, defaults to `"all"`): one of `LAYERS`.
        optimizer (`str`, *optional*, defaults to `"adamw"`): `"adamw"`, or `"sgd"` with momentum 0.9.
        weight_decay (`float`, *optional*, defaults to 0.01): the optimizer's.
        last (`int`, *optional*, defaults to 1): how many layers count as the last ones.
        seed (`int`, *optional*, defaults to 0): seed of the order of images and of reinitialized layers.

    Raises:
        [`FingerprintError`]: if the labels aren't the model's, or the training diverges.
    """

    paper = "Y. Adi et al., Turning your weakness into a strength, USENIX Security 2018, arXiv 1802.04633"
    strengths = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    needs_attacker = True
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
                f"FineTuning can't train layers {self.layers!r} with {self.optimizer!r}: choose {', '.join(LAYERS)} "
                f"and {' or '.join(OPTIMIZERS)}."
            )

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        from torch.nn.functional import cross_entropy

        attacker = self.require_attacker(attacker)
        last = [name for layer in group_by_layer(state)[-self.last :] for name in layer]
        fresh = self.layers == "reinitialized last"
        model = attacker.model(reinitialize_tensors(state, last, self.seed) if fresh else state)
        if self.layers == "last":
            trained = [p for name, p in model.requires_grad_(False).named_parameters() if name in last]
            for parameter in trained:
                parameter.requires_grad_(True)
        else:
            trained = list(model.train().parameters())

        def loss(logits: "torch.Tensor", pick: "torch.Tensor") -> "torch.Tensor":
            labels = attacker.labels.to(pick.device)[pick]
            if labels.max() >= logits.shape[-1]:
                raise FingerprintError(
                    f"Labels reach {int(labels.max())}, but the model has {logits.shape[-1]} classes: pass lower ones."
                )
            return cross_entropy(logits, labels)

        optimizer = make_optimizer(trained, self.optimizer, self.lr, self.weight_decay)
        return cpu_state_dict(train(model, attacker, loss, optimizer, self.steps, self.seed))


@dataclass(frozen=True)
class TransferLearning(Attack):
    """Fine-tunes a copy for another task: reinitializes the last layer, then trains all layers.

    Without `other`, the task is made from the attacker's own data: images rotated and in negative, class numbers
    shifted by one. The suspect's accuracy on the owner's task then says little about its worth.

    Args:
        lr (`float`, *optional*, defaults to 1e-4): the strength: AdamW's learning rate, constant.
        steps (`int`, *optional*, defaults to 100): training steps, of `attacker.batch` images each.
        seed (`int`, *optional*, defaults to 0): seed of the order of images and of the last layer.
        other ([`Attacker`], *optional*): an attacker with data for the other task.

    Raises:
        [`FingerprintError`]: if the labels aren't the model's, or the training diverges.
    """

    paper = "J. Yosinski et al., How transferable are features in deep neural networks?, NeurIPS 2014, arXiv 1411.1792"
    strengths = FineTuning.strengths
    needs_attacker = True
    lr: float = 1e-4
    steps: int = 100
    seed: int = 0
    other: Attacker | None = field(default=None, repr=False, compare=False)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        other = self.other or _relabel_for_other_task(self.require_attacker(attacker))
        return FineTuning(self.lr, self.steps, "reinitialized last", seed=self.seed)(state, other)


def _relabel_for_other_task(attacker: Attacker) -> Attacker:
    classes = int(attacker.labels.max()) + 1
    return replace(attacker, images=-attacker.images.rot90(1, (2, 3)), labels=(attacker.labels + 1) % classes)
