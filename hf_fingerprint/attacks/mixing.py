"""Collusion: several copies mixed into one, to hide whose copies they were."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_fingerprint.attacks.attack import Attacker, State, is_weight
from hf_fingerprint.attacks.model_layers import layer_of
from hf_fingerprint.choices import wrong_choice
from hf_fingerprint.codes.collusion import VALUE_STRATEGIES, average, maximum, minimum, pick
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"^.*?\.?\d+(?:\.(?:blocks?\.|layers?\.)?\d+)*(?=\.)")
_LAYER_WISE, _WEIGHTED = ("layers", "blocks"), ("weighted average", "slerp")
STRATEGIES = (
    "average",
    "weighted average",
    "slerp",
    "random pick",
    "minimum",
    "maximum",
    "min-max",
    "median",
    "random extreme",
    "minority",
    *_LAYER_WISE,
)


def _slerp(copies: "torch.Tensor", weights: tuple[float, ...]) -> "torch.Tensor":
    """Spherical interpolation between two copies, then between the result and the next copy, and so on."""
    import torch

    mixed, total = copies[0].double(), weights[0]
    for copy, weight in zip(copies[1:].double(), weights[1:], strict=True):
        total += weight
        step = weight / total if total else 0.0
        norms = mixed.norm() * copy.norm()
        angle = torch.arccos(((mixed * copy).sum() / norms.clamp_min(1e-300)).clamp(-1, 1))
        sine = angle.sin()
        if sine > 1e-6:  # else the arc is a line
            mixed = mixed * (((1 - step) * angle).sin() / sine) + copy * ((step * angle).sin() / sine)
        else:
            mixed = mixed + step * (copy - mixed)
    return mixed.to(copies.dtype)


def _mix(
    strategy: str, copies: "torch.Tensor", weights: tuple[float, ...], generator: "torch.Generator"
) -> "torch.Tensor":
    """One tensor of all copies, `(c, ...)`, mixed by a strategy."""
    import torch

    if strategy == "slerp":
        return _slerp(copies, weights)
    wide = copies.float() if copies.element_size() < 4 else copies  # numpy has no bfloat16
    values = wide.detach().cpu().numpy()
    if strategy in ("average", "weighted average"):
        mixed = average(values, weights)
    elif strategy == "random pick":
        mixed = pick(values, torch.randint(len(copies), copies.shape[1:], generator=generator).numpy())
    elif strategy == "random extreme":
        low = (torch.rand(copies.shape[1:], generator=generator) < 0.5).numpy()
        mixed = np.where(low, minimum(values), maximum(values))
    else:
        mixed = VALUE_STRATEGIES[strategy](values)
    return torch.as_tensor(mixed).to(copies.device, copies.dtype)


@dataclass(frozen=True)
class Collusion:
    """Mixes several copies of one architecture into one.

    Strategies for each weight: the average (DeepMarks, arXiv 1804.03648), a weighted average, a random copy's value,
    the minimum, the maximum, the mean of both, the median, a random extreme (H. V. Zhao et al., IEEE Trans. Image
    Processing 14(5), 2005), the value of the minority (B. Skoric et al., IEEE Trans. Information Theory 54(8), 2008).
    For each tensor: spherical interpolation (`"slerp"`: K. Shoemake, SIGGRAPH 1985, common in model merging). For
    whole `"layers"` or `"blocks"`: those of a random copy.

    Args:
        strategy (`str`, *optional*, defaults to `"average"`): one of `STRATEGIES`.
        weights (`tuple[float, ...]`, *optional*): each colluder's weight in `"weighted average"` and `"slerp"`, in any
            unit; by default 1, 2, 3, ... for the former and equal for the latter.
        seed (`int`, *optional*, defaults to 0): seed of random strategies.

    Raises:
        [`FingerprintError`]: if there is no such strategy, or it takes no weights.
    """

    paper: ClassVar[str] = "DeepMarks, arXiv 1804.03648; H. V. Zhao et al., IEEE Trans. Image Processing 14(5), 2005"
    needs_attacker: ClassVar[bool] = False
    takes_copies: ClassVar[bool] = True
    strategy: str = "average"
    weights: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise FingerprintError(wrong_choice("strategy", self.strategy, STRATEGIES))
        if self.weights is not None and self.strategy not in _WEIGHTED:
            raise FingerprintError(f"{self.strategy} takes no weights: choose {' or '.join(_WEIGHTED)}.")

    @property
    def strength(self) -> float:
        """Always 1: a collusion's strength is its number of copies."""
        return 1.0

    def __call__(self, states: Sequence[State], attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The mixed state dict. Tensors that are not floating-point are those of the first copy.

        Args:
            states (sequence of mappings): the colluders' state dicts. Each tensor is looked up once.
            attacker ([`Attacker`], *optional*): ignored.

        Raises:
            [`FingerprintError`]: if there are no copies, their tensors differ, or the number of weights is wrong.
        """
        import torch

        _check_states(states)
        weights = self._weights(len(states))
        generator = torch.Generator().manual_seed(self.seed)
        layer_wise = self.strategy in _LAYER_WISE
        contributor = self._assign_layers(list(states[0]), len(states)) if layer_wise else {}
        found = {}
        for name, first in states[0].items():
            if layer_wise:
                found[name] = states[contributor[name]][name].clone()
            elif first.is_floating_point():
                copies = [first, *(state[name] for state in states[1:])]
                if len({copy.shape for copy in copies}) > 1:
                    raise FingerprintError(f"The copies have {name} in different shapes: give copies of one base.")
                found[name] = _mix(self.strategy, torch.stack(copies), weights, generator)
            else:
                found[name] = first.clone()
        return found

    def contributions(self, states: Sequence[State]) -> tuple[float, ...]:
        """Each colluder's share of the mixture: for layer-wise strategies the share of the differing weights that it
        contributed, otherwise its weight."""
        _check_states(states)
        if self.strategy not in _LAYER_WISE:
            return self._weights(len(states))
        contributor, counts = self._assign_layers(list(states[0]), len(states)), [0] * len(states)
        for name, first in states[0].items():
            if is_weight(first) and any(not state[name].equal(first) for state in states[1:]):
                counts[contributor[name]] += first.numel()
        total = sum(counts)
        return tuple(count / total if total else 1 / len(states) for count in counts)

    def _weights(self, count: int) -> tuple[float, ...]:
        weights = (1.0,) * count if self.weights is None else self.weights
        if self.weights is None and self.strategy == "weighted average":
            weights = tuple(float(i + 1) for i in range(count))
        if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
            raise FingerprintError(f"{count} copies got weights {weights}: give each one, none negative, not all 0.")
        return tuple(weight / sum(weights) for weight in weights)

    def _assign_layers(self, names: list[str], count: int) -> dict[str, int]:
        """The index of the copy that contributes each tensor. A layer's tensors stay together."""
        import torch

        group_of = block_of if self.strategy == "blocks" else layer_of
        parts = list(dict.fromkeys(group_of(name) for name in names))
        assignment = torch.randint(count, (len(parts),), generator=torch.Generator().manual_seed(self.seed)).tolist()
        contributor = dict(zip(parts, assignment, strict=True))
        return {name: contributor[group_of(name)] for name in names}


def block_of(name: str) -> str:
    """A tensor's block, such as `blocks.2` or `stages.1.blocks.0`; the first part of a name without numbers."""
    found = _BLOCK.match(name)
    return found.group() if found else name.partition(".")[0]


def collude(copies: "Sequence[Mapping[str, torch.Tensor]]", strategy: str = "average") -> "dict[str, torch.Tensor]":
    """Mixes several state dicts of one architecture. Short for `Collusion(strategy)(copies)`."""
    return Collusion(strategy)(copies)


def _check_states(states: Sequence[State]) -> None:
    if not states:
        raise FingerprintError("A collusion needs copies: give at least one.")
    if any(state.keys() != states[0].keys() for state in states[1:]):
        raise FingerprintError("The copies have different tensors: give copies of one base.")
