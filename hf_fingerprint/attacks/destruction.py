"""Damage to weights: noise, lower rank, clipping, new statistics, reset or reinitialized layers."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State, check_share, largest_weights, map_weights
from hf_fingerprint.attacks.model_layers import group_by_layer, reinitialize_tensors
from hf_fingerprint.attacks.training_loop import cpu_state_dict
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import for_convolutions


if TYPE_CHECKING:
    import torch

ORDERS = ("largest", "random")
PLACES = ("end", "anywhere")


@dataclass(frozen=True)
class WeightNoise(Attack):
    """Adds Gaussian noise to weights of two or more dimensions.

    Args:
        size (`float`): the strength: the noise's standard deviation, in units of each tensor's root mean square.
        seed (`int`, *optional*, defaults to 0): seed of the noise.
    """

    paper = "N. Lukas et al., SoK: How robust is image classification DNN watermarking?, S&P 2022, arXiv 2108.04974"
    strengths = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)
    size: float
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        generator = torch.Generator().manual_seed(self.seed)

        def add(tensor: "torch.Tensor") -> "torch.Tensor":
            size = self.size * tensor.float().square().mean().sqrt()
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
            return (tensor.float() + size * noise).to(tensor.dtype)

        return map_weights(state, add, attacker=attacker)


@dataclass(frozen=True)
class LowRank(Attack):
    """Keeps the largest singular values of each weight matrix; a kernel has one row per output channel.

    Args:
        kept (`float`): the strength: the share of singular values kept, 0 to 1, at least one value. Less is stronger.
    """

    paper = "E. Denton et al., Exploiting linear structure within convolutional networks, NIPS 2014, arXiv 1404.0736"
    strengths = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
    kept: float

    def __post_init__(self) -> None:
        check_share(self.kept)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        def truncate(tensor: "torch.Tensor") -> "torch.Tensor":
            left, values, right = torch.linalg.svd(tensor.float().flatten(1), full_matrices=False)
            rank = max(1, round(self.kept * len(values)))
            return ((left[:, :rank] * values[:rank]) @ right[:rank]).to(tensor.dtype).reshape(tensor.shape)

        return map_weights(state, truncate, attacker=attacker)


@dataclass(frozen=True)
class Clipping(Attack):
    """Limits the weights of each tensor to a quantile of their absolute values.

    Args:
        quantile (`float`): the strength: the share of weights that stay unchanged, 0 to 1. Less is stronger.
    """

    paper = "R. Banner et al., Post training 4-bit quantization, NeurIPS 2019, arXiv 1810.05723"
    strengths = (0.9999, 0.999, 0.99, 0.95, 0.9, 0.7)
    quantile: float

    def __post_init__(self) -> None:
        check_share(self.quantile)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        def clip(tensor: "torch.Tensor") -> "torch.Tensor":
            size = tensor.abs().flatten()
            limit = size.kthvalue(max(1, math.ceil(self.quantile * len(size)))).values
            return tensor.clamp(-limit, limit)

        return map_weights(state, clip, attacker=attacker)


@dataclass(frozen=True)
class BatchNormReestimation(Attack):
    """Re-estimates the statistics of batch normalizations on the attacker's images.

    Args:
        share (`float`, *optional*, defaults to 1): the strength: how far the statistics move to new ones, 0 to 1.

    Raises:
        [`FingerprintError`]: if the model has no batch normalization.
    """

    paper = "Y. Li et al., Revisiting batch normalization for practical domain adaptation, arXiv 1603.04779"
    strengths = (0.1, 0.5, 1.0)
    needs_attacker = True
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        attacker = self.require_attacker(attacker)
        model = attacker.model(state)
        kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
        norms = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        if not norms:
            raise FingerprintError("This model has no batch normalization: choose another attack.")
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over batches
            norm.train()
        with torch.no_grad():
            batches = attacker.images.split(attacker.batch)
            for number, batch in enumerate(batches, 1):
                logits_of(model(for_convolutions(batch)))
                attacker.progress("resetting statistics", number, len(batches))
        fresh = cpu_state_dict(model)
        found = {name: tensor.clone() for name, tensor in state.items()}
        for name in (f"{norm}.running_{kind}" for norm in norms for kind in ("mean", "var")):
            found[name] = found[name].lerp(fresh[name].to(found[name]), self.share)
        return found


@dataclass(frozen=True)
class CarrierReset(Attack):
    """Resets weights of two or more dimensions to those of the public base, `attacker.base`, if it has them in the
    same shape. At a share of 1 nothing is left to trace.

    Args:
        share (`float`): the strength: the share of tensors reset, 0 to 1.
        order (`str`, *optional*, defaults to `"largest"`): which tensors go first: `"largest"` or `"random"`.
        seed (`int`, *optional*, defaults to 0): seed of a random order.

    Raises:
        [`FingerprintError`]: if the attacker has no base.
    """

    paper = "none: anybody with the public base and one copy can do it (Kerckhoffs)"
    strengths = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    needs_attacker = True
    share: float
    order: str = "largest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.order not in ORDERS:
            raise FingerprintError(f"CarrierReset has no order {self.order!r}: choose {' or '.join(ORDERS)}.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        base = self.require_attacker(attacker).base
        if base is None:
            raise FingerprintError("CarrierReset needs the public base: pass its state dict as Attacker(base=...).")
        names = [n for n in largest_weights(state, 1.0) if n in base and base[n].shape == state[n].shape]
        if self.order == "random":
            order = torch.randperm(len(names), generator=torch.Generator().manual_seed(self.seed))
            names = [names[i] for i in order]
        reset = set(names[: round(self.share * len(names))])
        return {n: base[n].to(t.device, t.dtype, copy=True) if n in reset else t.clone() for n, t in state.items()}


@dataclass(frozen=True)
class Reinitialization(Attack):
    """Reinitializes layers: weights normal by their fan-in, biases and normalizations neutral.

    Args:
        share (`float`): the strength: the share of layers, 0 to 1.
        where (`str`, *optional*, defaults to `"end"`): `"end"` for the last layers, or `"anywhere"`.
        seed (`int`, *optional*, defaults to 0): seed of the weights and of the choice of layers.
    """

    paper = "C. Zhang, S. Bengio, Y. Singer, Are all layers created equal?, arXiv 1902.01996"
    strengths = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    share: float
    where: str = "end"
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.where not in PLACES:
            raise FingerprintError(f"Reinitialization has no place {self.where!r}: choose {' or '.join(PLACES)}.")

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        layers = group_by_layer(state)
        order = list(reversed(range(len(layers))))
        if self.where == "anywhere":
            order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(self.seed)).tolist()
        chosen = order[: math.ceil(self.share * len(layers))]
        return reinitialize_tensors(state, [name for i in chosen for name in layers[i]], self.seed)
