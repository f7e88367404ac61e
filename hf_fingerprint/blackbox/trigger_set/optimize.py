"""Fitting questions to a base: patterns that draw the features of all questions apart from each other and from those
of ordinary images, so that the head can answer each as it likes and ordinary images as before.

What it costs ordinary images to raise one logit of question k, by least squares, is the kth entry on the diagonal of
the inverse of F (M + mu)^-1 F^T, where F holds the questions' features and M is the second moment of ordinary ones: a
D-optimal design turned about (F. Pukelsheim, "Optimal Design of Experiments", 1993). The sum of these costs, each by
the square of the logits that are lacking, is made small by gradient descent in the pixels, over the views that thieves
give: the image cropped, the base pruned.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_fingerprint.blackbox.trigger_set.classifier_head import BATCH, Head, all_features, features_of
from hf_fingerprint.blackbox.trigger_set.covers import MAX_LEVEL, MIN_LEVEL, MIN_SIZE, synthetic_cover
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, MARGIN
from hf_fingerprint.models import BuiltModel, fit_batch_size
from hf_fingerprint.progress import Progress, silent


if TYPE_CHECKING:
    import torch

    Norm = tuple[torch.Tensor, torch.Tensor]

MAX_PATTERN = 90.0  # of a pattern, grey levels
MOMENT_RIDGE, GRAM_RIDGE = 3e-2, 1e-2  # added to M and to the questions' likeness, in shares of their means
MOMENTUM, DECAY_START, STEP_DECAY = 0.7, 0.6, 3.0  # of steps; when they become smaller, and by how much
CROPS, DEFAULT_CROP, PRUNED_SHARE = (1.0, 0.98, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8), 0.875, 0.5
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class View:
    """What a thief may make of a model or its input: a model, and how much of an image's width it sees."""

    model: "torch.nn.Module"
    head: Head
    crop: float


def make_views(built: BuiltModel, head: Head) -> list[View]:
    """The base on images as its own preprocessing crops them, and cropped otherwise; and with half of its weights
    pruned, of each tensor and of all together (S. Han et al., NIPS 2015)."""
    module, own = built.module, preprocessing_crop(built)
    found = [View(module, head, own), View(module, head, DEFAULT_CROP if own == 1.0 else 1.0)]
    for across_tensors in (False, True):
        pruned = _pruned(module, across_tensors)
        found.append(View(pruned, Head(head.name, pruned.get_submodule(head.name.rpartition(".")[0])), own))
    return found


def preprocessing_crop(built: BuiltModel) -> float:
    """How much of an image's width a model's preprocessing keeps: the crop that comes nearest to it."""
    import torch
    from PIL import Image

    cover = synthetic_cover(bytes(32), 0)
    theirs = built.preprocess(Image.fromarray(cover))
    shown = torch.from_numpy(cover).permute(2, 0, 1)[None].float()
    flat = torch.zeros(1, 3, GRID, GRID)
    apart = [float((render_view(shown, flat, crop, built)[0] - theirs).square().mean()) for crop in CROPS]
    return CROPS[apart.index(min(apart))]


def inverse_second_moment(features: "torch.Tensor") -> "torch.Tensor":
    """`(M + mu)^-1`, `(width, width)`, `float64`: what a change of the head costs ordinary images of these features
    `(n, width)`."""
    import torch

    wide = features.double()
    moment = wide.T @ wide
    moment *= len(moment) / moment.trace()
    return torch.linalg.inv(moment + MOMENT_RIDGE * torch.eye(len(moment), dtype=torch.float64))


def solve_head_updates(features: "torch.Tensor", metric: "torch.Tensor", ridge: float) -> "torch.Tensor":
    """The head's change for one logit more at each question, seen in each view.

    Args:
        features (`torch.Tensor` of shape `(views, questions, width)`): of the questions.
        metric (`torch.Tensor` of shape `(width, width)`): see [`inverse_second_moment`].
        ridge (`float`): added to the questions' likeness, in shares of its mean; the more, the less is changed, and
            the less of what is wanted comes about.

    Returns:
        `torch.Tensor` of the features' shape: times wanted logits, summed, the change that comes nearest to them.
    """
    import torch

    flat = features.double().flatten(0, 1)
    gram = flat @ metric @ flat.T
    gram += ridge * gram.diagonal().mean() * torch.eye(len(flat), dtype=torch.float64)
    return torch.linalg.solve(gram, flat @ metric).reshape(features.shape)


