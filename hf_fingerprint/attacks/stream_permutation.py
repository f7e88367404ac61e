"""Permutation of the residual stream, consistently in all layers: of a vision transformer, or of each stage of a
residual network or EfficientNet. Layers are found by timm's names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.attacks.attack import Attack, Attacker, State
from hf_fingerprint.attacks.symmetries import NORM_TENSORS, partial_permutation, permute_channels
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    import torch

_INPUT_LAYERS, _OUTPUT_LAYERS = {"qkv", "fc1", "head"}, {"proj", "fc2", "norm", "norm1", "norm2", "fc_norm"}
_STREAM_TENSORS = ("cls_token", "pos_embed", "gamma", "reg_token")
_OUTPUT_PAIRS = (("conv_pwl", "bn3"), ("conv_pwl", "bn2"), ("conv3", "bn3"), ("conv2", "bn2"), ("conv_pw", "bn2"))
_BLOCK = re.compile(r"^(layer(\d+)\.(\d+)|blocks\.(\d+)\.(\d+))\.")


@dataclass(frozen=True)
class StreamPermutation(Attack):
    """Permutes the channels of the residual stream.

    Args:
        strength (`float`, *optional*, defaults to 1): the share of channels that move.
        seed (`int`, *optional*, defaults to 0): seed of the permutation.
    """

    paper = "Y. Yan et al., Cracking white-box DNN watermarks via invariant neuron transforms, arXiv 2205.00199"
    strengths = (0.1, 0.5, 1.0)
    strength: float = 1.0
    seed: int = 0

    def __call__(self, state: State, attacker: Attacker | None = None) -> "dict[str, torch.Tensor]":
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        stem = next((name for name in state if name.endswith("patch_embed.proj.weight")), None)
        if stem is not None:
            return self._permute_transformer(state, partial_permutation(len(state[stem]), self.strength, generator))
        found = {name: tensor.clone() for name, tensor in state.items()}
        moved = 0
        for rows, columns in _stage_tensors(state):
            counts = {len(state[name]) for name in rows} | {state[name].shape[1] for name in columns}
            if len(counts) != 1:
                continue
            order = partial_permutation(counts.pop(), self.strength, generator)
            permute_channels(found, rows, columns, order)
            moved += 1
        if not moved:
            raise FingerprintError(
                "StreamPermutation found no residual stream: it needs timm's ViT, residual network or EfficientNet."
            )
        return found

    @staticmethod
    def _permute_transformer(state: State, order: "torch.Tensor") -> "dict[str, torch.Tensor]":
        found = {}
        for name, tensor in state.items():
            kind = name.rpartition(".")[0].rpartition(".")[2]
            if kind in _INPUT_LAYERS and tensor.ndim == 2:
                found[name] = tensor[:, order]
            elif kind in _OUTPUT_LAYERS and len(tensor) == len(order):
                found[name] = tensor[order]
            elif name.endswith(_STREAM_TENSORS):
                found[name] = tensor[..., order]
            else:
                found[name] = tensor.clone()
        return found


def _stage_tensors(state: State) -> Iterator[tuple[list[str], list[str]]]:
    """For each stage of a convolutional network, the tensors with a row, and those with a column, per channel."""
    blocks: dict[tuple[int, int], str] = {}
    for name in state:
        if match := _BLOCK.match(name):
            stage, index = (int(number) for number in match.groups()[1:] if number is not None)
            blocks[stage, index] = match.group(1)
    places = sorted(blocks)
    for stage in sorted({stage for stage, _ in places}):
        rows: list[str] = []
        columns: list[str] = []
        first = blocks[places[0]]
        stem_writes_stream = first.startswith("layer") and not _downsample(state, first, rows=True)
        if stem_writes_stream and stage == places[0][0]:  # the stem writes to the first stage's stream
            stem = sorted(n for n in state if re.fullmatch(r"conv1(\.\d+)?\.weight", n) and state[n].ndim == 4)
            rows += _layer_and_norm_tensors(state, stem[-1].removesuffix(".weight"), "bn1")
            columns += _input_tensors(state, first)[1]
        for place in places:
            if place[0] == stage:
                rows += _layer_and_norm_tensors(state, *_output_layer(state, blocks[place]))
                rows += _downsample(state, blocks[place], rows=True)
            if (place[0] == stage and place[1] > 0) or place == (stage + 1, 0):
                through, reads = _input_tensors(state, blocks[place])
                rows += through
                columns += reads
            if place == (stage + 1, 0):
                columns += _downsample(state, blocks[place], rows=False)
        if stage == max(stage for stage, _ in places):
            columns += [name for name in ("conv_head.weight", "fc.weight") if name in state][:1]
        yield rows, columns


def _output_layer(state: State, block: str) -> tuple[str, str]:
    """The last convolution of a block and its normalization."""
    for layer, norm in _OUTPUT_PAIRS:
        if f"{block}.{layer}.weight" in state and f"{block}.{norm}.weight" in state:
            return f"{block}.{layer}", f"{block}.{norm}"
    return f"{block}.conv", f"{block}.bn1"


def _input_tensors(state: State, block: str) -> tuple[list[str], list[str]]:
    """The tensors of a block's first layers with a row, and those with a column, per input channel."""
    if f"{block}.conv_dw.weight" in state and f"{block}.conv_pwl.weight" not in state:  # one filter per channel
        through = _layer_and_norm_tensors(state, f"{block}.conv_dw", f"{block}.bn1")
        excited = [f"{block}.se.conv_expand.{kind}" for kind in ("weight", "bias")]
        reduced = [f"{block}.conv_pw.weight", f"{block}.se.conv_reduce.weight"]
        return [*through, *(n for n in excited if n in state)], [n for n in reduced if n in state]
    first = next((n for n in ("conv_pw", "conv_exp", "conv1", "conv") if f"{block}.{n}.weight" in state), None)
    return [], [] if first is None else [f"{block}.{first}.weight"]


def _downsample(state: State, block: str, rows: bool) -> list[str]:
    found = [name for name in state if name.startswith(f"{block}.downsample.")]
    if not rows:
        return [name for name in found if state[name].ndim == 4]
    return [name for name in found if name.rpartition(".")[2] in NORM_TENSORS]


def _layer_and_norm_tensors(state: State, layer: str, norm: str) -> list[str]:
    wanted = [f"{layer}.weight", f"{layer}.bias", *(f"{norm}.{kind}" for kind in NORM_TENSORS)]
    return [name for name in wanted if name in state]
