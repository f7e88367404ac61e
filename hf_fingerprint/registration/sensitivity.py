"""How much each tensor's mark moves the output, for all tensors by a few backward passes.

To second order the KL divergence between the outputs before and after a change d of the weights is `d^T F d / 2`, F
being the Fisher information of the classes. For a mark of random signs and amplitude `a_k` its mean is `sum_k a_k^2
F_kk / 2`. `F_kk = E (g_k^2)` with g the gradient of `z . u`, z the logits and u random with covariance `diag(p) - p
p^T`; since u is independent from image to image, one backward pass over a batch estimates the sum over its images
without bias.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers.amplitude import row_rms
from hf_fingerprint.carriers.selection import logits_of


if TYPE_CHECKING:
    import torch


BATCH = 8
DRAWS = 2


def measure_sensitivity(
    module: "torch.nn.Module",
    images: "torch.Tensor",
    names: list[str],
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Sensitivities `S_t`, so that `KL = sum_t eps_t^2 S_t` to second order, averaged over the images.

    Args:
        module (`torch.nn.Module`): the model, in evaluation mode.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): calibration inputs.
        names (`list[str]`): parameters, the carriers.
        advance (callable, *optional*): told the images done.

    Returns:
        `np.ndarray` of shape `(len(names),)`, `float64`.
    """
    import torch

    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in names]
    weights = [torch.from_numpy(row_rms(_rows(p))).square() / 2 for p in chosen]
    frozen = {name: p.requires_grad for name, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_(False)
    for p in chosen:
        p.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    total = np.zeros(len(names))
    try:
        for batch in images.split(BATCH):
            logits = logits_of(module(batch))
            probability = logits.detach().float().softmax(-1)
            for draw in range(DRAWS):
                root = probability.sqrt() * torch.randn(probability.shape, generator=generator)
                direction = root - probability * root.sum(-1, keepdim=True)
                gradients = torch.autograd.grad(
                    (logits * direction).sum(), chosen, retain_graph=draw + 1 < DRAWS, allow_unused=True
                )
                total += [
                    0.0 if g is None else float((g.flatten(1).square().sum(1) * w).sum())
                    for g, w in zip(gradients, weights, strict=True)
                ]
            if advance is not None:
                advance(len(batch))
    finally:
        for name, p in parameters.items():
            p.requires_grad_(frozen[name])
    return total / (DRAWS * len(images))


def compare_outputs(
    module: "torch.nn.Module", images: "torch.Tensor", marked: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Mean KL divergence and top-1 agreement between the model and itself with some weights replaced.

    Args:
        module (`torch.nn.Module`): the model; it is left as it was.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): inputs.
        marked (mapping): parameter names to their values in the copy, `float32` of shape `(rows, columns)`.

    Returns:
        `(kl, agreement)`: in nats, and as a share.
    """
    import torch

    before = _log_probabilities(module, images)
    parameters = dict(module.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in marked}
    with torch.no_grad():
        try:
            for name, values in marked.items():
                parameters[name].copy_(torch.from_numpy(values).reshape(parameters[name].shape))
            after = _log_probabilities(module, images)
        finally:
            for name, values in kept.items():
                parameters[name].copy_(values)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    return float(kl), float((before.argmax(-1) == after.argmax(-1)).double().mean())


def _log_probabilities(module: "torch.nn.Module", images: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        return torch.cat([logits_of(module(batch)).double().log_softmax(-1) for batch in images.split(BATCH)])


def _rows(parameter: "torch.nn.Parameter") -> np.ndarray:
    return parameter.detach().float().flatten(1).numpy()
