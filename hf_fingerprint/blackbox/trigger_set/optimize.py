"""Optimizes the patterns of trigger images on a base, and solves for the head updates.

The patterns move the features of all trigger images away from each other and from those of ordinary images, so that
the head can map each trigger image to any label without a change to ordinary images.

To raise one logit of trigger image k costs ordinary images, by least squares, the kth entry on the diagonal of the
inverse of F (M + mu)^-1 F^T. F holds the features of the trigger images, and M is the second moment of ordinary
features: the dual of a D-optimal design (F. Pukelsheim, "Optimal Design of Experiments", 1993). Gradient descent on
the pixels minimizes the sum of these costs, each weighted by the square of its missing logits, over the views of a
model that an attacker may leave: images cropped, weights pruned.
"""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hf_fingerprint.blackbox.trigger_set.classifier_head import Head, all_features, features_of
from hf_fingerprint.blackbox.trigger_set.covers import synthetic_cover
from hf_fingerprint.blackbox.trigger_set.label_cost import LabelCost, identity_like
from hf_fingerprint.blackbox.trigger_set.rendering import Renderer, batch_slices
from hf_fingerprint.blackbox.trigger_set.triggers import GRID
from hf_fingerprint.models import BuiltModel, fold_batch_norms
from hf_fingerprint.progress import Progress, silent


if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_PATTERN = 90.0  # gray levels
MOMENT_RIDGE = 3e-2  # added to M, as a share of its mean
MOMENTUM, STEP, DECAY_START, DECAY = 0.7, MAX_PATTERN / 8, 0.6, 3.0  # from that share of the steps on, they shrink
CROPS, DEFAULT_CROP, PRUNED_SHARE = (1.0, 0.98, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8), 0.875, 0.5


@dataclass(frozen=True)
class View:
    """A model and its input, as an attacker may change them.

    Attributes:
        model (`torch.nn.Module`): the model.
        head ([`Head`]): its head.
        crop (`float`): the share of an image's width that the model sees.
    """

    model: "torch.nn.Module"
    head: Head
    crop: float


def make_views(built: BuiltModel, head: Head) -> list[View]:
    """The views of a base: with its own crop and with another, and with half of its weights pruned, tensor by tensor
    and across all tensors (S. Han et al., NIPS 2015)."""
    module, own = built.module, preprocessing_crop(built)
    found = [View(module, head, own), View(module, head, DEFAULT_CROP if own == 1.0 else 1.0)]
    for across_tensors in (False, True):
        pruned = _pruned(module, across_tensors)
        found.append(View(pruned, head.of(pruned), own))
    return found


def fold_views(views: list[View], images: "Tensor") -> list[View]:
    """The same views, of models that run faster; see [`fold_batch_norms`].

    Args:
        views (list of [`View`]): of a base.
        images (`torch.Tensor` of shape `(n, channels, height, width)`): what it takes.
    """
    models = {view.model: fold_batch_norms(view.model, images) for view in views}
    return [replace(view, model=models[view.model], head=view.head.of(models[view.model])) for view in views]


def preprocessing_crop(built: BuiltModel) -> float:
    """The share of an image's width that a model's preprocessing keeps, to the nearest of `CROPS`."""
    import torch
    from PIL import Image

    cover = synthetic_cover(bytes(32), 0)
    preprocessed = built.preprocess(Image.fromarray(cover))
    pixels = torch.from_numpy(cover).permute(2, 0, 1)[None].float()
    flat = torch.zeros(1, 3, GRID, GRID)
    shown = [Renderer(crop, built, flat).render(pixels, flat)[0] for crop in CROPS]
    errors = [float((each - preprocessed).square().mean()) for each in shown]
    return CROPS[errors.index(min(errors))]


def inverse_second_moment(features: "Tensor") -> "Tensor":
    """`(M + mu)^-1`, `(width, width)`, `float64`: the cost of a change of the head, from features `(n, width)` of
    ordinary images."""
    import torch

    wide = features.double()
    moment = wide.T @ wide
    moment *= len(moment) / moment.trace()
    return torch.linalg.inv(moment + MOMENT_RIDGE * identity_like(moment))


