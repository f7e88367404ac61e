"""`strength * R` as a loss, for loops written by hand: one process or several, with or without Accelerate.

```python
deepmarks = DeepMarksLoss(model, fingerprint, strength=0.1)
loss = cross_entropy(model(images), labels) + deepmarks()
accelerator.backward(loss)
```
"""

import math
from typing import Any, Protocol

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.training.regularizer import Measurement, Regularizer


STRENGTH = 0.1


class Markable(Protocol):
    """What is trained into a model: a [`Fingerprint`] or a [`DeepMarks`]."""

    def bind(self, model: torch.nn.Module) -> Regularizer:
        """Finds the carriers in a model."""


def check_strength(strength: float) -> float:
    """Refuses a strength that can't be trained with."""
    if not math.isfinite(strength) or strength <= 0:
        raise FingerprintError(f"A strength of {strength} can't be trained with: choose a finite number above 0.")
    return float(strength)


class DeepMarksLoss:
    """The fingerprint's term, to be added to the task's loss once for each micro-batch.

    Under gradient accumulation divide it as you divide the task's loss (Accelerate does); under DDP and FSDP2 add it
    on every process. Plain gradient descent overshoots where learning rate times strength times
    `deepmarks.regulariser.steepest()` is above 2; AdamW and its like do not.

    Args:
        model (`torch.nn.Module`): the model, prepared or not; it must hold the base's weights, or a copy's.
        fingerprint ([`Fingerprint`] or [`DeepMarks`]): what to train into it.
        strength (`float`, *optional*, defaults to 0.1): the factor of R; the same in every loop.
        embed (`bool`, *optional*, defaults to `True`): put the mark in at once, so that training only has to hold it.

    Raises:
        [`FingerprintError`]: in one sentence, why this model can't be trained with this fingerprint.
    """

    def __init__(self, model: torch.nn.Module, fingerprint: Markable, strength: float = STRENGTH, embed: bool = True):
        self.strength = check_strength(strength)
        self.regularizer = fingerprint.bind(model)
        self._fingerprint = fingerprint  # it keeps other trainings for the same recipient away
        for name, parameter in self.regularizer.parameters.items():
            if hasattr(parameter, "ds_id"):
                raise FingerprintError(
                    f"{name} is partitioned by ZeRO-3, where a loss can't reach it: use FingerprintTrainer, or ZeRO-2."
                )
        self._last: Measurement | None = None
        self.regularizer.check_related()
        if embed:
            self.regularizer.embed()

    def __repr__(self) -> str:
        return f"DeepMarksLoss(strength={self.strength}, {self.regularizer!r})"

    def __call__(self) -> torch.Tensor:
        """`strength * R`, a scalar that can be added to a loss and differentiated; in full precision, autocast or
        not."""
        parameters = list(self.regularizer.parameters.values())
        with torch.autocast(parameters[0].device.type, enabled=False):
            self._last = self.regularizer.measure()
            return _Term.apply(self.regularizer, self._last, self.strength, *parameters)

    @property
    def is_active(self) -> bool:
        """Whether the loss at hand is one to train with: gradients are on, and the model is in training mode."""
        return torch.is_grad_enabled() and self.regularizer.training

    @property
    def last_measurement(self) -> Measurement | None:
        """What the last call found, as tensors; `None` before the first."""
        return self._last

    @property
    def metrics(self) -> dict[str, float]:
        """`fingerprint_loss`, R as of the last call, and `fingerprint_agreement`, the share of right bits."""
        return measurement_metrics(self._last)


def measurement_metrics(measurement: Measurement | None) -> dict[str, float]:
    """A measurement as numbers for a log; empty before the first."""
    if measurement is None:
        return {}
    return {
        "fingerprint_loss": float(measurement.loss),
        "fingerprint_agreement": float(measurement.agreement),
    }


class _Term(torch.autograd.Function):
    """R with its gradient in closed form: no graph over the carriers is kept."""

    @staticmethod
    def forward(
        ctx: Any, regularizer: Regularizer, last_measurement: Measurement, strength: float, *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.regularizer, ctx.direction = regularizer, last_measurement.direction * strength
        return last_measurement.loss * strength

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        with torch.autocast(ctx.direction.device.type, enabled=False):
            direction = ctx.direction * gradients[0]
            return (
                None,
                None,
                None,
                *(ctx.regularizer.gradient(name, direction) for name in ctx.regularizer.parameters),
            )
