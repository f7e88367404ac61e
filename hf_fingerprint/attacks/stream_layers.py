"""The layers of a timm vision transformer that write and read its residual stream, and changes of the stream's basis.

Each normalization ends a segment of the stream: the layer before it wrote to the segment last, and the layer after it
reads the segment. S. Ashkboos et al., SliceGPT, ICLR 2024, section 3, gives each segment a basis of its own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hf_fingerprint.attacks.attack import State
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

STEM = "patch_embed.proj"
_TOKEN_TENSORS = ("cls_token", "pos_embed", "reg_token")
_LAST_NORMS = ("norm", "fc_norm")
_SCALES = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}


class Segment(NamedTuple):
    """The residual stream between two blocks' halves.

    Attributes:
        writer (`str`): the layer that writes to it last.
        norm (`str`): the normalization of the segment.
        reader (`str`): the layer that reads what was normalized.
    """

    writer: str
    norm: str
    reader: str


def stream_segments(state: State, attack: str) -> list[Segment]:
    """The segments of the stream, in order.

    Args:
        state (mapping of `str` to `torch.Tensor`): a state dict.
        attack (`str`): the attack that needs them, for errors.

    Raises:
        [`FingerprintError`]: if this is no vision transformer with plain blocks and a plain classifier.
    """
    stem = next((name for name in state if name.endswith(f"{STEM}.weight")), None)
    if stem is None:
        raise FingerprintError(f"{attack} found no patch_embed: it needs a timm vision transformer.")
    root = stem.removesuffix(f"{STEM}.weight")
    found, writer, number = [], f"{root}{STEM}", 0
    while f"{root}blocks.{number}.norm1.weight" in state:
        block = f"{root}blocks.{number}"
        found.append(Segment(writer, f"{block}.norm1", f"{block}.attn.qkv"))
        found.append(Segment(f"{block}.attn.proj", f"{block}.norm2", f"{block}.mlp.fc1"))
        writer, number = f"{block}.mlp.fc2", number + 1
    last = next((root + norm for norm in _LAST_NORMS if f"{root}{norm}.weight" in state), f"{root}norm")
    found.append(Segment(writer, last, f"{root}head"))
    for each in found:
        for name in (f"{layer}.{kind}" for layer in each for kind in ("weight", "bias")):
            if name not in state or any(part.startswith("attn_pool") for part in state):
                raise FingerprintError(f"{attack} needs {name}, and no attention pooling: choose another attack.")
    return found


def fold_normalizations(state: State, segments: Sequence[Segment]) -> "dict[str, torch.Tensor]":
    """The same function in `float64`, with gains 1, shifts 0 and layer scales 1, and a stream of mean 0.

    Gains and shifts are folded into the layers that read them, and layer scales into those that write. The writers'
    contribution to the stream's mean is dropped, since every normalization subtracts it.

    Args:
        state (mapping of `str` to `torch.Tensor`): a state dict. It is not changed.
        segments (sequence of [`Segment`]): its segments.
    """
    found = {name: t.double() if t.is_floating_point() else t.clone() for name, t in state.items()}
    for name in [name for name in found if name.endswith(tuple(_SCALES))]:
        block, _, scale = name.rpartition(".ls")
        for kind in ("weight", "bias"):
            layer = f"{block}.{_SCALES[f'ls{scale}']}.{kind}"
            found[layer] = found[layer] * found[name].reshape(-1, *[1] * (found[layer].ndim - 1))
        found[name] = found[name] * 0 + 1
    for writer, norm, reader in segments:
        gain, shift = found[f"{norm}.weight"], found[f"{norm}.bias"]
        found[f"{reader}.bias"] = found[f"{reader}.bias"] + found[f"{reader}.weight"] @ shift
        found[f"{reader}.weight"] = found[f"{reader}.weight"] * gain
        found[f"{norm}.weight"], found[f"{norm}.bias"] = gain * 0 + 1, shift * 0
        for name in (f"{writer}.weight", f"{writer}.bias"):
            found[name] = found[name] - found[name].mean(0)
    for name in _tokens(found):
        found[name] = found[name] - found[name].mean(-1, keepdim=True)
    return found


def change_bases(
    folded: "dict[str, torch.Tensor]", segments: Sequence[Segment], bases: "Sequence[torch.Tensor]"
) -> None:
    """Changes the basis of each segment in place; what is written to a segment stands in its basis.

    Args:
        folded (`dict[str, torch.Tensor]`): what [`fold_normalizations`] gives.
        segments (sequence of [`Segment`]): its segments.
        bases (sequence of `torch.Tensor` of shape `(channels, channels kept)`): for each segment, orthonormal columns.
    """
    for (writer, _, reader), basis in zip(segments, bases, strict=True):
        weight = folded[f"{writer}.weight"]
        basis = basis.to(weight.device)
        folded[f"{writer}.weight"] = (basis.T @ weight.flatten(1)).reshape(-1, *weight.shape[1:])
        folded[f"{writer}.bias"] = basis.T @ folded[f"{writer}.bias"]
        folded[f"{reader}.weight"] = folded[f"{reader}.weight"] @ basis
    for name in _tokens(folded):
        folded[name] = folded[name] @ bases[0].to(folded[name].device)


def _tokens(state: State) -> list[str]:
    return [name for name in state if name.endswith(_TOKEN_TENSORS)]
