"""Kinds of output, and the divergence between two outputs of each. The budget bounds its mean over images, in nats.

* `single_label`, logits `(n, classes)`: KL divergence of the softmax. An image agrees if its top class is the same.
* `multi_label`, logits `(n, labels)`, or a single logit: KL divergence of independent labels (Bernoulli), summed over
  the labels. An image agrees if all its labels are the same; a label applies if its probability is above one half.
* `dense`, logits `(n, classes, height, width)`: KL divergence of the softmax at each position (of one label, if there
  is one class), averaged over positions. A position agrees if its class is the same.
* `features`, vectors `(n, dim)`, tokens `(n, tokens, dim)` or maps `(n, dim, height, width)`: `1 - cos`, averaged
  over tokens or positions. There are no decisions to agree on.

For features `1 - cos` is the KL divergence of two normal distributions of unit variance around the normalized vectors,
`|z - z'|^2 / 2`. A classifier on top of them may multiply it by up to about the square of its scale.

Inside this module every output is `(n, positions, classes)`, with one position if there is no map. In larger maps the
same 256 positions are measured in every image, drawn once with a fixed seed.
"""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.choices import KINDS
from hf_fingerprint.errors import BuildError, CarrierError, CodeError
from hf_fingerprint.logits import EMBEDDINGS, logits_of
from hf_fingerprint.models import BuiltModel, run_model


if TYPE_CHECKING:
    import torch

MAX_POSITIONS = 256
_DIMENSIONS = {"single_label": (2,), "multi_label": (2,), "dense": (4,), "features": (2, 3, 4)}


def find_output_kind(built: BuiltModel, images: "torch.Tensor", requested: str | None, where: str) -> str:
    """The kind of a model's output: by its configuration, else as requested, else by its shape.

    By shape, logits `(n, classes)` are `single_label`, one logit is `multi_label`, logits `(n, classes, height,
    width)` are `dense`, and pooled vectors or tokens are `features`.

    Args:
        built ([`BuiltModel`]): the model.
        images (`torch.Tensor` of shape `(1, channels, height, width)`): any input.
        requested (`str`, *optional*): one of `KINDS`.
        where (`str`): the model's name, for errors.

    Raises:
        [`CodeError`]: if `requested` differs from the configuration, or is `single_label` for a single logit.
        [`BuildError`]: if the model can't be run.
        [`CarrierError`]: if the output has the shape of no such kind.
    """
    import torch

    if requested is not None and built.output is not None and requested != built.output:
        known = f"{where} has an output of kind {built.output} by its configuration, not {requested}"
        raise CodeError(f"{known}: leave out --output-kind.")
    if built.output == "regression":
        raise CarrierError(f"{where} predicts a quantity (regression), for which there is no budget.")
    kind = built.output or requested
    try:
        with torch.no_grad():
            output = run_model(built.module, images)
    except Exception as error:  # the model's code may raise anything
        image = f"an image of {' x '.join(map(str, images.shape[1:]))} ({type(error).__name__})"
        raise BuildError(f"{where} can't be run on {image}: give the model's whole folder.") from error
    values = logits_of(output, kind)
    if not isinstance(values, torch.Tensor):
        raise CarrierError(f"{where} returns a {type(output).__name__} without logits or features.")
    if kind is None:
        embedding = any(values is getattr(output, name, None) for name in EMBEDDINGS)
        kind = "features" if embedding else _kind_by_shape(values)
    shape = " x ".join(map(str, values.shape))
    if kind is None or values.ndim not in _DIMENSIONS[kind]:
        kinds = f"kind {kind}" if kind else f"any known kind ({', '.join(KINDS)})"
        raise CarrierError(f"{where} has an output of shape {shape}, which is not of {kinds}.")
    if kind == "single_label" and values.shape[-1] == 1:
        raise CodeError(
            f"{where} has one logit, whose softmax is constant, so single_label measures nothing: choose multi_label."
        )
    return kind


def _kind_by_shape(values: "torch.Tensor") -> str | None:
    if values.ndim == 2:
        return "multi_label" if values.shape[1] == 1 else "single_label"
    return {3: "features", 4: "dense"}.get(values.ndim)


