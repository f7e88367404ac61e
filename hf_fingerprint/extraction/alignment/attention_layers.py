"""Finds the self-attentions of a timm or transformers model by the names of their layers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    import torch


_INPUTS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
_OUTPUTS = ("proj", "o_proj", "out_proj", "to_out")
_PARENT_OUTPUT = "output.dense"  # below the parent, as in BERT


class Attention(NamedTuple):
    """One self-attention.

    Attributes:
        inputs (`tuple[str, ...]`): the layers that compute queries, keys and values, or one that computes all three.
        output (`str`): the output projection.
        heads (`int`): the number of heads.
    """

    inputs: tuple[str, ...]
    output: str
    heads: int


def find_attentions(module: "torch.nn.Module") -> Iterator[Attention]:
    """Yields the self-attentions of a model."""
    import torch

    layers = {name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    for name, part in module.named_modules():
        heads = getattr(part, "num_heads", None) or getattr(part, "num_attention_heads", None)
        if not isinstance(heads, int):
            continue
        outputs = [f"{name}.{last}" for last in _OUTPUTS] + [f"{name.rpartition('.')[0]}.{_PARENT_OUTPUT}"]
        for first in _INPUTS:
            inputs = tuple(f"{name}.{each}" for each in first)
            output = next((each for each in outputs if each in layers), None)
            if output is not None and layers.issuperset(inputs):
                yield Attention(inputs, output, heads)
                break
