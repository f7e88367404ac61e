"""A model's layers as its state dict tells them, and what they are before any training."""

from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import is_weight


if TYPE_CHECKING:
    import torch

    from hf_fingerprint.attacks.attack import State


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, by its name."""
    return name.rpartition(".")[0]


def group_by_layer(state: "State") -> list[list[str]]:
    """The tensors' names, layer by layer in the model's order. A layer begins with a weight of two or more
    dimensions; what comes after it without one, as normalisations do, goes with it."""
    groups: list[list[str]] = [[]]
    weighted = {layer_of(name) for name, tensor in state.items() if is_weight(tensor)}
    before = None
    for name in state:
        layer = layer_of(name)
        if layer != before and layer in weighted and groups[-1]:
            groups.append([])
        groups[-1].append(name)
        before = layer
    return [group for group in groups if group]


def initial_value(name: str, tensor: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """What a tensor is before training: normal with variance `2 / fan_in` in weights of two or more dimensions (K. He
    et al., arXiv 1502.01852), 0 in biases, means and counters, 1 in scales and variances."""
    import torch

    if is_weight(tensor):
        fresh = torch.empty(tensor.shape)
        return torch.nn.init.kaiming_normal_(fresh, generator=generator).to(tensor.dtype)
    zero = not tensor.is_floating_point() or name.endswith(("bias", "running_mean"))
    return torch.full_like(tensor, 0 if zero else 1)


def reinitialize_tensors(state: "State", names: list[str], seed: int) -> "dict[str, torch.Tensor]":
    """The state with the tensors named as they are before training; the rest cloned."""
    import torch

    generator, chosen = torch.Generator().manual_seed(seed), set(names)
    return {n: initial_value(n, t, generator) if n in chosen else t.clone() for n, t in state.items()}
