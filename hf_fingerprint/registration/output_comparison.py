"""Measures how far marked copies' outputs are from the base's, over many images and copies, with intervals.

One copy's divergence may be twice another's, since a mark changes a low-dimensional output by a sum of few random
terms. So each batch of images runs through another copy, and the mean is over images and copies.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri, stdtrit

from hf_fingerprint.models import LazyImages, device_of, fit_batch_size, run_model
from hf_fingerprint.registration.outputs import divergence, output_values, same_decisions


if TYPE_CHECKING:
    import torch

BATCH = 8
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class OutputComparison:
    """The measured effect of a mark on the output.

    Attributes:
        kl (`float`): mean divergence over images and copies, in nats; see `outputs.py` for each kind of output.
        kl_interval (`tuple[float, float]`): 95 % interval of that mean, from the spread over batches, each of other
            images and another copy, or over images if there is one batch.
        kl_scatter (`float`): standard deviation of one copy's divergence about the mean, in nats.
        images (`int`): how many images were measured.
        decisions (`int`): how many decisions were compared: one per image or position of a map; 0 for features.
        agreeing (`int`): how many of them are the same.
    """

    kl: float
    kl_interval: tuple[float, float]
    kl_scatter: float
    images: int
    decisions: int
    agreeing: int

    @property
    def agreement(self) -> float | None:
        """The share of equal decisions."""
        return self.agreeing / self.decisions if self.decisions else None

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """95 % interval of the agreement. Positions of one image are correlated, so a map counts as one decision."""
        return None if self.agreement is None else wilson_interval(self.agreement, self.images)


def compare_outputs(
    module: "torch.nn.Module",
    images: LazyImages,
    marks: Iterable[Mapping[str, np.ndarray]],
    kind: str,
    batch: int = BATCH,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> OutputComparison:
    """Compares a model with marked copies of it, each on a batch of images.

    Args:
        module (`torch.nn.Module`): the model; it isn't changed.
        images ([`LazyImages`]): inputs.
        marks (iterable of mappings): for each batch, a copy's parameters by name, `float32`, `(rows, columns)`.
        kind (`str`): the kind of output, one of `KINDS`.
        batch (`int`, *optional*, defaults to 8): the number of images per copy.
        seconds (`float`, *optional*): no batch starts after this time.
        clock (callable, *optional*): returns the time in seconds.
    """
    import torch
    from torch.func import functional_call

    parameters, device = dict(module.named_parameters()), device_of(module)
    at_once = fit_batch_size(images.pixels, BATCH)
    divergences: list[np.ndarray] = []
    decisions, agreeing, began = 0, 0, clock()
    with torch.no_grad():
        for batch_images, marked in zip(images.batches(batch), marks, strict=False):
            copy = {
                name: torch.from_numpy(values).reshape(parameters[name].shape).to(device)
                for name, values in marked.items()
            }
            batch_divergences: list[torch.Tensor] = []
            for part in batch_images.split(at_once):
                before = output_values(run_model(module, part), kind)
                after = output_values(functional_call(module, copy, (part.to(device),)), kind)
                batch_divergences.append(divergence(before, after, kind))
                same = same_decisions(before, after, kind)
                if same is not None:
                    decisions, agreeing = decisions + same.numel(), agreeing + int(same.sum())
            divergences.append(torch.cat(batch_divergences).numpy())
            if clock() - began >= seconds:
                break
    each = np.concatenate(divergences)
    interval = _interval(divergences if len(divergences) > 1 else list(each[:, None]))
    scatter = _between_group_std(divergences)
    return OutputComparison(float(each.mean()), interval, scatter, len(each), decisions, agreeing)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean over `count` independent observations in [0, 1].

    Zeros and ones have the largest spread for a given mean, so the interval is wide enough for other values as well.
    """
    z = float(ndtri(0.5 + CONFIDENCE_LEVEL / 2))
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _interval(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of non-negative values, from independent groups of them."""
    mean, variance = _mean_and_variance(groups)
    if len(groups) < 2:
        return 0.0, mean
    shares = np.array([len(group) for group in groups]) / sum(len(group) for group in groups)
    half = float(stdtrit(len(groups) - 1, 0.5 + CONFIDENCE_LEVEL / 2)) * sqrt(variance * float((shares**2).sum()))
    return max(0.0, mean - half), mean + half


def _between_group_std(groups: Sequence[np.ndarray]) -> float:
    """The standard deviation of the groups' true means: the measured means' without the noise within the groups."""
    if len(groups) < 2:
        return 0.0
    sizes = np.array([len(group) for group in groups])
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / max(1, sizes.sum() - len(groups))
    return sqrt(max(0.0, _mean_and_variance(groups)[1] - within / float(sizes.mean())))


def _mean_and_variance(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean of all values, and the variance of the groups' means about it."""
    sizes, means = np.array([len(group) for group in groups]), np.array([group.mean() for group in groups])
    mean = float((sizes * means).sum() / sizes.sum())
    variance = float((sizes / sizes.sum() * (means - mean) ** 2).sum())
    return mean, variance * len(groups) / max(1, len(groups) - 1)