def optimize_patterns(
    cover_images: "torch.Tensor",
    views: list[View],
    built: BuiltModel,
    metric: "torch.Tensor",
    steps: int,
    progress: Progress | None = None,
) -> "torch.Tensor":
    """Fits a pattern to each cloud.

    Args:
        cover_images (`torch.Tensor` of shape `(n, 3, 224, 224)`): grey levels.
        views (list of [`View`]): of the base.
        built ([`BuiltModel`]): the base, for the size and the normalisation of its input.
        metric (`torch.Tensor` of shape `(width, width)`): see [`inverse_second_moment`].
        steps (`int`): of gradient descent, in one view each.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        `torch.Tensor` of shape `(n, 3, GRID, GRID)`: whole grey levels.
    """
    import torch

    progress = progress or silent
    patterns = torch.zeros(len(cover_images), 3, GRID, GRID)
    velocity = torch.zeros_like(patterns)
    parts = batch_slices(len(cover_images), built)
    features = [all_features(v.model, v.head, render_batches(cover_images, patterns, v.crop, built)) for v in views]
    for step in range(steps):
        active = step % len(views)
        gradients = _cost_gradient(features, views, metric, active)
        step_size = MAX_PATTERN / 8 / (1 if step < DECAY_START * steps else STEP_DECAY)
        for part in parts:
            drawn = patterns[part].clone().requires_grad_(True)
            view = views[active]
            batch_features = features_of(
                view.model, view.head, render_view(cover_images[part], drawn, view.crop, built)
            )
            (gradient,) = torch.autograd.grad((batch_features * gradients[part]).sum(), drawn)
            gradient /= gradient.abs().mean((1, 2, 3), keepdim=True) + torch.finfo(gradient.dtype).tiny
            velocity[part] = MOMENTUM * velocity[part] - gradient
            patterns[part] = (patterns[part] + step_size * velocity[part].sign()).clamp(-MAX_PATTERN, MAX_PATTERN)
        for which, view in enumerate(views):
            if which == active or active == len(views) - 1:
                features[which] = all_features(
                    view.model, view.head, render_batches(cover_images, patterns, view.crop, built)
                )
        progress("fitting trigger images", step + 1, steps)
    return patterns.round()


def batch_slices(count: int, built: BuiltModel) -> list[slice]:
    """So many images in parts that go through the model together."""
    step = fit_batch_size(built.size[1] * built.size[2], BATCH)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def render_batches(
    cover_images: "torch.Tensor", patterns: "torch.Tensor", crop: float, built: BuiltModel
) -> "Iterator[torch.Tensor]":
    """The same as [`render_view`], part by part."""
    for part in batch_slices(len(cover_images), built):
        yield render_view(cover_images[part], patterns[part], crop, built)


def render_view(
    cover_images: "torch.Tensor", patterns: "torch.Tensor", crop: float, built: BuiltModel
) -> "torch.Tensor":
    """Clouds `(n, 3, 224, 224)` under patterns as a model takes them, `(n, channels, height, width)`."""
    import torch
    from torch.nn.functional import interpolate

    channels, height, width = built.size
    drawn = interpolate(patterns, size=(MIN_SIZE, MIN_SIZE), mode="bilinear")
    images = (cover_images + drawn).clamp(MIN_LEVEL, MAX_LEVEL) / 255
    size = (int(height / crop), int(width / crop))
    images = interpolate(images, size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    images = images[..., top : top + height, left : left + width]
    if channels == 1:
        images = (images * torch.tensor(GRAY_WEIGHTS)[:, None, None]).sum(1, keepdim=True)
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (built.mean, built.std))
    return (images - mean) / std


def _cost_gradient(
    features: "list[torch.Tensor]", views: list[View], metric: "torch.Tensor", active: int
) -> "torch.Tensor":
    """The gradient of the logarithm of the cost by the features of a view, `(n, width)`."""
    import torch

    wide = [each.double().requires_grad_(which == active) for which, each in enumerate(features)]
    deficits = []
    for each, view in zip(wide, views, strict=True):
        logits = each @ view.head.matrix().double().T + _bias(view.head)
        deficits.append(MARGIN + logits.logsumexp(1) - logits.mean(1))
    flat = torch.cat(wide)
    gram = flat @ metric @ flat.T
    gram = gram + GRAM_RIDGE * gram.detach().diagonal().mean() * torch.eye(len(flat), dtype=torch.float64)
    count = len(features[0])
    costs = torch.linalg.inv(gram).reshape(len(views), count, len(views), count).diagonal(dim1=1, dim2=3)
    needed = torch.stack(deficits)
    cost = torch.einsum("vq,vwq,wq->", needed, costs, needed).log()
    (gradient,) = torch.autograd.grad(cost, wide[active])
    return gradient.float()


def _bias(head: Head) -> "torch.Tensor | float":
    bias = head.layer.bias
    return 0.0 if bias is None else bias.detach().double()


def _pruned(module: "torch.nn.Module", across_tensors: bool) -> "torch.nn.Module":
    import torch

    pruned = copy.deepcopy(module)
    weights = [each for each in pruned.parameters() if each.ndim > 1]
    with torch.no_grad():
        every = torch.cat([each.flatten() for each in weights]).abs() if across_tensors else None
        for each in weights:
            sizes = each.abs().flatten() if every is None else every
            least = sizes.kthvalue(max(1, int(PRUNED_SHARE * len(sizes)))).values
            each.mul_(each.abs() > least)
    return pruned
