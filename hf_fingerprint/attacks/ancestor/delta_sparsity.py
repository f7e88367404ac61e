"""Sparse weights, made for differences to an ancestor: what TIES, DARE, breadcrumbs and DELLA do before they merge."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share, map_weights
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MagnitudeBand(Attack):
    """Keeps the largest weights of each tensor, but for outliers, and sets the rest to 0.

    Without outliers this is the trimming of TIES (section 4, step 1), with them the mask of breadcrumbs (section 3).

    Args:
        kept (`float`): the strength: the share of weights kept, 0 to 1. Less is stronger.
        outliers (`float`, *optional*, defaults to 0): the share of largest weights that are set to 0 too. Fewer, if
            less than `kept` would remain.

    Raises:
        [`FingerprintError`]: if a share is not between 0 and 1.
    """

    paper = (
        "P. Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708; M. Davari, E. Belilovsky, Model breadcrumbs, "
        "ECCV 2024, arXiv 2312.06795"
    )
    strengths = (0.8, 0.5, 0.2, 0.1, 0.05, 0.01)
    kept: float
    outliers: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.kept)
        check_share(self.outliers)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        def keep(tensor: "torch.Tensor") -> "torch.Tensor":
            flat = tensor.flatten()
            count, removed = int(self.kept * len(flat)), int(self.outliers * len(flat))
            order = flat.float().abs().argsort(descending=True, stable=True)
            first = min(removed, len(flat) - count)
            chosen = order[first : first + count]
            found = torch.zeros_like(flat)
            found[chosen] = flat[chosen]
            return found.reshape(tensor.shape)

        return map_weights(state, keep, attacker=attacker)


@dataclass(frozen=True)
class RandomDropping(Attack):
    """Sets random weights to 0 and divides the others by their chance to stay, so that the mean is unchanged.

    Without a window this is DARE. With one, the chance to be dropped falls linearly from `dropped + window` for the
    smallest weight of a row to `dropped - window` for the largest: MagPrune of DELLA (section 3), whose epsilon is
    twice the window. In mergekit, the window is `epsilon` and the kept share `density`.

    Args:
        dropped (`float`): the strength: the mean chance to be dropped, 0 to below 1.
        window (`float`, *optional*, defaults to 0): how far the chance depends on the magnitude.
        seed (`int`, *optional*, defaults to 0): seed of the choice.

    Raises:
        [`FingerprintError`]: if a chance is below 0, or 1 or more.
    """

    paper = (
        "L. Yu et al., Language models are super Mario (DARE), ICML 2024, arXiv 2311.03099; P. T. Deep et al., "
        "DELLA-Merging, arXiv 2406.11617"
    )
    strengths = (0.5, 0.9, 0.95, 0.99, 0.999)
    dropped: float
    window: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dropped - self.window <= self.dropped + self.window < 1:
            raise FingerprintError(
                f"RandomDropping got dropped {self.dropped} and window {self.window}: choose them so that "
                "0 <= dropped - window and dropped + window < 1."
            )

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        generator = torch.Generator().manual_seed(self.seed)

        def drop(tensor: "torch.Tensor") -> "torch.Tensor":
            chance = self._chance_to_stay(tensor.float().flatten(1)).reshape(tensor.shape)
            stays = torch.bernoulli(chance.cpu(), generator=generator).to(tensor.device)
            return (tensor.float() * stays / chance).to(tensor.dtype)

        return map_weights(state, drop, attacker=attacker)

    def _chance_to_stay(self, rows: "torch.Tensor") -> "torch.Tensor":
        """The chance of each weight to stay, `(rows, columns)`."""
        import torch

        if not self.window:
            return torch.full_like(rows, 1 - self.dropped)
        rank = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).float()
        position = rank / max(rows.shape[1] - 1, 1)  # 0 for a row's smallest weight, 1 for its largest
        return 1 - self.dropped - self.window + 2 * self.window * position
