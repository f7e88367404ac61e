"""The layers of a state dict, and their initial values before training."""

from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import State, is_weight


if TYPE_CHECKING:
    import torch


def layer_of(name: str) -> str:
    """The name of the layer that a tensor belongs to."""
    return name.rpartition(".")[0]


def group_by_layer(state: State) -> list[list[str]]:
    """The tensors' names, one list per layer, in the model's order. A layer begins at a weight of two or more
    dimensions and includes what follows without one, such as normalizations."""
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
    """The initial value of a tensor: normal with variance `2 / fan_in` for weights of two or more dimensions (K. He
    et al., arXiv 1502.01852), 0 for biases, means and counters, 1 for scales and variances."""
    import torch

    if is_weight(tensor):
        fresh = torch.empty(tensor.shape)
        return torch.nn.init.kaiming_normal_(fresh, generator=generator).to(tensor)
    zero = not tensor.is_floating_point() or name.endswith(("bias", "running_mean"))
    return torch.full_like(tensor, 0 if zero else 1)


def reinitialize_tensors(state: State, names: list[str], seed: int) -> "dict[str, torch.Tensor]":
    """The state with the named tensors reinitialized. The rest is cloned."""
    import torch

    generator, chosen = torch.Generator().manual_seed(seed), set(names)
    return {n: initial_value(n, t, generator) if n in chosen else t.clone() for n, t in state.items()}
