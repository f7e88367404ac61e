"""Collusion: several copies mixed weight by weight, to hide whose they were."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

    Mix = Callable[[torch.Tensor], torch.Tensor]


def _average(copies: "torch.Tensor") -> "torch.Tensor":
    return copies.double().mean(0).to(copies.dtype)


def _minimum(copies: "torch.Tensor") -> "torch.Tensor":
    return copies.amin(0)


def _maximum(copies: "torch.Tensor") -> "torch.Tensor":
    return copies.amax(0)


def _median(copies: "torch.Tensor") -> "torch.Tensor":
    return copies.median(0).values


def _minority(copies: "torch.Tensor") -> "torch.Tensor":
    """The extreme that is farther from the mean: the one that fewer copies hold, where a weight has two values."""
    low, high, mean = copies.amin(0), copies.amax(0), copies.double().mean(0)
    return low.where(mean - low > high - mean, high)


STRATEGIES: "dict[str, Mix]" = {
    "average": _average,
    "minimum": _minimum,
    "maximum": _maximum,
    "median": _median,
    "minority": _minority,
}


def collude(copies: "Sequence[Mapping[str, torch.Tensor]]", strategy: str = "average") -> "dict[str, torch.Tensor]":
    """Mixes several state dicts of one architecture.

    Args:
        copies (sequence of mappings): the state dicts.
        strategy (`str`, *optional*, defaults to `"average"`): one of `STRATEGIES`.
    """
    import torch

    mix = STRATEGIES[strategy]
    return {
        name: mix(torch.stack([copy[name] for copy in copies])) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in copies[0].items()
    }
