"""Pruning of weights of two or more dimensions: single weights, whole rows, or two of every four set to 0; and of
channels, which are removed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share, is_weight, largest_weights, map_weights
from hf_fingerprint.attacks.symmetries import hidden_channels, permute_channels
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

SCOPES = ("tensor", "global")


@dataclass(frozen=True)
class MagnitudePruning(Attack):
    """Sets the smallest weights of each tensor, or of the whole model, to 0.

    Args:
        sparsity (`float`): the strength: the share of weights to prune, 0 to 1.
        scope (`str`, *optional*, defaults to `"tensor"`): `"tensor"` prunes the same share of each tensor, `"global"`
            the smallest weights of the whole model.
    """

    paper = "S. Han et al., Learning both weights and connections for efficient neural networks, NIPS 2015"
    strengths = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    sparsity: float
    scope: str = "tensor"

    def __post_init__(self) -> None:
        check_share(self.sparsity)
        if self.scope not in SCOPES:
            raise FingerprintError(f"MagnitudePruning has no scope {self.scope!r}: choose {' or '.join(SCOPES)}.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        if self.scope == "tensor":
            return map_weights(state, lambda tensor: _without_smallest(tensor, self.sparsity), attacker=attacker)
        found = {name: tensor.clone() for name, tensor in state.items()}
        weights = [tensor for tensor in found.values() if is_weight(tensor)]
        if weights:
            together = torch.cat([tensor.flatten().float() for tensor in weights])
            kept = (_without_smallest(together, self.sparsity) != 0).split([tensor.numel() for tensor in weights])
            for tensor, keep in zip(weights, kept, strict=True):
                tensor.mul_(keep.reshape(tensor.shape))
        return found


@dataclass(frozen=True)
class StructuredPruning(Attack):
    """Sets whole output rows to 0: in each tensor, those with the smallest sum of absolute weights. Shapes stay.

    Args:
        sparsity (`float`): the strength: the share of rows to prune, 0 to 1.
    """

    paper = "H. Li et al., Pruning filters for efficient ConvNets, ICLR 2017, arXiv 1608.08710"
    strengths = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    sparsity: float

    def __post_init__(self) -> None:
        check_share(self.sparsity)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        def prune(tensor: "torch.Tensor") -> "torch.Tensor":
            pruned, size = tensor.clone(), tensor.flatten(1).float().abs().sum(1)
            pruned[size.argsort(dim=0, stable=True)[: round(self.sparsity * len(tensor))]] = 0
            return pruned

        return map_weights(state, prune, attacker=attacker)


@dataclass(frozen=True)
class ChannelRemoval(Attack):
    """Removes hidden channels: those with the smallest norm of the weights that write them. The result's widths fit no
    standard architecture.

    Hidden channels are found by timm's names; the residual stream keeps its width.

    Args:
        share (`float`): the strength: the share of channels to remove, 0 to 1; one is always left.
    """

    paper = "G. Fang et al., DepGraph: towards any structural pruning, CVPR 2023, arXiv 2301.12900"
    strengths = (0.1, 0.25, 0.4)
    share: float

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        found = {name: tensor.clone() for name, tensor in state.items()}
        groups = list(hidden_channels(state))
        if not groups:
            raise FingerprintError("ChannelRemoval found no hidden layers that it knows: it needs timm's layer names.")
        for channels in groups:
            size = found[channels.rows[0]].flatten(1).float().norm(dim=1)
            removed = min(round(self.share * channels.count), channels.count - 1)
            kept = size.argsort(dim=0, stable=True)[removed:].sort().values
            permute_channels(found, channels.rows, channels.columns, kept)
        return found


@dataclass(frozen=True)
class SemiStructuredPruning(Attack):
    """Sets the two smallest of every four weights in a row to 0, the sparsity pattern that GPUs accelerate.

    If a row's length is not a multiple of four, its last weights are kept.

    Args:
        share (`float`, *optional*, defaults to 1): the strength: the share of tensors to prune, largest first.
    """

    paper = "A. Mishra et al., Accelerating sparse deep neural networks, arXiv 2104.08378"
    strengths = (0.25, 0.5, 1.0)
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        def prune(tensor: "torch.Tensor") -> "torch.Tensor":
            rows = tensor.flatten(1).clone()
            whole = rows.shape[1] // 4 * 4
            fours = rows[:, :whole].reshape(len(rows), -1, 4)
            fours = fours.scatter(2, fours.abs().argsort(dim=2, stable=True)[..., :2], 0)
            rows[:, :whole] = fours.reshape(len(rows), whole)
            return rows.reshape(tensor.shape)

        return map_weights(state, prune, largest_weights(state, self.share), attacker=attacker)


def _without_smallest(tensor: "torch.Tensor", share: float) -> "torch.Tensor":
    import torch

    pruned = tensor.clone().flatten()
    pruned[torch.topk(pruned.abs(), round(share * pruned.numel()), largest=False).indices] = 0
    return pruned.reshape(tensor.shape)
