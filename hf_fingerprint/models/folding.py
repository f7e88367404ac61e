"""Models that compute the same in less time, once their weights are final."""

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_fingerprint.logits import logits_of
from hf_fingerprint.models.devices import run_model


if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_DIFFERENCE = 1e-2  # of the largest logit: folding changes 1e-5, and 1e-3 in TF32


def fold_batch_norms(model: "torch.nn.Module", images: "Tensor") -> "torch.nn.Module":
    """A copy of a model, in evaluation mode, with batch normalizations folded into the convolutions before them (B.
    Jacob et al., CVPR 2018, section 3.2).

    Activations of the copy do not work in place, so gradients through them need no copy of their inputs. What precedes
    a normalization is seen from a run of the model. Returns the model itself if there is nothing to fold, or if the
    copy would compute something else.

    Args:
        model (`torch.nn.Module`): a classifier of images in evaluation mode.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): what it takes. Two are enough.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    with torch.no_grad():
        convolutions, expected = _run_and_observe(model, images)
        if not convolutions:
            return model
        folded = copy.deepcopy(model).requires_grad_(False)
        for name, preceding in convolutions.items():
            norm: Any = folded.get_submodule(name)
            convolution: Any = folded.get_submodule(preceding)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            folded.set_submodule(name, getattr(norm, "act", torch.nn.Identity()))  # timm's have an activation
        for module in folded.modules():
            if getattr(module, "inplace", None) is True:
                module.inplace = False
        found = logits_of(run_model(folded, images))
    same = (found - expected).abs().max() <= MAX_DIFFERENCE * expected.abs().max()
    return folded if same else model


def _run_and_observe(model: "torch.nn.Module", images: "Tensor") -> "tuple[dict[str, str], Tensor]":
    """The name of the convolution whose output each batch normalization takes, by the normalization's name, and the
    model's logits."""
    import torch

    makers: dict[int, str] = {}
    outputs: list[Tensor] = []  # kept, so that no two have one id
    found: dict[str, str] = {}

    def record(name: str, module: Any, given: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            makers[id(output)] = name
            outputs.append(output)
        elif id(given[0]) in makers and module.running_var is not None:
            found[name] = makers[id(given[0])]

    hooks = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    ]
    try:
        logits = logits_of(run_model(model, images))
    finally:
        for hook in hooks:
            hook.remove()
    return found, logits
