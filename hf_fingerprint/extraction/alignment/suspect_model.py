"""Loads the suspect's weights into the base's architecture, so that both can be run on the same inputs.

Layers may have other widths (dummy units), normalizations may be folded into the convolutions before them, the first
layer may take other channels, position embeddings may have been resized, and the classifier may be new. Blocks may
have been dropped: with all of its weights 0, a block passes its input on, as in the suspect.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, Source, TensorInfo, TensorReader, open_checkpoint, resolve
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction.alignment.activation_matching import zero_unusable
from hf_fingerprint.extraction.blocks import block_tensors
from hf_fingerprint.models import BuiltModel, build_model


if TYPE_CHECKING:
    import torch


MAX_MISSING = 2  # a missing classifier has a weight and a bias
MAX_DROPPED_SHARE = 0.75  # of the blocks
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


class SuspectModel(NamedTuple):
    """A suspect that runs in the base's architecture.

    Attributes:
        module (`torch.nn.Module`): the model, in evaluation mode.
        dropped (`tuple[str, ...]`): the parameters and buffers of blocks that it lacks, which are 0.
    """

    module: "torch.nn.Module"
    dropped: tuple[str, ...]


def build_base_model(original: Checkpoint) -> BuiltModel:
    """The base's model. Raises a [`BuildError`] if neither timm nor transformers builds it."""
    source = _with_config(original.source)
    known = source is original.source
    with nullcontext(original) if known else open_checkpoint(source) as whole:
        return build_model(whole)


def _with_config(source: Source) -> Source:
    """The source with its configuration, which may not be downloaded yet for a base from the Hub."""
    if source.revision is None or (source.folder / "config.json").is_file():
        return source
    try:
        return resolve(source.location, options=source.access)
    except CheckpointError:
        return source


def load_into_base_model(ours: BuiltModel, file_names: dict[str, str], suspect: TensorReader) -> SuspectModel | None:
    """The base's architecture with the suspect's weights, or `None` if they don't fit.

    Args:
        ours, suspect ([`BuiltModel`] and [`TensorReader`]): the base, and the open suspect.
        file_names (`dict[str, str]`): the names of the base's parameters in its file, where they differ.
    """
    module = deepcopy(ours.module)
    loader = _WeightLoader(Namesakes(suspect.tensors, normalize_name), file_names, suspect, ours.size[0])
    for name, part in module.named_modules():
        loader.load_module(name, part)
    dropped = _dropped_blocks(module, loader.missing)
    if len(loader.missing) - len(dropped) > MAX_MISSING:
        return None
    return SuspectModel(without_blocks(module, dropped), dropped)


def without_blocks(module: "torch.nn.Module", dropped: Iterable[str]) -> "torch.nn.Module":
    """The module itself, with these parameters and buffers set to 0."""
    tensors = module.state_dict(keep_vars=True)
    for name in dropped:
        tensors[name].data.zero_()
    return module


def _dropped_blocks(module: "torch.nn.Module", missing: list[str]) -> tuple[str, ...]:
    """Those of the missing tensors that are whole blocks, if at least a quarter of all blocks are there."""
    tensors = {name: tuple(each.shape) for name, each in module.state_dict().items() if each.is_floating_point()}
    blocks = [set(each.values()) for each in block_tensors(tensors).values()]
    gone = [each for each in blocks if each.issubset(missing)]
    return tuple(sorted(set().union(*gone))) if len(gone) <= MAX_DROPPED_SHARE * len(blocks) else ()


class _WeightLoader:
    """Loads the suspect's tensors module by module, and lists those that are missing."""

    def __init__(self, named: Namesakes, file_names: dict[str, str], suspect: TensorReader, channels: int):
        self.missing: list[str] = []
        self._named, self._file_names, self._suspect, self._channels = named, file_names, suspect, channels
        self._bias: np.ndarray | None = None  # the last convolution's, if the base's has none

    def load_module(self, name: str, part: "torch.nn.Module") -> None:
        """Loads the suspect's weights into one module, without its submodules."""
        import torch

        dot = f"{name}." if name else ""
        is_batch_norm = isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        if is_batch_norm and self._bias is not None and not self._find(f"{dot}weight"):
            self._unfold_norm(part)
            return
        for kind, values in [*part._parameters.items(), *part._buffers.items()]:
            if values is None or not values.is_floating_point():
                continue
            info = self._find(dot + kind)
            content = None if info is None else self._fit_shape(part, self._load(info), tuple(values.shape))
            if content is None:
                self.missing.append(dot + kind)
            else:
                _set_tensor(part, kind, content)
        if isinstance(part, torch.nn.modules.conv._ConvNd):
            bias = self._find(f"{dot}bias")
            self._bias = self._load(bias) if bias is not None and part.bias is None else None
            if part.groups > 1 and part.weight.shape[1] == 1:
                part.groups = len(part.weight)
                part.in_channels = part.out_channels = part.groups

    def _find(self, name: str) -> TensorInfo | None:
        return self._named.find(self._file_names.get(name, name))

    def _load(self, info: TensorInfo) -> np.ndarray:
        return zero_unusable(to_float32(self._suspect.read(info), info.dtype)).reshape(info.shape)

    def _unfold_norm(self, norm: Any) -> None:
        """Makes a normalization that was folded into the convolution before it only add that convolution's bias."""
        assert self._bias is not None
        one, zero = np.ones_like(self._bias), np.zeros_like(self._bias)
        for kind, values in zip(_STATISTICS, (one, self._bias, zero, one * np.float32(1 - norm.eps)), strict=True):
            _set_tensor(norm, kind, values)
        self._bias = None

    def _fit_shape(self, part: "torch.nn.Module", values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The values in a shape that this module can run with, or `None`."""
        import torch

        if values.shape == shape or values.ndim != len(shape):
            return values if values.shape == shape else None
        kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._BatchNorm)
        if isinstance(part, kinds):
            if values.ndim > 2 and shape[1] == self._channels and values.shape[1] != shape[1]:
                return np.repeat(values.sum(1, keepdims=True) / shape[1], shape[1], 1)
            return values
        return _resize_position_embedding(values, shape)


def _set_tensor(part: "torch.nn.Module", kind: str, values: np.ndarray) -> None:
    import torch

    content = torch.from_numpy(np.array(values, np.float32))
    if kind in part._parameters:
        part._parameters[kind] = torch.nn.Parameter(content, requires_grad=False)
    else:
        part._buffers[kind] = content


def _resize_position_embedding(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resizes position embeddings `(1, tokens, channels)`, class tokens and then a square grid, to another grid."""
    import torch

    if values.ndim != 3 or values.shape[::2] != shape[::2]:
        return None
    for prefix in range(6):
        old, new = (int(np.sqrt(max(count - prefix, 0))) for count in (values.shape[1], shape[1]))
        if old * old + prefix == values.shape[1] and new * new + prefix == shape[1]:
            grid = torch.from_numpy(values[:, prefix:]).reshape(1, old, old, -1).permute(0, 3, 1, 2)
            scaled = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
            resized = scaled.permute(0, 2, 3, 1).reshape(1, new * new, -1).numpy()
            return np.concatenate([values[:, :prefix], resized], 1)
    return None
