"""Symmetries: changes that preserve a model's function, such as permuted hidden channels, or rows rescaled or flipped
where a normalization undoes it (Y. Yan et al., arXiv 2205.00199).

Hidden channels of perceptrons, attention heads, bottlenecks and inverted residuals are found by timm's names. For the
residual stream, see `stream_permutation.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.basis_change import num_attention_heads
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_PAPER = "Y. Yan et al., Cracking white-box DNN watermarks via invariant neuron transforms, arXiv 2205.00199"
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_CHAINS = (
    (("fc1",), "fc2"),
    (("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_expand"), "conv_pwl"),
    (("conv1", "bn1"), "conv2"),
    (("conv2", "bn2"), "conv3"),
)


@dataclass(frozen=True)
class HiddenChannels:
    """The hidden channels between two layers.

    Attributes:
        rows (`tuple[str, ...]`): tensors with a row, or a number, per channel.
        columns (`tuple[str, ...]`): weights with a column per channel.
        norm_pairs (`tuple[tuple[str, str], ...]`): layers and the batch normalizations that follow them.
        count (`int`): the number of channels.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    norm_pairs: tuple[tuple[str, str], ...]
    count: int


def hidden_channels(state: State) -> Iterator[HiddenChannels]:
    """All hidden channels that timm's names identify."""
    firsts = {f".{parts[0]}.weight" for parts, _ in _CHAINS}
    for block in sorted({name.removesuffix(first) for name in state for first in firsts if name.endswith(first)}):
        for parts, last in _CHAINS:
            first, end = state.get(f"{block}.{parts[0]}.weight"), state.get(f"{block}.{last}.weight")
            if first is None or end is None or end.ndim < 2 or len(first) != end.shape[1]:
                continue
            rows = [f"{block}.{p}.{k}" for p in parts for k in NORM_TENSORS if f"{block}.{p}.{k}" in state]
            columns = [f"{block}.{last}.weight"] + [f"{block}.se.conv_reduce.weight"] * ("conv_dw" in parts)
            pairs = [(f"{block}.{layer}", f"{block}.{norm}") for layer, norm in pairwise(parts)]
            yield HiddenChannels(
                tuple(rows),
                tuple(name for name in columns if name in state),
                tuple(pair for pair in pairs if f"{pair[1]}.running_var" in state),
                len(first),
            )


def batch_norm_eps(eps: float | None, attacker: Attacker | None) -> float:
    """What batch normalizations add to the variance: `eps`, or the value in the attacker's model, or 1e-5."""
    import torch

    if eps is None and attacker is not None:
        norms = (part for part in attacker.build().modules() if isinstance(part, torch.nn.BatchNorm2d))
        eps = next((part.eps for part in norms), None)
    return 1e-5 if eps is None else eps


def partial_permutation(count: int, share: float, generator: "torch.Generator") -> "torch.Tensor":
    """A random permutation that moves at most this share of the indices, `(count,)`."""
    import torch

    moving = torch.randperm(count, generator=generator)[: round(share * count)]
    order = torch.arange(count)
    order[moving.sort().values] = moving
    return order


def permute_channels(
    state: "dict[str, torch.Tensor]", rows: Sequence[str], columns: Sequence[str], order: "torch.Tensor"
) -> None:
    """Permutes rows of some tensors and columns of others in place."""
    for name in rows:
        state[name] = state[name][order]
    for name in columns:
        state[name] = state[name][:, order]


@dataclass(frozen=True)
class ChannelPermutation(Attack):
    """Permutes hidden channels.

    Args:
        strength (`float`, *optional*, defaults to 1): the share of channels that move.
        seed (`int`, *optional*, defaults to 0): seed of the permutation.
    """

    paper = _PAPER
    strengths = (0.1, 0.5, 1.0)
    strength: float = 1.0
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        found = {name: tensor.clone() for name, tensor in state.items()}
        for channels in hidden_channels(state):
            order = partial_permutation(channels.count, self.strength, generator)
            permute_channels(found, channels.rows, channels.columns, order)
        return found


@dataclass(frozen=True)
class HeadPermutation(Attack):
    """Permutes attention heads.

    Args:
        heads (`int`, *optional*): heads per layer; by default those of the attacker's model.
        seed (`int`, *optional*, defaults to 0): seed of the permutation.
    """

    paper = _PAPER
    heads: int | None = None
    seed: int = 0

    @property
    def strength(self) -> float:
        return 1.0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        found = {name: tensor.clone() for name, tensor in state.items()}
        layers = [name for name in state if name.endswith(".attn.qkv.weight")]
        if not layers:
            raise FingerprintError("HeadPermutation found no attn.qkv: it needs a timm vision transformer.")
        heads = num_attention_heads(self.heads, attacker)
        for name in layers:
            block = name.removesuffix(".qkv.weight")
            width = len(found[name]) // 3
            order = torch.arange(width).reshape(heads, -1)[torch.randperm(heads, generator=generator)].flatten()
            whole = torch.cat([order, order + width, order + 2 * width])
            for rows in (name, f"{block}.qkv.bias"):
                if rows in found:
                    found[rows] = found[rows][whole]
            found[f"{block}.proj.weight"] = found[f"{block}.proj.weight"][:, order]
        return found


@dataclass(frozen=True)
class RowRescaling(Attack):
    """Multiplies the rows before a batch normalization by random factors, and its statistics to match.

    Args:
        strength (`float`, *optional*, defaults to 1): factors lie between `exp(-strength)` and `exp(strength)`.
        flip (`bool`, *optional*, defaults to `False`): whether half of the factors are negative.
        eps (`float`, *optional*): added to variances; by default that of the attacker's model, or 1e-5.
        seed (`int`, *optional*, defaults to 0): seed of the factors.
    """

    paper = _PAPER
    strengths = (0.1, 1.0, 3.0)
    strength: float = 1.0
    flip: bool = False
    eps: float | None = None
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        import torch

        generator, eps = torch.Generator().manual_seed(self.seed), batch_norm_eps(self.eps, attacker)
        found = {name: tensor.clone() for name, tensor in state.items()}
        for channels in hidden_channels(state):
            for layer, norm in channels.norm_pairs:
                weight = f"{layer}.weight"
                factor = torch.exp(self.strength * (2 * torch.rand(channels.count, generator=generator) - 1))
                if self.flip:
                    factor *= 1 - 2 * torch.randint(0, 2, factor.shape, generator=generator)
                factor = factor.to(found[weight].device)
                found[weight] = found[weight] * factor.reshape(-1, *[1] * (found[weight].ndim - 1))
                found[f"{norm}.running_mean"] = found[f"{norm}.running_mean"] * factor
                found[f"{norm}.running_var"] = (found[f"{norm}.running_var"] + eps) * factor**2 - eps
                found[f"{norm}.weight"] = found[f"{norm}.weight"] * factor.sign()
        return found
