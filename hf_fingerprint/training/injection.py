"""Hooks that add R's gradient to the task's gradient, exactly once per optimizer step.

R's gradient for a parameter is added right after the step's first backward pass has written the parameter's own
gradient. Accumulation, averaging over processes, unscaling and clipping then see the sum, as if R were part of the
loss. This needs memory for V numbers and one block. Writing the gradient before the forward pass would double it.
Parameters that the backward pass does not reach (a skipped layer) get their part when it ends.

There are two exceptions. FSDP2's sharded parameters have no gradient until it is reduced, so FSDP2 adds to R's shard,
written in advance. DeepSpeed removes gradients once written, so R's part is added to the incoming gradient.
"""

from collections.abc import Callable
from functools import partial

import torch

from hf_fingerprint.training.regularizer import Regularizer


class GradientInjection:
    """Hooks on the carriers that add the gradient of one direction, once each time it is armed.

    Args:
        regularizer ([`Regularizer`]): the loss term.
        before_accumulation (`bool`): add to the incoming gradient (DeepSpeed), not to the accumulated one.
    """

    def __init__(self, regularizer: Regularizer, before_accumulation: bool):
        self._regularizer, self._before_accumulation = regularizer, before_accumulation
        self._direction: torch.Tensor | None = None
        self._pending: set[str] = set()
        self._finish_queued = False
        self._handles = []
        for name, parameter in regularizer.parameters.items():
            if hasattr(parameter, "device_mesh"):
                continue
            if before_accumulation:
                hook: Callable[..., torch.Tensor | None] = partial(self._add_to_incoming, name)
                self._handles.append(parameter.register_hook(hook))
            else:
                after = partial(self._after_accumulation, name)
                self._handles.append(parameter.register_post_accumulate_grad_hook(after))

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._pending = [], set()

    def arm(self, direction: torch.Tensor) -> None:
        """Adds this direction's part to the next gradient of each carrier."""
        self._direction, self._finish_queued = direction, False
        for name, parameter in self._regularizer.parameters.items():
            if not parameter.requires_grad:  # frozen since the start: it keeps the mark that it has
                continue
            if hasattr(parameter, "device_mesh"):
                part = self._regularizer.gradient(name, direction)
                parameter.grad = part if parameter.grad is None else parameter.grad + part
            else:
                self._pending.add(name)

    @property
    def has_pending(self) -> bool:
        """Whether a carrier has not received its part yet, and [`GradientInjection.finish`] can add it."""
        return bool(self._pending) and not self._before_accumulation

    def finish(self, scale: float = 1.0) -> None:
        """Adds the remaining parts, times `scale`, to carriers that no backward pass reached."""
        for name in sorted(self._pending):
            parameter = self._regularizer.parameters[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._add(name, parameter, scale)
        self._pending = set()

    def _after_accumulation(self, name: str, parameter: torch.Tensor) -> None:
        if not self._pending:
            return
        if not self._finish_queued:
            self._finish_queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)
        self._add(name, parameter)

    def _add(self, name: str, parameter: torch.Tensor, scale: float = 1.0) -> None:
        if name not in self._pending or parameter.grad is None:
            return
        self._pending.discard(name)
        self._add_to(name, parameter.grad, scale)

    def _add_to_incoming(self, name: str, gradient: torch.Tensor) -> torch.Tensor | None:
        if name not in self._pending:
            return None
        self._pending.discard(name)
        total = gradient.clone(memory_format=torch.contiguous_format)
        self._add_to(name, total, 1.0)
        return total

    def _add_to(self, name: str, gradient: torch.Tensor, scale: float) -> None:
        assert self._direction is not None
        direction = self._direction if scale == 1.0 else self._direction * scale
        with torch.no_grad():
            if gradient.is_contiguous():
                self._regularizer.add_gradient(name, direction, 0, gradient.view(len(gradient), -1))
            else:  # channels_last
                part = torch.zeros(gradient.shape, device=gradient.device)
                self._regularizer.add_gradient(name, direction, 0, part.view(len(part), -1))
                gradient += part
