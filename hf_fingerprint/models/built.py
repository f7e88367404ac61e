"""A model that is ready to run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BuiltModel:
    """A model ready to run.

    Attributes:
        module (`torch.nn.Module`): in evaluation mode, `float32`.
        size (`tuple[int, int, int]`): channels, height and width of its input.
        mean, std (`tuple[float, ...]`): of its preprocessing, one for each channel.
        preprocess (callable): from a PIL image to a tensor of that size.
        output (`str` or `None`): the kind of its output, one of `"single_label"`, `"multi_label"`, `"dense"` and
            `"features"`, where its configuration says so; one logit is a `"multi_label"` of one. `"regression"` is a
            kind that can't be measured.
    """

    module: "torch.nn.Module"
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Callable[[Any], "torch.Tensor"]
    output: str | None = None
