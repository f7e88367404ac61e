"""Attacks on `copy - ancestor`: what fine-tuning and the mark added to a public model.

The weights of two or more dimensions that the ancestor has in the same shape are attacked. The last layer, biases,
normalizations and what the ancestor has in another shape stay the copy's. Batch normalizations get new statistics.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hf_fingerprint.attacks.attack import Attack, Attacker, State, is_weight, map_weights
from hf_fingerprint.attacks.destruction import BatchNormReestimation
from hf_fingerprint.attacks.model_layers import group_by_layer
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OnDelta(Attack):
    """Runs an attack on weights on `copy - ancestor` instead: `OnDelta(LowRank(0.1))`.

    That is rank truncation, as `mergekit-extract-lora` does it. `OnDelta(Quantization(4))` rounds the difference to a
    grid, `OnDelta(Scaling(0.5))` is halfway between ancestor and copy.

    Args:
        attack ([`Attack`]): an attack that needs no attacker. It gets the differences as float32.

    Raises:
        [`FingerprintError`]: if the attack needs an attacker, or the attacker has no ancestor of these shapes.
    """

    paper = "of its attack"
    needs_attacker = True
    attack: Attack

    def __post_init__(self) -> None:
        if self.attack.needs_attacker:
            raise FingerprintError(f"OnDelta can't run {self.attack!r}: choose an attack that runs no model.")
        object.__setattr__(self, "paper", self.attack.paper)

    @property
    def strength(self) -> float:
        """That of the attack on the difference."""
        return self.attack.strength

    def sweep(self) -> list[Self]:
        """The attack on the difference at each of its strengths."""
        return [type(self)(attack) for attack in self.attack.sweep()]

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        attacker = self.require_attacker(attacker)
        origin = ancestor_weights(state, attacker)
        changed = self.attack(deltas_from(origin, state), attacker)
        return reestimate_norms(add_deltas(state, origin, changed), attacker)


@dataclass(frozen=True)
class AncestorControl(Attack):
    """The control: the ancestor's weights with the copy's last layer, biases and normalizations.

    An attacker has this model without the copy's other weights, and it has no mark. An attack that loses the mark, and
    is no better than this after as many steps of training, kept nothing of the copy.

    Raises:
        [`FingerprintError`]: if the attacker has no ancestor of these shapes.
    """

    paper = "none: the ancestor is public"
    needs_attacker = True

    @property
    def strength(self) -> float:
        """Always 1."""
        return 1.0

    def sweep(self) -> list[Self]:
        """Itself alone."""
        return [self]

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        return OnDelta(Scaling(0.0))(state, attacker)


@dataclass(frozen=True)
class Scaling(Attack):
    """Multiplies weights of two or more dimensions by a factor.

    `OnDelta(Scaling(alpha))` is the interpolation between ancestor and copy of WiSE-FT (equation 2), and task
    arithmetic with one copy.

    Args:
        factor (`float`): the strength: 1 changes nothing, 0 leaves nothing.
    """

    paper = "M. Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), CVPR 2022, arXiv 2109.01903"
    strengths = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)
    factor: float

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        return map_weights(state, lambda tensor: self.factor * tensor, attacker=attacker)


def ancestor_weights(state: State, attacker: Attacker) -> "dict[str, torch.Tensor]":
    """The ancestor's weights that an attack works on, as float32, by the copy's names.

    Raises:
        [`FingerprintError`]: if the attacker has no ancestor, or one of other shapes.
    """
    if attacker.ancestor is None:
        raise FingerprintError("This attack needs the public ancestor: pass its state dict as Attacker(ancestor=...).")
    head = set(group_by_layer(state)[-1])
    found = {
        name: attacker.ancestor[name].detach().to(tensor.device).float()
        for name, tensor in state.items()
        if is_weight(tensor) and name not in head and name in attacker.ancestor
        if attacker.ancestor[name].shape == tensor.shape
    }
    if not found:
        raise FingerprintError(
            "The ancestor has none of the copy's weights: pass the state dict of the model that was fine-tuned."
        )
    return found


def deltas_from(origin: State, state: State) -> "dict[str, torch.Tensor]":
    """The differences between a copy and the ancestor's weights `origin`, as float32."""
    return {name: state[name].float() - tensor for name, tensor in origin.items()}


def add_deltas(state: State, origin: State, deltas: State) -> "dict[str, torch.Tensor]":
    """The state with the weights of `origin` replaced by `origin + deltas`, in the dtypes of the state."""
    return {n: (origin[n] + deltas[n]).to(t.dtype) if n in origin else t.clone() for n, t in state.items()}


def reestimate_norms(state: "dict[str, torch.Tensor]", attacker: Attacker) -> "dict[str, torch.Tensor]":
    """The state with statistics of the attacker's images in its batch normalizations, if it has any."""
    has_statistics = any(name.endswith("running_mean") for name in state)
    return BatchNormReestimation()(state, attacker) if has_statistics else state
