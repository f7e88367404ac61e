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

    Activations no longer work in place, so gradients through them need no copy of their inputs. What follows what is
    seen from a run of the model. If the folded model computes something else, the copy is not folded.

    Args:
        model (`torch.nn.Module`): a classifier of images in evaluation mode.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): what it takes. Two are enough.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    with torch.no_grad():
        plain, folded = copy.deepcopy(model), copy.deepcopy(model)
        expected = logits_of(run_model(plain, images))
        for name, convolution in _convolutions_before_norms(folded, images).items():
            norm = folded.get_submodule(name)
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
    return folded.requires_grad_(False) if same else plain


def _convolutions_before_norms(model: "torch.nn.Module", images: "Tensor") -> "dict[str, Any]":
    """The convolution whose output each normalization takes, by the normalization's name."""
    import torch

    convolutions: dict[int, Any] = {}
    outputs: list[Tensor] = []  # kept, so that no two have one id
    pairs: list[tuple[str, Any]] = []

    def record(name: str, module: Any, given: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            convolutions[id(output)] = module
            outputs.append(output)
        elif id(given[0]) in convolutions:
            pairs.append((name, convolutions[id(given[0])]))

    hooks = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    ]
    try:
        run_model(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(pairs)
