"""Renaming: the same tensors under other names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.checkpoints.tensor_names import to_transformers
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_QKV = ".attn.qkv."


@dataclass(frozen=True)
class Renaming(Attack):
    """Renames a timm model's tensors as transformers does, and splits `qkv` into queries, keys and values.

    Args:
        prefix (`str`, *optional*, defaults to `""`): prefix of every name, as wrappers add it.
    """

    paper = "conversion scripts of the transformers library"
    prefix: str = ""

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        found = {}
        for name, tensor in state.items():
            if _QKV in name:
                for letter, part in zip("qkv", tensor.clone().chunk(3), strict=True):
                    found[to_transformers(name.replace(_QKV, f".attn.{letter}."))] = part
            else:
                found[to_transformers(name)] = tensor.clone()
        if found.keys() == state.keys():
            raise FingerprintError("Renaming found no tensor that it knows: it needs timm's ViT or residual network.")
        return {self.prefix + name: tensor for name, tensor in found.items()}
