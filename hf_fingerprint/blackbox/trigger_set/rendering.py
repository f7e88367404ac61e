"""Trigger images as a model sees them, with gradients with respect to their patterns.

Resizing is linear and works on rows and columns apart, so each is a matrix: a gradient through two products takes a
fraction of one through `interpolate`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_fingerprint.blackbox.trigger_set.classifier_head import BATCH
from hf_fingerprint.blackbox.trigger_set.covers import MAX_LEVEL, MIN_LEVEL, MIN_SIZE
from hf_fingerprint.blackbox.trigger_set.triggers import GRID
from hf_fingerprint.models import BuiltModel


if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH = 48  # of small images
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def batch_slices(count: int, built: BuiltModel) -> list[slice]:
    """The slices of `count` images that fit through the model at once."""
    pixels = built.size[1] * built.size[2]
    step = max(1, min(MAX_BATCH, BATCH * MIN_SIZE**2 // pixels))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def render_batches(cover_images: "Tensor", patterns: "Tensor", crop: float, built: BuiltModel) -> "Iterator[Tensor]":
    """[`render_view`] in batches."""
    for part in batch_slices(len(cover_images), built):
        yield render_view(cover_images[part], patterns[part], crop, built)


def render_view(cover_images: "Tensor", patterns: "Tensor", crop: float, built: BuiltModel) -> "Tensor":
    """Covers `(n, 3, 224, 224)` plus patterns, preprocessed for a model: `(n, channels, height, width)`."""
    import torch

    channels, height, width = built.size
    finer = _resize_matrix(GRID, MIN_SIZE, patterns, mode="bilinear")
    images = (cover_images + finer @ patterns @ finer.T).clamp(MIN_LEVEL, MAX_LEVEL) / 255
    rows, columns = (
        _middle(_resize_matrix(MIN_SIZE, int(side / crop), patterns, mode="bicubic", antialias=True), side)
        for side in (height, width)
    )
    parts = (rows @ images @ columns.T).unbind(1)
    if channels == 1:
        parts = (torch.stack([weight * part for weight, part in zip(GRAY_WEIGHTS, parts, strict=True)]).sum(0),)
    # numbers, not tensors: a GPU would wait for the copy of each
    return torch.stack([(part - mean) / std for part, mean, std in zip(parts, built.mean, built.std, strict=False)], 1)


def _resize_matrix(old: int, new: int, like: "Tensor", **options: Any) -> "Tensor":
    """The matrix `(new, old)` that resizes a column as `interpolate` does."""
    import torch
    from torch.nn.functional import interpolate

    columns = torch.eye(old, dtype=like.dtype, device=like.device)[None, None]
    return interpolate(columns, size=(new, old), **options)[0, 0]


def _middle(matrix: "Tensor", count: int) -> "Tensor":
    """The rows in the middle."""
    top = (len(matrix) - count) // 2
    return matrix[top : top + count]
