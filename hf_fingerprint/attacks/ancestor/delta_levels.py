"""Weights of two or three levels, made for differences to an ancestor. For grids there is [`Quantization`]."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share, largest_weights, map_weights


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Binarization(Attack):
    """Replaces the weights of each tensor by their signs times their mean magnitude: BitDelta's first stage (equation
    4). Its second stage, which trains the scales on data, is not part of it.

    Args:
        share (`float`, *optional*, defaults to 1): the strength: the share of tensors binarized, largest first.
    """

    paper = "J. Liu et al., BitDelta: your fine-tune may only be worth one bit, NeurIPS 2024, arXiv 2402.10193"
    strengths = (0.25, 0.5, 1.0)
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        def binarize(tensor: "torch.Tensor") -> "torch.Tensor":
            return tensor.sign() * tensor.abs().mean()

        return map_weights(state, binarize, largest_weights(state, self.share), attacker=attacker)


@dataclass(frozen=True)
class Ternarization(Attack):
    """Sets weights below a threshold to 0 and replaces the others by their signs times their mean magnitude.

    Args:
        threshold (`float`): the strength: the threshold, in units of each tensor's mean magnitude. The paper's is 0.7.
    """

    paper = "F. Li et al., Ternary weight networks, arXiv 1605.04711"
    strengths = (0.35, 0.7, 1.4, 2.8, 5.6)
    threshold: float

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        def ternarize(tensor: "torch.Tensor") -> "torch.Tensor":
            size = tensor.abs()
            kept = size > self.threshold * size.mean()
            return tensor.sign() * kept * ((size * kept).sum() / kept.sum().clamp_min(1)).to(tensor.dtype)

        return map_weights(state, ternarize, attacker=attacker)
