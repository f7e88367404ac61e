"""Measures how much the mark in each tensor changes the output, with a few backward passes for all tensors.

To second order the KL divergence between the outputs before and after a change d of the weights is `d^T F d / 2`,
where F is the Fisher information of the classes. For a mark of random signs and amplitude `a_k` its mean is
`sum_k a_k^2 F_kk / 2`. Here `F_kk = E (g_k^2)`, where g is the gradient of `z . u`, z the output and u a random
direction whose covariance is the divergence's second derivative; see [`random_direction`] for each kind of output.
Since u is independent from image to image, one backward pass over a batch estimates the sum over its images.
"""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers.amplitude import row_rms
from hf_fingerprint.models import LazyImages, fit_batch_size, run_model
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.registration.outputs import output_values, random_direction


if TYPE_CHECKING:
    import torch


BATCH = 8
DRAWS = 2


def measure_sensitivity(
    module: "torch.nn.Module", images: LazyImages, names: list[str], kind: str, progress: Progress | None = None
) -> np.ndarray:
    """Sensitivities `S_t`, so that `KL = sum_t eps_t^2 S_t` to second order, averaged over the images.

    Args:
        module (`torch.nn.Module`): the model, in evaluation mode.
        images ([`LazyImages`]): calibration inputs.
        names (`list[str]`): the carriers' parameter names.
        kind (`str`): the kind of output, one of `KINDS`.
        progress (callable, *optional*): a [`Progress`].

    Returns:
        `np.ndarray` of shape `(len(names),)`, `float64`.
    """
    import torch

    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in names]
    weights = [torch.from_numpy(row_rms(p.detach().float().flatten(1).cpu().numpy())).square() / 2 for p in chosen]
    frozen = {name: p.requires_grad for name, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_(False)
    for p in chosen:
        p.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    total = np.zeros(len(names))
    count = counting(progress, "measuring the sensitivity", len(images))
    try:
        for batch in images.batches(fit_batch_size(images.pixels, BATCH)):
            values = output_values(run_model(module, batch), kind)
            for draw in range(DRAWS):
                product = (values * random_direction(values, kind, generator)).sum()
                gradients = torch.autograd.grad(product, chosen, retain_graph=draw + 1 < DRAWS, allow_unused=True)
                total += [
                    0.0 if g is None else float((g.flatten(1).square().sum(1).cpu() * w).sum())
                    for g, w in zip(gradients, weights, strict=True)
                ]
            count(len(batch))
    finally:
        for name, p in parameters.items():
            p.requires_grad_(frozen[name])
    return total / (DRAWS * len(images))
