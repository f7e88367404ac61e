"""Changes of basis that preserve a vision transformer's function: inside attention heads, and of the whole residual
stream. Layers are found by timm's names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_INPUT_LAYERS = {"norm1": ("attn.qkv",), "norm2": ("mlp.fc1",), "norm": ("head",), "fc_norm": ("head",)}
_OUTPUT_LAYERS = ("patch_embed.proj", "attn.proj", "mlp.fc2")
_TOKEN_TENSORS = ("cls_token", "pos_embed", "reg_token")
_SCALED_LAYERS = {"ls1": "attn.proj", "ls2": "mlp.fc2"}


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

    Gains and shifts of the normalizations are folded into the layers that read them, and layer scales into those that
    write. The writers' contribution to the stream's mean is dropped, since every normalization subtracts it. The
    stream can then be rotated by any matrix that keeps the mean direction.

    Args:
        strength (`float`, *optional*, defaults to 1): 0 leaves the stream unchanged; from 1 on all directions mix.
        seed (`int`, *optional*, defaults to 0): seed of the rotation.
    """

    paper = "S. Ashkboos et al., SliceGPT, ICLR 2024, section 3"
    strengths = (0.01, 0.1, 1.0)
    strength: float = 1.0
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> dict[str, "torch.Tensor"]:
        stem = next((name for name in state if name.endswith("patch_embed.proj.weight")), None)
        if stem is None:
            raise FingerprintError("StreamRotation found no patch_embed: it needs a timm vision transformer.")
        found = {name: t.double() if t.is_floating_point() else t.clone() for name, t in state.items()}
        rotation = self._rotation(len(state[stem]))
        for name in [name for name in found if name.endswith(".gamma")]:
            self._fold_scale(found, name)
        for name in state:
            part, _, kind = name.rpartition(".")
            norm = part.rpartition(".")[2]
            if norm in _INPUT_LAYERS and kind == "weight":
                self._fold_and_rotate(found, part, norm, rotation)
            elif part.endswith(_OUTPUT_LAYERS):
                centered = found[name].flatten(1) if kind == "weight" else found[name][:, None]
                found[name] = (rotation @ (centered - centered.mean(0))).reshape(state[name].shape)
            elif name.endswith(_TOKEN_TENSORS):
                found[name] = (found[name] - found[name].mean(-1, keepdim=True)) @ rotation.T
        return {name: tensor.to(state[name].dtype) for name, tensor in found.items()}

    @staticmethod
    def _fold_scale(found: dict[str, "torch.Tensor"], name: str) -> None:
        block, _, scale = name.removesuffix(".gamma").rpartition(".")
        for kind in ("weight", "bias"):
            layer = f"{block}.{_SCALED_LAYERS[scale]}.{kind}"
            found[layer] = found[layer] * found[name].reshape(-1, *[1] * (found[layer].ndim - 1))
        found[name] = found[name] * 0 + 1

    @staticmethod
    def _fold_and_rotate(found: dict[str, "torch.Tensor"], part: str, norm: str, rotation: "torch.Tensor") -> None:
        parent = part.rpartition(".")[0]
        gain, shift = found[f"{part}.weight"], found[f"{part}.bias"]
        for name in _INPUT_LAYERS[norm]:
            layer = f"{parent}.{name}" if parent else name
            if f"{layer}.weight" not in found or f"{layer}.bias" not in found:
                raise FingerprintError(f"StreamRotation needs a weight and bias of {layer}: choose another attack.")
            weight = found[f"{layer}.weight"]
            found[f"{layer}.bias"] = found[f"{layer}.bias"] + weight @ shift
            found[f"{layer}.weight"] = (weight * gain) @ rotation.T
        found[f"{part}.weight"], found[f"{part}.bias"] = gain * 0 + 1, shift * 0

    def _rotation(self, channels: int) -> "torch.Tensor":
        """An orthogonal matrix `(channels, channels)` that keeps the mean direction."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        square = torch.randn(channels, channels, generator=generator, dtype=torch.float64) * (3 / channels**0.5)
        keep = torch.eye(channels, dtype=torch.float64) - 1 / channels
        square = keep @ square @ keep
        return torch.linalg.matrix_exp(self.strength * (square - square.T))
