"""`strength * R` as a loss for custom loops: in one process or several, with or without Accelerate.

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
    """A mark to train into a model: a [`Fingerprint`] or a [`DeepMarksFingerprint`]."""

    def bind(self, model: torch.nn.Module, optimizer: Any = None) -> Regularizer:
        """The loss term for a model, over the carriers that train. Those that the optimizer lacks do not train."""


def check_strength(strength: float) -> float:
    """The strength as a `float`. Raises an error if it is not finite and above 0."""
    if not math.isfinite(strength) or strength <= 0:
        raise FingerprintError(f"A strength of {strength} can't be trained with: choose a finite number above 0.")
    return float(strength)


class DeepMarksLoss:
    """The fingerprint's loss term. Call it once per micro-batch and add the result to the task's loss.

    Under gradient accumulation, divide it like the task's loss (Accelerate does). Under DDP and FSDP2, add it on every
    process. Frozen carriers are left out; see [`Fingerprint.bind`]. Plain gradient descent overshoots if learning rate
    times strength times `deepmarks.regularizer.max_curvature()` is above 2. Adaptive optimizers such as AdamW do not.

    Args:
        model (`torch.nn.Module`): the model, prepared or not, with the weights of the base or of a copy.
        fingerprint ([`Fingerprint`] or [`DeepMarksFingerprint`]): the mark to train into it.
        strength (`float`, *optional*, defaults to 0.1): the factor of R, which means the same in every kind of loop.
        embed (`bool`, *optional*, defaults to `True`): write the mark into the weights now; training preserves it.

    Raises:
        [`FingerprintError`]: if this model can't be trained with this fingerprint.
    """

    def __init__(self, model: torch.nn.Module, fingerprint: Markable, strength: float = STRENGTH, embed: bool = True):
        self.strength = check_strength(strength)
        self.regularizer = fingerprint.bind(model)
        self._fingerprint = fingerprint  # keeps the lock against other trainings for this recipient
        for name, parameter in self.regularizer.parameters.items():
            if hasattr(parameter, "ds_id"):
                raise FingerprintError(f"ZeRO-3 hides {name} from the loss: use FingerprintTrainer, or ZeRO-2.")
        self._last: Measurement | None = None
        self.regularizer.check_related()
        if embed:
            self.regularizer.embed()

    def __repr__(self) -> str:
        return f"DeepMarksLoss(strength={self.strength}, {self.regularizer!r})"

    def __call__(self) -> torch.Tensor:
        """`strength * R`, a differentiable scalar. Computed in full precision, even under autocast."""
        parameters = list(self.regularizer.parameters.values())
        with torch.autocast(parameters[0].device.type, enabled=False):
            self._last = self.regularizer.measure()
            return _Term.apply(self.regularizer, self._last, self.strength, *parameters)

    @property
    def is_active(self) -> bool:
        """Whether gradients are enabled and the model is in training mode."""
        return torch.is_grad_enabled() and self.regularizer.training

    @property
    def last_measurement(self) -> Measurement | None:
        """The measurement of the last call, or `None` before the first call."""
        return self._last

    @property
    def metrics(self) -> dict[str, float]:
        """`fingerprint_loss` (R) and `fingerprint_agreement` (the share of correct bits) of the last call."""
        return measurement_metrics(self._last)


def measurement_metrics(measurement: Measurement | None) -> dict[str, float]:
    """A measurement as values for a log; empty for `None`."""
    if measurement is None:
        return {}
    return {"fingerprint_loss": float(measurement.loss), "fingerprint_agreement": float(measurement.agreement)}


class _Term(torch.autograd.Function):
    """R with its gradient in closed form, so that no graph over the carriers is kept."""

    @staticmethod
    def forward(ctx: Any, regularizer: Regularizer, measured: Measurement, strength: float, *_: Any) -> torch.Tensor:
        ctx.regularizer, ctx.direction = regularizer, measured.direction * strength
        return measured.loss * strength

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        with torch.autocast(ctx.direction.device.type, enabled=False):
            direction = ctx.direction * gradients[0]
            found = (ctx.regularizer.gradient(name, direction) for name in ctx.regularizer.parameters)
            return None, None, None, *found
