"""Compression: pruning, quantisation, lower precision. Weights of two or more dimensions are changed, others kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


def _is_weight(tensor: "torch.Tensor") -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > 0


@dataclass(frozen=True)
class MagnitudePruning:
    """Sets the smallest weights of each tensor to 0 (S. Han et al., NIPS 2015).

    Args:
        sparsity (`float`): the share of weights to prune, 0 to 1.
    """

    sparsity: float

    def __call__(self, state: "State") -> dict[str, "torch.Tensor"]:
        return {name: self._prune(t) if _is_weight(t) else t.clone() for name, t in state.items()}

    def _prune(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch

        pruned = tensor.clone().flatten()
        count = round(self.sparsity * pruned.numel())
        pruned[torch.topk(pruned.abs(), count, largest=False).indices] = 0
        return pruned.reshape(tensor.shape)


@dataclass(frozen=True)
class Quantization:
    """Rounds the weights of each tensor, or of each output channel, to a symmetric integer grid, and back to floats.

    Args:
        bits (`int`, *optional*, defaults to 8): bits of a weight.
        by_channel (`bool`, *optional*, defaults to `False`): one scale for each output channel.
    """

    bits: int = 8
    by_channel: bool = False

    def __call__(self, state: "State") -> dict[str, "torch.Tensor"]:
        return {name: self._quantise(t) if _is_weight(t) else t.clone() for name, t in state.items()}

    def _quantise(self, tensor: "torch.Tensor") -> "torch.Tensor":
        levels = 2 ** (self.bits - 1) - 1
        rows = tensor.flatten(1) if self.by_channel else tensor.reshape(1, -1)
        scale = (rows.abs().amax(1, keepdim=True) / levels).clamp_min(1e-30)
        return ((rows / scale).round() * scale).reshape(tensor.shape)


@dataclass(frozen=True)
class Cast:
    """Stores floating-point tensors in another precision.

    Args:
        dtype (`str`, *optional*, defaults to `"bfloat16"`): a torch dtype's name.
    """

    dtype: str = "bfloat16"

    def __call__(self, state: "State") -> dict[str, "torch.Tensor"]:
        import torch

        return {
            n: t.to(getattr(torch, self.dtype), copy=True) if t.is_floating_point() else t.clone()
            for n, t in state.items()
        }
