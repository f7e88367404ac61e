"""Selects the tensors that carry the mark: all convolution and linear weights, except the stem and the classifier.

Loaders adapt the stem (other input channels) and drop the classifier (other classes), so neither is a carrier. They
are found by running the model if it can be built, else by names and shapes.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints import TensorInfo
from hf_fingerprint.checkpoints.dtypes import WRITABLE
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.logits import logits_of


if TYPE_CHECKING:
    import torch


_WEIGHT = re.compile(r"(^|[._])(weight|in_proj_weight)$")
_NOT_LINEAR = re.compile(
    r"pos_embed|position_embed|relative_position|(cls|mask|dist|reg|register)_tokens?(\.|$)|token_embed|word_embed|embeddings?\.weight$|norm"
    r"|(^|\.)bn\d?\.",
    re.IGNORECASE,
)
_STEM = re.compile(r"(^|\.)(stem\.0|patch_embed\w*|conv_stem|embedder)(\.|$)|^(features\.0|conv1)(\.0)*\.weight", re.I)
_CLASSIFIER = re.compile(
    r"(classifier|(^|\.)head(_dist)?|(^|\.)fc|last_linear|(^|\.)head(_dist)?\.(fc|linear|l))(\.\d+)?\.weight$", re.I
)
_IMAGE_CHANNELS = (3, 4)
_CLASSIFIER_DEPTH = 4


def can_carry(info: TensorInfo) -> bool:
    """Whether a tensor has the shape and dtype of a carrier: a weight matrix or kernel of floats."""
    return info.dtype in WRITABLE and len(info.shape) in (2, 3, 4, 5) and min(info.shape) > 0 and info.columns > 1


def select_by_name(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Selects carriers by names and shapes alone, in file order.

    A weight of two to five dimensions counts as a convolution or linear weight unless its name is that of an embedding
    or a norm. The stem has a stem's name, or 3 or 4 input channels. The classifier has a classifier's name near the
    model's root, or is the last matrix.
    """
    found = [n for n, i in tensors.items() if can_carry(i) and _WEIGHT.search(n) and not _NOT_LINEAR.search(n)]
    found = [n for n in found if not _is_stem(n, tensors[n])]
    classifiers = {n for n in found if _CLASSIFIER.search(n) and normalize_name(n).count(".") < _CLASSIFIER_DEPTH}
    if not classifiers:
        classifiers = set([n for n in found if len(tensors[n].shape) == 2][-1:])
    return [n for n in found if n not in classifiers]


def _is_stem(name: str, info: TensorInfo) -> bool:
    reads_image = len(info.shape) == 4 and info.shape[1] in _IMAGE_CHANNELS and info.shape[2] > 1
    return reads_image or bool(_STEM.search(normalize_name(name)))


def select_from_model(model: "torch.nn.Module", images: "torch.Tensor", kind: str = "single_label") -> list[str]:
    """Selects carriers by running a model.

    These are the weights of all convolution and linear modules that take part in a forward pass, except the first to
    run, those that output the classes, and those that timm's configuration calls the stem and the classifier.

    Args:
        model (`torch.nn.Module`): a model in evaluation mode.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): any input.
        kind (`str`, *optional*, defaults to `"single_label"`): the kind of its output, one of `KINDS`.

    Returns:
        `list[str]`: parameter names as the model spells them.
    """
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    named = {module: name for name, module in model.named_modules() if isinstance(module, kinds)}
    ran: dict[nn.Module, int] = {}

    def record(module: Any, inputs: object, output: object) -> None:
        ran.pop(module, None)
        ran[module] = module.weight.shape[0]

    hooks = [module.register_forward_hook(record) for module in named]
    try:
        used, classes = _used_parameters(model, images, kind)
    finally:
        for hook in hooks:
            hook.remove()
    order = list(ran)
    left_out = {*order[:1], *_timm_ends(model)}
    left_out |= {m for m in order if ran[m] == classes and _CLASSIFIER.search(f"{named[m]}.weight")}
    left_out |= {module for module in order[-1:] if ran[module] == classes}
    chosen = [module for module in dict.fromkeys([*order, *named]) if module not in left_out]
    weights = {f"{named[module]}.weight": module.weight for module in chosen}
    attention = [(n, m.in_proj_weight) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    weights |= {f"{name}.in_proj_weight": weight for name, weight in attention if weight is not None}
    return [name for name, weight in weights.items() if weight in used]


def _used_parameters(
    model: "torch.nn.Module", images: "torch.Tensor", kind: str
) -> tuple[set["torch.nn.Parameter"], int | None]:
    """The parameters that the output depends on, and the number of classes."""
    import torch

    parameters = list(model.parameters())
    device = parameters[0].device if parameters else images.device
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = logits_of(model(images.to(device)), kind)
            gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
    classes = {"features": None, "dense": logits.shape[1]}.get(kind, logits.shape[-1])
    return {p for p, g in zip(parameters, gradients, strict=True) if g is not None}, classes


def _timm_ends(model: "torch.nn.Module") -> set["torch.nn.Module"]:
    """The modules that timm's configuration calls stem and classifier."""
    inner = getattr(model, "timm_model", model)
    config = getattr(inner, "pretrained_cfg", None) or {}
    modules = dict(inner.named_modules(remove_duplicate=False))
    ends = [config.get(key) or () for key in ("first_conv", "classifier")]
    names = [name for end in ends for name in ((end,) if isinstance(end, str) else end)]
    return {modules[name] for name in names if name in modules}
