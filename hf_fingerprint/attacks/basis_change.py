"""Changes of basis that preserve a vision transformer's function: inside attention heads, and of the whole residual
stream. Layers are found by timm's names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.stream_layers import change_bases, fold_normalizations, stream_segments
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch


def num_attention_heads(heads: int | None, attacker: Attacker | None) -> int:
    """The number of attention heads: `heads`, or that of the attacker's model. Raises an error if unknown."""
    if heads is None and attacker is not None:
        numbers = (getattr(module, "num_heads", None) for module in attacker.build().modules())
        heads = next((number for number in numbers if isinstance(number, int)), None)
    if heads is None:
        raise FingerprintError("The number of attention heads is unknown: pass heads, or an Attacker.")
    return heads


@dataclass(frozen=True)
class HeadBasisChange(Attack):
    """Multiplies queries and keys, and values and outputs, of each head by matrices that cancel.

    Attention scores depend on `q^T k` alone, so `A q` and `A^-T k` give the same scores.

    Args:
        strength (`float`, *optional*, defaults to 1): A's singular values are `exp(-strength)` to `exp(strength)`.
        heads (`int`, *optional*): heads per layer; by default those of the attacker's model.
        seed (`int`, *optional*, defaults to 0): seed of the matrices.
    """

    paper = "the gauge freedom of attention; N. Elhage et al., A mathematical framework for transformer circuits, 2021"
    strengths = (0.1, 0.5, 1.0)
    strength: float = 1.0
    heads: int | None = None
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        found = {name: tensor.clone() for name, tensor in state.items()}
        blocks = [name.removesuffix(".qkv.weight") for name in state if name.endswith(".attn.qkv.weight")]
        if not blocks:
            raise FingerprintError("HeadBasisChange found no attn.qkv: it needs a timm vision transformer.")
        heads = num_attention_heads(self.heads, attacker)
        for block in blocks:
            weight, output = (found[f"{block}.{part}.weight"] for part in ("qkv", "proj"))
            width = len(weight) // 3 // heads
            scores, values = (self._matrices(heads, width, generator) for _ in range(2))
            scores, values = scores.to(weight.device), values.to(weight.device)
            change = torch.stack([scores, torch.linalg.inv(scores).mT, values])
            for name in (f"{block}.qkv.weight", f"{block}.qkv.bias"):
                if name in found:
                    parts = found[name].double().reshape(3, heads, width, -1)
                    found[name] = (change @ parts).reshape(found[name].shape).to(weight.dtype)
            parts = output.double().reshape(len(output), heads, width)
            mixed = torch.einsum("rhw,hwv->rhv", parts, torch.linalg.inv(values))
            found[f"{block}.proj.weight"] = mixed.reshape(output.shape).to(output.dtype)
        return found

    def _matrices(self, heads: int, width: int, generator: "torch.Generator") -> "torch.Tensor":
        import torch

        random = {"generator": generator, "dtype": torch.float64}
        left, right = (torch.linalg.qr(torch.randn(heads, width, width, **random))[0] for _ in range(2))
        spread = torch.exp(self.strength * (2 * torch.rand(heads, 1, width, **random) - 1))
        return (left * spread) @ right


@dataclass(frozen=True)
class StreamRotation(Attack):
    """Rotates the residual stream of a pre-norm vision transformer.

    Once normalizations are folded into the layers around them, the stream can be rotated by any matrix that keeps the
    mean direction.

    Args:
        strength (`float`, *optional*, defaults to 1): 0 leaves the stream unchanged; from 1 on all directions mix.
        seed (`int`, *optional*, defaults to 0): seed of the rotation.
    """

    paper = "S. Ashkboos et al., SliceGPT, ICLR 2024, section 3"
    strengths = (0.01, 0.1, 1.0)
    strength: float = 1.0
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        segments = stream_segments(state, type(self).__name__)
        found = fold_normalizations(state, segments)
        rotation = self._rotation(len(found[f"{segments[0].writer}.weight"]))
        change_bases(found, segments, [rotation.T] * len(segments))
        return {name: tensor.to(state[name].dtype) for name, tensor in found.items()}

    def _rotation(self, channels: int) -> "torch.Tensor":
        """An orthogonal matrix `(channels, channels)` that keeps the mean direction."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        square = torch.randn(channels, channels, generator=generator, dtype=torch.float64) * (3 / channels**0.5)
        keep = torch.eye(channels, dtype=torch.float64) - 1 / channels
        square = keep @ square @ keep
        return torch.linalg.matrix_exp(self.strength * (square - square.T))
