"""Trigger images as a model sees them, with gradients with respect to their patterns.

Resizing is linear and works on rows and columns apart, so each is a matrix, and a gradient passes back through its
transpose: both take a fraction of the time of `interpolate`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hf_fingerprint.blackbox.trigger_set.classifier_head import BATCH
from hf_fingerprint.blackbox.trigger_set.covers import MAX_LEVEL, MIN_LEVEL, MIN_SIZE
from hf_fingerprint.blackbox.trigger_set.triggers import GRID
from hf_fingerprint.models import BuiltModel


if TYPE_CHECKING:
    from torch import Tensor

MAX_BATCH = 196  # of small images
CACHED = 8  # images of 224 x 224: 5 MB
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def batch_slices(count: int, built: BuiltModel) -> list[slice]:
    """The slices of `count` images that fit through the model at once."""
    pixels = built.size[1] * built.size[2]
    step = max(1, min(MAX_BATCH, BATCH * MIN_SIZE**2 // pixels))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


class Renderer:
    """Renders trigger images as a model's preprocessing does, and passes gradients back to their patterns.

    Large images are processed a few at a time, so that they stay in a processor's cache.

    Args:
        crop (`float`): the share of an image's width that the model sees.
        built ([`BuiltModel`]): the model, for the size and normalization of its input.
        like (`torch.Tensor`): has the type and the device of the patterns.
    """

    def __init__(self, crop: float, built: BuiltModel, like: "Tensor"):
        self._built = built
        self._finer = _resize_matrix(GRID, MIN_SIZE, like, mode="bilinear")
        rows, self._columns = (
            _middle(_resize_matrix(MIN_SIZE, int(side / crop), like, mode="bicubic", antialias=True), side)
            for side in built.size[1:]
        )
        self._rows = rows / 255
        self._step = CACHED if like.device.type == "cpu" else MAX_BATCH

    def render(self, cover_images: "Tensor", patterns: "Tensor") -> "Tensor":
        """Covers `(n, 3, 224, 224)` plus patterns, preprocessed: `(n, channels, height, width)`."""
        return self.render_with_gradient(cover_images, patterns)[0]

    def render_batches(self, cover_images: "Tensor", patterns: "Tensor") -> "Iterator[Tensor]":
        """The same in batches that fit through the model."""
        for part in batch_slices(len(cover_images), self._built):
            yield self.render(cover_images[part], patterns[part])

    def render_with_gradient(
        self, cover_images: "Tensor", patterns: "Tensor"
    ) -> "tuple[Tensor, Callable[[Tensor], Tensor]]":
        """The images of [`Renderer.render`], and a function from the gradient with respect to these to that with
        respect to the patterns. Levels that are clamped have none."""
        import torch

        parts = [slice(start, start + self._step) for start in range(0, len(patterns), self._step)]
        unclamped = patterns.new_empty(cover_images.shape, dtype=torch.bool)
        # written over and over, since new memory takes time
        levels, clamped = (patterns.new_empty(self._step, 3, MIN_SIZE, MIN_SIZE) for _ in range(2))
        rendered = []
        for part in parts:
            count = len(patterns[part])
            torch.matmul((self._finer @ patterns[part]).contiguous(), self._finer.T, out=levels[:count])
            levels[:count] += cover_images[part]
            torch.clamp(levels[:count], MIN_LEVEL, MAX_LEVEL, out=clamped[:count])
            torch.eq(levels[:count], clamped[:count], out=unclamped[part])
            rendered.append(self._rows @ (clamped[:count] @ self._columns.T))

        def by_patterns(by_images: "Tensor") -> "Tensor":
            colors, found = self._to_colors(by_images), []
            for part in parts:
                count = len(colors[part])
                torch.matmul((self._rows.T @ colors[part]).contiguous(), self._columns, out=levels[:count])
                levels[:count] *= unclamped[part]
                found.append(self._finer.T @ (levels[:count] @ self._finer))
            return torch.cat(found)

        return self._normalize(torch.cat(rendered)), by_patterns

    def _normalize(self, images: "Tensor") -> "Tensor":
        import torch

        parts = images.unbind(1)
        if self._built.size[0] == 1:
            parts = (torch.stack([weight * part for weight, part in zip(GRAY_WEIGHTS, parts, strict=True)]).sum(0),)
        # numbers, not tensors: a GPU would wait for the copy of each
        mean, std = self._built.mean, self._built.std
        return torch.stack([(part - m) / s for part, m, s in zip(parts, mean, std, strict=False)], 1)

    def _to_colors(self, by_images: "Tensor") -> "Tensor":
        """The gradient with respect to the colors of images, from that with respect to their normalized channels."""
        import torch

        parts = [part / std for part, std in zip(by_images.unbind(1), self._built.std, strict=False)]
        return torch.stack([weight * parts[0] for weight in GRAY_WEIGHTS] if len(parts) == 1 else parts, 1)


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
