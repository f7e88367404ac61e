"""Changes to the singular values of weights, made for differences to an ancestor. A kernel has one row per channel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, map_weights


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SingularValueShrinkage(Attack):
    """Lowers each singular value by a threshold, to 0 at least: the proximal step of the nuclear norm (equation 2.3).

    Args:
        threshold (`float`): the strength: the threshold, in units of each tensor's median singular value.
    """

    paper = "J.-F. Cai, E. J. Candes, Z. Shen, A singular value thresholding algorithm, arXiv 0810.3286"
    strengths = (0.5, 1.0, 2.0, 4.0, 8.0)
    threshold: float

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        def shrink(tensor: "torch.Tensor") -> "torch.Tensor":
            left, values, right = torch.linalg.svd(tensor.float().flatten(1), full_matrices=False)
            values = (values - self.threshold * values.median()).clamp_min(0)
            return ((left * values) @ right).to(tensor.dtype).reshape(tensor.shape)

        return map_weights(state, shrink, attacker=attacker)


@dataclass(frozen=True)
class SpectralNoise(Attack):
    """Adds Gaussian noise in the directions of each weight matrix, more where its singular values are larger.

    With singular vectors `u_i`, `v_j` and singular values `s`, the component of the noise along `u_i v_j^T` has a
    variance proportional to `(s_i s_j)^(2 power)`. On `copy - ancestor` it is the answer to an extraction that reads
    where the drift is weak: after rank truncation these are the directions that were kept, and the noise is there.

    Args:
        size (`float`): the strength: the noise's norm, in units of each tensor's.
        power (`float`, *optional*, defaults to 0.5): 0.5 gives the noise the tensor's own spectrum, 0 a flat one.
        seed (`int`, *optional*, defaults to 0): seed of the noise.
    """

    paper = "none: noise of the spectrum of fine-tuning, against extraction that whitens it"
    strengths = (0.03, 0.1, 0.3, 1.0, 3.0)
    size: float
    power: float = 0.5
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        generator = torch.Generator().manual_seed(self.seed)

        def add(tensor: "torch.Tensor") -> "torch.Tensor":
            left, values, right = torch.linalg.svd(tensor.float().flatten(1), full_matrices=False)
            rounding = max(tensor.flatten(1).shape) * torch.finfo(values.dtype).eps * values[0]
            color = values**self.power * (values > rounding)
            noise = torch.randn(len(values), len(values), generator=generator).to(tensor.device)
            noise = color[:, None] * noise * color
            noise *= self.size * values.norm() / noise.norm().clamp_min(1e-30)
            return (tensor.float() + (left @ noise @ right).reshape(tensor.shape)).to(tensor.dtype)

        return map_weights(state, add, attacker=attacker)
