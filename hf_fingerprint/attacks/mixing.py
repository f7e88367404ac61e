"""Collusion: several copies mixed, tensor by tensor, to hide whose they were."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_fingerprint.attacks.attack import Attacker, is_weight
from hf_fingerprint.attacks.model_layers import layer_of
from hf_fingerprint.codes.collusion import VALUE_STRATEGIES, average, maximum, minimum, pick
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

    from hf_fingerprint.attacks.attack import State

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
    """Along the great circle between two copies; a third is joined to what comes of them, and so on."""
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
    """One tensor of all copies, `(c, ...)`, mixed weight by weight."""
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
    """Several copies of one architecture mixed into one, a tensor at a time.

    Weight by weight: the average (DeepMarks, arXiv 1804.03648), a weighted one, a random copy's, the minimum, the
    maximum, the mean of both, the median, a random extreme (H. V. Zhao et al., IEEE Trans. Image Processing 14(5),
    2005), the value that fewest have (B. Skoric et al., IEEE Trans. Information Theory 54(8), 2008). Tensor by tensor:
    along the great circle between copies (`"slerp"`: K. Shoemake, SIGGRAPH 1985, as model mergers use it), or whole
    layers or blocks dealt at random.

    Args:
        strategy (`str`, *optional*, defaults to `"average"`): one of `STRATEGIES`.
        weights (`tuple[float, ...]`, *optional*): each colluder's weight in `"weighted average"` and `"slerp"`, in
            any unit; by default 1, 2, 3, ... in the former and equal in the latter.
        seed (`int`, *optional*, defaults to 0): of what is random.

    Raises:
        [`FingerprintError`]: if there is no such strategy, or it takes no weights.
    """

    paper: ClassVar[str] = "DeepMarks, arXiv 1804.03648; H. V. Zhao et al., IEEE Trans. Image Processing 14(5), 2005"
    needs_attacker: ClassVar[bool] = False
    strategy: str = "average"
    weights: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise FingerprintError(f"Copies can't be mixed by {self.strategy}: choose {', '.join(STRATEGIES)}.")
        if self.weights is not None and self.strategy not in _WEIGHTED:
            raise FingerprintError(f"{self.strategy} takes no weights: choose {' or '.join(_WEIGHTED)}.")

    @property
    def strength(self) -> float:
        """1: what makes a collusion strong is the number of copies."""
        return 1.0

    def __call__(self, states: "Sequence[State]", attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The mixture. Tensors that aren't floating-point are the first copy's.

        Args:
            states (sequence of mappings): the colluders' state dicts; each tensor is looked up once.
            attacker ([`Attacker`], *optional*): not needed.

        Raises:
            [`FingerprintError`]: if there are no copies, they differ in their tensors' names or shapes, or the
                weights aren't one for each.
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
                _check_shapes(name, copies)
                found[name] = _mix(self.strategy, torch.stack(copies), weights, generator)
            else:
                found[name] = first.clone()
        return found

    def contributions(self, states: "Sequence[State]") -> tuple[float, ...]:
        """The share that each colluder gave, of the weights in which the copies differ: counted where whole tensors
        are dealt, else the weight in the mixture, which is equal unless said otherwise."""
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
            raise FingerprintError(f"{count} copies need {count} weights, none negative, not all 0: {weights}.")
        return tuple(weight / sum(weights) for weight in weights)

    def _assign_layers(self, names: list[str], count: int) -> dict[str, int]:
        """Who gives each tensor. A layer's weights, bias and statistics go together."""
        import torch

        group_of = block_of if self.strategy == "blocks" else layer_of
        parts = list(dict.fromkeys(group_of(name) for name in names))
        assignment = torch.randint(count, (len(parts),), generator=torch.Generator().manual_seed(self.seed)).tolist()
        contributor = dict(zip(parts, assignment, strict=True))
        return {name: contributor[group_of(name)] for name in names}


def block_of(name: str) -> str:
    """The block that a tensor belongs to, by its name: all up to the numbers, `blocks.2` or `stages.1.blocks.0`; the
    first part of a name without any."""
    found = _BLOCK.match(name)
    return found.group() if found else name.partition(".")[0]


def collude(copies: "Sequence[Mapping[str, torch.Tensor]]", strategy: str = "average") -> "dict[str, torch.Tensor]":
    """Mixes several state dicts of one architecture; short for `Collusion(strategy)(copies)`.

    Args:
        copies (sequence of mappings): the state dicts.
        strategy (`str`, *optional*, defaults to `"average"`): one of `STRATEGIES`.
    """
    return Collusion(strategy)(copies)


def _check_states(states: "Sequence[State]") -> None:
    if not states:
        raise FingerprintError("Nobody colludes: give at least one copy.")
    if any(state.keys() != states[0].keys() for state in states[1:]):
        raise FingerprintError("The copies have different tensors: colluders mix copies of one base.")


def _check_shapes(name: str, copies: "Sequence[torch.Tensor]") -> None:
    if len({copy.shape for copy in copies}) > 1:
        raise FingerprintError(f"Copies have {name} in different shapes: colluders mix copies of one base.")
