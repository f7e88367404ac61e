"""A classifier's head, its last linear layer, and the features that it takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import float64_device, run_model


if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 16  # images of 224 x 224; see `fit_batch_size`


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier: `logits = features W^T + bias`.

    Attributes:
        name (`str`): the parameter's name in the model, such as `"classifier.weight"`.
        layer (`torch.nn.Module`): with W of shape `(classes, width)`, or `(classes, width, 1, 1)` for a convolution.
    """

    name: str
    layer: "torch.nn.Module"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.layer.weight.shape[0])

    def of(self, model: "torch.nn.Module") -> "Head":
        """The head of a copy of the model."""
        return Head(self.name, model.get_submodule(self.name.removesuffix(".weight")))

    def matrix(self) -> "Tensor":
        """W, `(classes, width)`; for the device see [`features_and_logits`]."""
        weight = self.layer.weight.detach().flatten(1)
        return weight.to(float64_device(weight.device))


def find_head(model: "torch.nn.Module", images: "Tensor") -> Head:
    """The linear layer whose output is the model's.

    Args:
        model (`torch.nn.Module`): a classifier of timm or transformers, in evaluation mode.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): the first one is used.

    Raises:
        [`FingerprintError`]: if the logits don't come from a linear layer, or there are fewer than two classes.
    """
    import torch

    outputs: dict[str, torch.Tensor] = {}

    def record(name: str, _module: Any, _args: Any, output: Any) -> None:
        outputs[name] = output

    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in linear]
    try:
        with torch.no_grad():
            logits = logits_of(run_model(model, images[:1]))
    finally:
        for hook in hooks:
            hook.remove()
    if logits.ndim != 2 or logits.shape[1] < 2:
        shape = " x ".join(map(str, logits.shape))
        problem = f"{type(model).__name__} has an output of shape {shape}, and trigger labels need two classes or more"
        raise FingerprintError(f"{problem}: use a model that classifies images.")
    for name, output in reversed(outputs.items()):
        if output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten()):
            return Head(f"{name}.weight", model.get_submodule(name))
    problem = f"The logits of {type(model).__name__} don't come from a linear layer"
    remedy = "use a model that ends in a linear layer"
    raise FingerprintError(f"{problem}, and copies get their trigger labels in one: {remedy}.")


def features_of(model: "torch.nn.Module", head: Head, images: "Tensor") -> "Tensor":
    """The input of the head, `(n, width)`, with gradients if the images have them."""
    return features_and_logits(model, head, images)[0]


def features_and_logits(model: "torch.nn.Module", head: Head, images: "Tensor") -> "tuple[Tensor, Tensor]":
    """The input of the head, `(n, width)`, and the output of the model, `(n, classes)`.

    Both are on the model's device, or on the CPU if that has no double precision.
    """
    captured = []
    hook = head.layer.register_forward_pre_hook(lambda _module, args: captured.append(args[0]))
    try:
        logits = logits_of(run_model(model, images))
    finally:
        hook.remove()
    place = float64_device(logits.device)
    return captured[0].flatten(1).to(place), logits.to(place)


def all_features(model: "torch.nn.Module", head: Head, batches: "Iterable[Tensor]") -> "Tensor":
    """The features of many images, computed in batches without gradients."""
    import torch

    with torch.no_grad():
        return torch.cat([features_of(model, head, batch) for batch in batches])
