"""A classifier's head, its last linear layer, and the features that go into it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models.logits import logits_of


if TYPE_CHECKING:
    import torch

BATCH = 16  # images at once, of 224 x 224; see `fit_batch_size`


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier: `logits = features W^T + bias`.

    Attributes:
        name (`str`): the parameter's name in the model, such as `"classifier.weight"`.
        layer (`torch.nn.Module`): the layer, with W of shape `(classes, width)`, or `(classes, width, 1, 1)` where it
            is a convolution.
    """

    name: str
    layer: "torch.nn.Module"

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return int(self.layer.weight.shape[0])

    def matrix(self) -> "torch.Tensor":
        """W, `(classes, width)`."""
        return self.layer.weight.detach().flatten(1)


def find_head(model: "torch.nn.Module", images: "torch.Tensor") -> Head:
    """The linear layer whose output is the model's.

    Args:
        model (`torch.nn.Module`): a classifier of timm or transformers, in evaluation mode.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): one is enough.

    Raises:
        [`FingerprintError`]: if the logits don't come from a linear layer, or are not those of two classes or more.
    """
    import torch

    outputs: dict[str, torch.Tensor] = {}
    hooks = []

    def make_hook(name: str) -> Callable[..., None]:
        def hook_fn(_module: Any, _given: Any, output: Any) -> None:
            outputs[name] = output

        return hook_fn

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(make_hook(name)))
    try:
        with torch.no_grad():
            logits = logits_of(model(images[:1]))
    finally:
        for hook in hooks:
            hook.remove()
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise FingerprintError(
            f"{type(model).__name__} has an output of shape {' x '.join(map(str, logits.shape))}, and questions are "
            f"answered by the top one of two classes or more: such a model can't answer for its recipient yet."
        )
    for name, output in reversed(outputs.items()):
        if output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten()):
            return Head(f"{name}.weight", model.get_submodule(name))
    raise FingerprintError(
        f"The logits of {type(model).__name__} don't come straight from a linear layer, which is where answers are "
        f"bound: such a model can't answer for its recipient yet."
    )


def features_of(model: "torch.nn.Module", head: Head, images: "torch.Tensor") -> "torch.Tensor":
    """What goes into the head, `(n, width)`; with gradients where the images have them."""
    return features_and_logits(model, head, images)[0]


def features_and_logits(
    model: "torch.nn.Module", head: Head, images: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What goes into the head, and what comes out of the model, `(n, classes)`."""
    captured = []
    hook = head.layer.register_forward_pre_hook(lambda _module, given: captured.append(given[0]))
    try:
        logits = logits_of(model(images))
    finally:
        hook.remove()
    return captured[0].flatten(1), logits


def all_features(model: "torch.nn.Module", head: Head, batches: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """The same for many images, batch by batch, without gradients."""
    import torch

    with torch.no_grad():
        return torch.cat([features_of(model, head, part) for part in batches])