def output_values(output: object, kind: str) -> "torch.Tensor":
    """A model's output as `(n, positions, classes)` on the CPU, with its gradients if it has any."""
    import torch

    values = logits_of(output, kind).cpu()
    if values.ndim == 2:
        return values[:, None]
    if values.ndim == 4:
        values = values.flatten(2).transpose(1, 2)
    count = values.shape[1]
    if count <= MAX_POSITIONS:
        return values
    drawn = torch.randperm(count - 1, generator=torch.Generator().manual_seed(0))[: MAX_POSITIONS - 1] + 1
    return values[:, [0, *drawn.sort().values.tolist()]]  # the class token always


def divergence(before: "torch.Tensor", after: "torch.Tensor", kind: str) -> "torch.Tensor":
    """The divergence of two outputs `(n, positions, classes)` in each image: `float64` of shape `(n,)`, in nats."""
    from torch.nn.functional import logsigmoid, normalize

    one, two = before.double(), after.double()
    if kind == "features":
        each = (normalize(one, dim=-1) - normalize(two, dim=-1)).square().sum(-1) / 2
    elif _is_binary(before, kind):
        probability = one.sigmoid()
        terms = probability * (logsigmoid(one) - logsigmoid(two))
        each = (terms + (1 - probability) * (logsigmoid(-one) - logsigmoid(-two))).sum(-1)
    else:
        logs = one.log_softmax(-1)
        each = (logs.exp() * (logs - two.log_softmax(-1))).sum(-1)
    return each.mean(-1)


def same_decisions(before: "torch.Tensor", after: "torch.Tensor", kind: str) -> "torch.Tensor | None":
    """Whether two outputs give the same decisions: `bool` of shape `(n, positions)`; `None` for features."""
    if kind == "features":
        return None
    if _is_binary(before, kind):
        return ((before > 0) == (after > 0)).all(-1)
    return before.argmax(-1) == after.argmax(-1)


def reversing_factors(before: "torch.Tensor", after: "torch.Tensor", kind: str) -> "torch.Tensor | None":
    """How many times as large a change of the output, in the same or the opposite direction, reverses each decision.

    It is the margin divided by the size of its change, where the margin is the base's lead of its top class over the
    second, or the distance of a logit from 0, and of several labels the one that is reversed first.

    Returns:
        `torch.Tensor` of shape `(n, positions)`, `float64`, or `None` for features.
    """
    if kind == "features":
        return None
    one, two = before.double(), after.double()
    if _is_binary(before, kind):
        margins, changes = one.abs(), (two - one).abs()
    else:
        top, classes = one.topk(2, -1)
        then = two.gather(-1, classes)
        margins = (top[..., 0] - top[..., 1])[..., None]
        changes = ((then[..., 0] - then[..., 1])[..., None] - margins).abs()
    return (margins / changes).nan_to_num(float("inf"), posinf=float("inf")).amin(-1)


def random_direction(values: "torch.Tensor", kind: str, generator: "torch.Generator") -> "torch.Tensor":
    """Draws a random direction in the output, with mean 0 and covariance M in each image.

    M is the second derivative of the divergence: after a small change d of the output, the divergence is
    `d^T M d / 2`. At one position M is `diag(p) - p p^T` for a softmax, `diag(p (1 - p))` for independent labels, and
    `(1 - z z^T / |z|^2) / |z|^2` for features z, since `1 - cos` is half the squared change of the normalized vector.
    Positions are independent, each with a share `1 / positions` of M.
    """
    import torch

    values = values.detach().float()
    noise = torch.randn(values.shape, generator=generator)
    if kind == "features":
        size = values.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
        unit = values / size
        drawn = (noise - unit * (unit * noise).sum(-1, keepdim=True)) / size
    elif _is_binary(values, kind):
        probability = values.sigmoid()
        drawn = (probability * (1 - probability)).sqrt() * noise
    else:
        probability = values.softmax(-1)
        root = probability.sqrt() * noise
        drawn = root - probability * root.sum(-1, keepdim=True)
    return drawn / np.sqrt(values.shape[1])


def _is_binary(values: "torch.Tensor", kind: str) -> bool:
    """Whether each class is a separate decision."""
    return kind == "multi_label" or values.shape[-1] == 1
