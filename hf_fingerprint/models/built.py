"""A model that is ready to run, with its preprocessing."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_fingerprint.models.devices import device_of, to_device


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BuiltModel:
    """A model that is ready to run, with its preprocessing.

    Attributes:
        module (`torch.nn.Module`): the model in evaluation mode, `float32`.
        size (`tuple[int, int, int]`): channels, height and width of its input.
        mean (`tuple[float, ...]`): mean of each channel in its preprocessing.
        std (`tuple[float, ...]`): standard deviation of each channel in its preprocessing.
        preprocess (callable): from a PIL image to a tensor of that size.
        output (`str` or `None`): kind of output, if its configuration says so: `"single_label"`, `"multi_label"` (also
            for one logit), `"dense"`, `"features"`, or `"regression"`, which can't be measured.
    """

    module: "torch.nn.Module"
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Callable[[Any], "torch.Tensor"]
    output: str | None = None

    def on(self, device: "str | torch.device | None") -> "BuiltModel":
        """The model on a device: itself if it is there, or for `None`; else with a copy of its module."""
        import torch

        if device is None or device_of(self.module) == torch.device(device):
            return self
        return replace(self, module=to_device(deepcopy(self.module), device))
