"""Changes of a model's size that preserve its function: redundant hidden units, folded batch normalizations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.symmetries import NORM_TENSORS, batch_norm_eps, hidden_channels
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_PRECEDING_CONVS: dict[str, dict[str, tuple[str, ...]]] = {
    "inverted": {"bn1": ("conv_pw",), "bn2": ("conv_dw",), "bn3": ("conv_pwl",)},
    "separable": {"bn1": ("conv_dw",), "bn2": ("conv_pw",)},
    "plain": {"bn1": ("conv1", "conv_stem"), "bn2": ("conv2", "conv_head"), "bn3": ("conv3",), "1": ("0",)},
}
Kind = Literal["zero", "cancelling", "split"]


@dataclass(frozen=True)
class DummyUnits(Attack):
    """Adds hidden units that do not change the output. The result's widths fit no standard architecture.

    Args:
        strength (`float`, *optional*, defaults to 0.25): units to add, as a share of the existing ones, at most 1.
        kind (`str`, *optional*, defaults to `"zero"`): `"zero"` adds units whose outgoing weights are 0;
            `"cancelling"` adds pairs of equal units with opposite outgoing weights; `"split"` duplicates existing
            units and splits their outgoing weights between the two, plus noise that cancels.
        seed (`int`, *optional*, defaults to 0): seed of the new units and their positions.
    """

    paper = "Y. Yan et al., Rethinking white-box watermarks under neural structural obfuscation, arXiv 2303.09732"
    strengths = (0.05, 0.25, 1.0)
    strength: float = 0.25
    kind: Kind = "zero"
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        found = {name: tensor.clone() for name, tensor in state.items()}
        groups = list(hidden_channels(state))
        if not groups:
            raise FingerprintError("DummyUnits found no hidden layers that it knows: it needs timm's layer names.")
        for channels in groups:
            added = max(2, round(self.strength * channels.count)) // 2 * 2
            units = torch.randperm(channels.count, generator=generator)[:added]
            if self.kind == "cancelling":
                units = units[: added // 2].repeat(2)
            order = torch.randperm(channels.count + len(units), generator=generator)
            for name in channels.rows:
                found[name] = torch.cat([found[name], self._rows(found[name], units, generator)])[order]
            for name in channels.columns:
                found[name] = self._columns(found[name], units, generator)[:, order]
        return found

    def _rows(self, tensor: "torch.Tensor", units: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        """The incoming weights of the new units: copies of existing ones, or noise."""
        import torch

        rows = tensor[units].clone()
        if self.kind == "split" or rows.ndim < 2:
            return rows
        noise = torch.randn(rows.shape, generator=generator).to(rows.device) * rows.std()
        if self.kind == "cancelling":
            noise[len(noise) // 2 :] = noise[: len(noise) // 2]
        return noise.to(tensor.dtype)

    def _columns(self, tensor: "torch.Tensor", units: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        """The outgoing weights of all units, with those of the new units appended."""
        import torch

        columns = tensor[:, units].clone()
        if self.kind == "zero":
            return torch.cat([tensor, columns * 0], 1)
        if self.kind == "cancelling":
            half = len(units) // 2
            noise = torch.randn(columns[:, :half].shape, generator=generator).to(tensor) * tensor.std()
            return torch.cat([tensor, noise, -noise], 1)
        share = torch.rand(len(units), generator=generator).to(tensor) * 0.6 + 0.2
        share = share.reshape(1, -1, *[1] * (tensor.ndim - 2))
        noise = torch.randn(columns.shape, generator=generator).to(tensor) * tensor.std()
        kept = tensor.clone()
        kept[:, units] = columns * (1 - share) - noise
        return torch.cat([kept, columns * share + noise], 1)


@dataclass(frozen=True)
class BatchNormFolding(Attack):
    """Folds batch normalizations into the convolutions before them, as deployment tools do.

    The convolutions get a bias and the normalizations disappear. Layers are found by timm's names: `conv1` and `bn1`,
    `conv_pw` and `bn1`, `downsample.0` and `downsample.1`, ...

    Args:
        eps (`float`, *optional*): added to variances; by default that of the attacker's model, or 1e-5.
    """

    paper = "B. Jacob et al., Quantization and training of neural networks, CVPR 2018, section 3.2"
    eps: float | None = None

    @property
    def strength(self) -> float:
        return 1.0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        found = {name: tensor.clone() for name, tensor in state.items()}
        norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
        if not norms:
            raise FingerprintError("BatchNormFolding found no batch normalization: choose another attack.")
        eps = batch_norm_eps(self.eps, attacker)
        for norm in norms:
            layer = self._preceding_conv(norm, found)
            if layer is not None:
                _fold_norm(found, layer, norm, eps)
        return found

    def _preceding_conv(self, norm: str, found: State) -> str | None:
        """The convolution before a normalization, if it is known and has no bias yet."""
        block, _, last = norm.rpartition(".")
        dot = f"{block}." if block else ""
        inverted, separable = f"{dot}conv_pwl.weight" in found, f"{dot}conv_dw.weight" in found
        kind = "inverted" if inverted else "separable" if separable else "plain"
        for layer in _PRECEDING_CONVS[kind].get(last, ()):
            if f"{dot}{layer}.weight" in found and f"{dot}{layer}.bias" not in found:
                return f"{dot}{layer}"
        return None


def _fold_norm(found: "dict[str, torch.Tensor]", layer: str, norm: str, eps: float) -> None:
    gain, shift, mean, variance = (found.pop(f"{norm}.{kind}") for kind in NORM_TENSORS)
    found.pop(f"{norm}.num_batches_tracked", None)
    factor = gain / (variance + eps).sqrt()
    weight = found[f"{layer}.weight"]
    found[f"{layer}.weight"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    found[f"{layer}.bias"] = shift - mean * factor
