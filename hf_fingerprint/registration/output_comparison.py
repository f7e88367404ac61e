"""Measures how far marked copies' outputs are from the base's, over many images and copies, with intervals.

One copy's divergence may be twice another's, since a mark changes a low-dimensional output by a sum of few random
terms. So each batch of images runs through another copy, and the mean is over images and copies.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.models import LazyImages, device_of, fit_batch_size, run_model
from hf_fingerprint.registration.intervals import between_group_std, student_interval, wilson_interval
from hf_fingerprint.registration.outputs import divergence, output_values, reversing_factors, same_decisions
from hf_fingerprint.registration.predicted_agreement import predict_agreement


if TYPE_CHECKING:
    import torch

BATCH = 8
MAX_KEPT_BYTES = 1 << 26


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
        predicted_agreement (`tuple[float, float]`, *optional*): the agreement by [`predict_agreement`], with its lower
            limit; `None` for features.
    """

    kl: float
    kl_interval: tuple[float, float]
    kl_scatter: float
    images: int
    decisions: int
    agreeing: int
    predicted_agreement: tuple[float, float] | None = None

    @property
    def agreement(self) -> float | None:
        """The share of equal decisions."""
        return self.agreeing / self.decisions if self.decisions else None

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """95 % interval of the agreement. Positions of one image are correlated, so a map counts as one decision."""
        return None if self.agreement is None else wilson_interval(self.agreement, self.images)


class BaseOutputs:
    """A model's own outputs, kept up to 64 MB, since every comparison on the same images needs the same ones."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, torch.Tensor] = {}
        self._bytes = 0

    def get(self, key: Hashable, run: "Callable[[], torch.Tensor]") -> "torch.Tensor":
        """The outputs for this key, from `run` if they are not kept."""
        if key in self._kept:
            return self._kept[key]
        values = run()
        if self._bytes + values.nbytes <= MAX_KEPT_BYTES:
            self._kept[key], self._bytes = values, self._bytes + values.nbytes
        return values


def compare_outputs(
    module: "torch.nn.Module",
    images: LazyImages,
    marks: Iterable[Mapping[str, np.ndarray]],
    kind: str,
    batch: int = BATCH,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
    base_outputs: BaseOutputs | None = None,
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
        base_outputs ([`BaseOutputs`], *optional*): what the model itself returned in earlier comparisons.
    """
    import torch
    from torch.func import functional_call

    parameters, device, known = dict(module.named_parameters()), device_of(module), base_outputs or BaseOutputs()
    at_once = fit_batch_size(images.pixels, BATCH)
    divergences: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    decisions, agreeing, began = 0, 0, clock()
    with torch.no_grad():
        for batch_images, marked in zip(images.batches(batch), marks, strict=False):
            copy = {
                name: torch.from_numpy(values).reshape(parameters[name].shape).to(device)
                for name, values in marked.items()
            }
            batch_divergences: list[torch.Tensor] = []
            batch_factors: list[torch.Tensor] = []
            for number, part in enumerate(batch_images.split(at_once)):
                key = id(images), batch, len(divergences), number
                before = known.get(key, lambda part=part: output_values(run_model(module, part), kind))  # type: ignore[misc]
                after = output_values(functional_call(module, copy, (part.to(device),)), kind)
                batch_divergences.append(divergence(before, after, kind))
                same, factor = same_decisions(before, after, kind), reversing_factors(before, after, kind)
                if same is not None and factor is not None:
                    decisions, agreeing = decisions + same.numel(), agreeing + int(same.sum())
                    batch_factors.append(factor)
            divergences.append(torch.cat(batch_divergences).numpy())
            if batch_factors:
                factors.append(torch.cat(batch_factors).numpy())
            if clock() - began >= seconds:
                break
    each = np.concatenate(divergences)
    interval = student_interval(divergences if len(divergences) > 1 else list(each[:, None]))
    predicted = predict_agreement(factors) if factors and np.isfinite(each).all() else None
    scatter = between_group_std(divergences)
    return OutputComparison(float(each.mean()), interval, scatter, len(each), decisions, agreeing, predicted)
