"""Model merging: several copies merged by what each added to the ancestor, as mergekit does it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from hf_fingerprint.attacks.ancestor.on_delta import add_deltas, ancestor_weights, deltas_from, reestimate_norms
from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.mixing import Collusion
from hf_fingerprint.choices import wrong_choice
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

MERGE_RULES = ("mean", "elected signs", "model stock", "Karcher mean")
_PAPERS = {
    "mean": "G. Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089",
    "elected signs": "P. Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708",
    "model stock": "D.-H. Jang et al., Model stock: all we need is just a few fine-tuned models, arXiv 2403.19522",
    "Karcher mean": "H. Karcher, Riemannian center of mass and mollifier smoothing, CPAM 30(5), 1977",
}
_ROUNDS, _TOLERANCE = 10, 1e-9  # of the Karcher mean


@dataclass(frozen=True)
class Merge:
    """Merges several copies of one architecture: `ancestor + scale * rule(change(copy - ancestor) for each copy)`.

    Rules, for each tensor:

    * `"mean"`: task arithmetic with equal weights, `lambda = scale / copies`. With `change=RandomDropping(0.9)` it is
      DARE, with `MagnitudeBand(0.9, 0.01)` breadcrumbs.
    * `"elected signs"`: the sign of the sum of each weight's differences, then the mean of those that have it (TIES,
      section 4, steps 2 and 3). With `change=MagnitudeBand(0.2)` it is TIES, with `RandomDropping(0.9)` DARE with
      TIES, with `RandomDropping(0.5, 0.15)` DELLA.
    * `"model stock"`: the mean times `t = c cos / (1 + (c - 1) cos)`, for `c` copies of mean cosine `cos` (eq. 3).
    * `"Karcher mean"`: the weights' center of mass on the sphere, times their mean norm. The ancestor is not used.

    The last layer, biases and normalizations are averages. Batch normalizations get new statistics.

    Args:
        rule (`str`, *optional*, defaults to `"mean"`): one of `MERGE_RULES`.
        change ([`Attack`], *optional*): an attack on each copy's difference, such as [`MagnitudeBand`].
        scale (`float`, *optional*, defaults to 1): the factor on the merged difference.
        seed (`int`, *optional*, defaults to 0): seed of a random `change`, another for each copy.

    Raises:
        [`FingerprintError`]: if there is no such rule, or the Karcher mean gets a change or scale.
    """

    paper: ClassVar[str] = "of its rule"
    needs_attacker: ClassVar[bool] = True
    takes_copies: ClassVar[bool] = True
    rule: str = "mean"
    change: Attack | None = None
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in MERGE_RULES:
            raise FingerprintError(wrong_choice("rule", self.rule, MERGE_RULES))
        if self.rule == "Karcher mean" and (self.change, self.scale) != (None, 1.0):
            raise FingerprintError("A Karcher mean is of whole weights: leave out change and scale.")
        papers = (_PAPERS[self.rule], *([] if self.change is None else [self.change.paper]))
        object.__setattr__(self, "paper", "; ".join(papers))

    @property
    def strength(self) -> float:
        """That of the change, or else the scale."""
        return self.scale if self.change is None else self.change.strength

    def __call__(self, states: Sequence[State], attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        """The merged state dict.

        Args:
            states (sequence of mappings): the colluders' state dicts.
            attacker ([`Attacker`]): one with an ancestor.

        Raises:
            [`FingerprintError`]: if there are no copies, their tensors differ, or the attacker has no ancestor.
        """
        import torch

        if attacker is None:
            raise FingerprintError("Merge needs the public ancestor: pass an Attacker with it.")
        mixed = Collusion("average")(states)
        origin = ancestor_weights(mixed, attacker)
        if self.rule == "Karcher mean":
            merged = {n: _karcher_mean([state[n] for state in states]) - tensor for n, tensor in origin.items()}
        else:
            deltas = [
                self._changed(deltas_from(origin, state), attacker, i, len(states)) for i, state in enumerate(states)
            ]
            rule = {"mean": _mean, "elected signs": _elected_signs, "model stock": _model_stock}[self.rule]
            merged = {name: self.scale * rule(torch.stack([delta[name] for delta in deltas])) for name in origin}
        return reestimate_norms(add_deltas(mixed, origin, merged), attacker)

    def contributions(self, states: Sequence[State]) -> tuple[float, ...]:
        """Each colluder's share of the merge: the same for all."""
        return Collusion("average").contributions(states)

    def _changed(self, delta: State, attacker: Attacker, number: int, count: int) -> State:
        """A copy's difference after the change, with a seed of its own."""
        if self.change is None:
            return delta
        if any(each.name == "seed" for each in fields(self.change)):  # type: ignore[arg-type]
            return replace(self.change, seed=self.seed * count + number)(delta, attacker)  # type: ignore[type-var]
        return self.change(delta, attacker)


def _mean(deltas: "torch.Tensor") -> "torch.Tensor":
    return deltas.mean(0)


def _elected_signs(deltas: "torch.Tensor") -> "torch.Tensor":
    """The mean of those differences, of `(copies, ...)`, that have the sign of the sum. 0 has no sign."""
    elected = (deltas.sum(0) >= 0).to(deltas.dtype) * 2 - 1
    agree = deltas.sign() == elected
    return (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)


def _model_stock(deltas: "torch.Tensor") -> "torch.Tensor":
    """The mean of differences, of `(copies, ...)`, times the share that is the nearest to their center."""
    import torch

    count = len(deltas)
    if count == 1:
        return deltas[0]
    units = torch.nn.functional.normalize(deltas.reshape(count, -1), dim=1)
    cosine = ((units @ units.T).sum() - units.square().sum()) / (count * (count - 1))
    denominator = 1 + (count - 1) * cosine
    return deltas.mean(0) * (count * cosine / denominator if denominator.abs() > 1e-6 else 0.0)


def _karcher_mean(copies: "list[torch.Tensor]") -> "torch.Tensor":
    """The copies' center of mass on the sphere by its fixed-point iteration, times their mean norm, as float32."""
    import torch

    flat = torch.stack([copy.double().flatten() for copy in copies])
    norms = flat.norm(dim=1)
    kept = norms > 0
    if not kept.any():
        return copies[0].float()
    units = flat[kept] / norms[kept, None]
    mean = units.mean(0)
    mean = mean / mean.norm() if mean.norm() > _TOLERANCE else units[0]
    for _ in range(_ROUNDS):
        cosine = (units @ mean).clamp(-1, 1)
        angle = cosine.arccos()
        stretch = torch.where(angle > _TOLERANCE, angle / angle.sin().clamp_min(1e-300), 1.0)
        tangent = (stretch[:, None] * (units - cosine[:, None] * mean)).mean(0)
        length = tangent.norm()
        if length < _TOLERANCE:
            break
        mean = length.cos() * mean + length.sin() * tangent / length
        mean = mean / mean.norm()
    return (norms.mean() * mean).reshape(copies[0].shape).float()