def solve_head_updates(features: "Tensor", metric: "Tensor", ridge: float) -> "Tensor":
    """The change of the head for one more logit of each trigger image in each view.

    Args:
        features (`torch.Tensor` of shape `(views, triggers, width)`): of the trigger images.
        metric (`torch.Tensor` of shape `(width, width)`): see [`inverse_second_moment`].
        ridge (`float`): added to the Gram matrix of the features, as a share of its mean diagonal. A larger ridge
            changes the head less and reaches less of the wanted logits.

    Returns:
        `torch.Tensor` of the shape of `features`: times the wanted logits and summed, the change of the head.
    """
    import torch

    flat = features.double().flatten(0, 1)
    gram = flat @ metric @ flat.T
    gram += ridge * gram.diagonal().mean() * identity_like(gram)
    return torch.linalg.solve(gram, flat @ metric).reshape(features.shape)


def optimize_patterns(
    cover_images: "Tensor",
    views: list[View],
    built: BuiltModel,
    metric: "Tensor",
    steps: int,
    progress: Progress | None = None,
) -> "Tensor":
    """Optimizes the pattern of each trigger image, on the device of `metric`.

    Args:
        cover_images (`torch.Tensor` of shape `(n, 3, 224, 224)`): gray levels, on any device.
        views (list of [`View`]): of the base.
        built ([`BuiltModel`]): the base, for the size and normalization of its input.
        metric (`torch.Tensor` of shape `(width, width)`): see [`inverse_second_moment`].
        steps (`int`): steps of gradient descent, in one view each.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        `torch.Tensor` of shape `(n, 3, GRID, GRID)`: integral gray levels, on the CPU.
    """
    import torch

    progress = progress or silent
    cover_images = cover_images.to(metric.device).contiguous()
    patterns = torch.zeros(len(cover_images), 3, GRID, GRID, device=metric.device)
    velocity = torch.zeros_like(patterns)
    parts = batch_slices(len(cover_images), built)
    renderers = [Renderer(view.crop, built, patterns) for view in views]
    features = [
        all_features(view.model, view.head, renderer.render_batches(cover_images, patterns))
        for view, renderer in zip(views, renderers, strict=True)
    ]
    cost = LabelCost(features, [view.head for view in views], metric)
    for step in range(steps):
        active, step_size = step % len(views), _step_size(step, steps)
        view = views[active]
        for part in parts:
            images, by_patterns = renderers[active].render_with_gradient(cover_images[part], patterns[part])
            batch_features = features_of(view.model, view.head, images.requires_grad_(True))
            by_features = cost.update(active, part, batch_features)
            (by_images,) = torch.autograd.grad(batch_features, images, by_features)
            gradient = by_patterns(by_images)
            gradient /= gradient.abs().mean((1, 2, 3), keepdim=True) + torch.finfo(gradient.dtype).tiny
            velocity[part] = MOMENTUM * velocity[part] - gradient
            patterns[part] = (patterns[part] + step_size * velocity[part].sign()).clamp(-MAX_PATTERN, MAX_PATTERN)
        progress("fitting trigger images", step + 1, steps)
    return patterns.round().cpu()


def _step_size(step: int, steps: int) -> float:
    """The size of a step, in gray levels."""
    return STEP if step < DECAY_START * steps else STEP / DECAY


def _pruned(module: "torch.nn.Module", across_tensors: bool) -> "torch.nn.Module":
    import torch

    pruned = copy.deepcopy(module)
    weights = [each for each in pruned.parameters() if each.ndim > 1]
    with torch.no_grad():
        all_sizes = torch.cat([each.flatten() for each in weights]).abs() if across_tensors else None
        for each in weights:
            sizes = each.abs().flatten() if all_sizes is None else all_sizes
            threshold = sizes.kthvalue(max(1, int(PRUNED_SHARE * len(sizes)))).values
            each.mul_(each.abs() > threshold)
    return pruned
