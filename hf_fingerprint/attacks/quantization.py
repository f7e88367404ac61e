"""Quantization: weights rounded to fewer bits and converted back to floats, or stored in a lower precision."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, map_weights
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

FORMATS = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
_TINY = 1e-30


@dataclass(frozen=True)
class Quantization(Attack):
    """Rounds weights of two or more dimensions to a symmetric integer grid, and back to floats.

    Args:
        bits (`int`, *optional*, defaults to 8): the strength: bits per weight, at least 2. Fewer bits are stronger.
        by_channel (`bool`, *optional*, defaults to `False`): one scale per output channel instead of one per tensor.
    """

    paper = "R. Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342"
    strengths = (8, 6, 5, 4, 3, 2)
    bits: int = 8
    by_channel: bool = False

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise FingerprintError(f"Quantization got bits={self.bits}: choose 2 or more.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        levels = 2 ** (self.bits - 1) - 1

        def quantize(tensor: "torch.Tensor") -> "torch.Tensor":
            rows = tensor.flatten(1) if self.by_channel else tensor.reshape(1, -1)
            scale = (rows.abs().amax(1, keepdim=True) / levels).clamp_min(_TINY)
            return ((rows / scale).round() * scale).reshape(tensor.shape)

        return map_weights(state, quantize, attacker=attacker)


@dataclass(frozen=True)
class Float8(Attack):
    """Rounds weights of two or more dimensions to 8-bit floats, and back. Each output channel fills their range.

    Args:
        format (`str`, *optional*, defaults to `"e4m3"`): `"e4m3"` or `"e5m2"`, named by bits of exponent and fraction.
    """

    paper = "P. Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433"
    format: str = "e4m3"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise FingerprintError(f"{self.format!r} is not a format of 8-bit floats: choose {' or '.join(FORMATS)}.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        dtype = getattr(torch, FORMATS[self.format])

        def quantize(tensor: "torch.Tensor") -> "torch.Tensor":
            rows = tensor.flatten(1).float()
            scale = (rows.abs().amax(1, keepdim=True) / torch.finfo(dtype).max).clamp_min(_TINY)
            return ((rows / scale).to(dtype).float() * scale).to(tensor.dtype).reshape(tensor.shape)

        return map_weights(state, quantize, attacker=attacker)


@dataclass(frozen=True)
class Cast(Attack):
    """Stores floating-point tensors in another precision.

    Args:
        dtype (`str`, *optional*, defaults to `"bfloat16"`): the name of a floating-point torch dtype.
    """

    paper = "P. Micikevicius et al., Mixed precision training, ICLR 2018, arXiv 1710.03740"
    dtype: str = "bfloat16"

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise FingerprintError(f"{self.dtype!r} is not a floating-point torch dtype: choose float16 or bfloat16.")
        return {n: t.to(dtype, copy=True) if t.is_floating_point() else t.clone() for n, t in state.items()}
