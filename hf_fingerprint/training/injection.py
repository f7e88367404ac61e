"""R's gradient added to the task's as it is made, exactly once in an optimiser step.

A parameter's gradient of R is added right after the step's first backward pass has written the parameter's own: after
that, gradient accumulation, averaging over processes, unscaling and clipping see the sum, as if R had been in the
loss. Beside V numbers this takes one block; a gradient put in place before the forward pass would double its memory.
Parameters that this backward pass didn't reach (a layer was skipped) get their part when it ends.

FSDP2's sharded parameters get no gradient of their own until it is reduced, so theirs is put in place beforehand: a
shard of it, to which FSDP2 adds. DeepSpeed takes gradients away as soon as they are written, so there the sum is made
on their way in.
"""

from collections.abc import Callable
from functools import partial

import torch

from hf_fingerprint.training.regularizer import Regularizer


class GradientInjection:
    """Hooks on the carriers that add one direction's gradient, once each time it is armed.

    Args:
        regularizer ([`Regularizer`]): the term.
        before_accumulation (`bool`): whether to add before the gradient is accumulated (DeepSpeed) and not after.
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
                self._handles.append(
                    parameter.register_post_accumulate_grad_hook(partial(self._after_accumulation, name))
                )

    def remove(self) -> None:
        """Takes the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._pending = [], set()

    def arm(self, direction: torch.Tensor) -> None:
        """From now on the first gradient of each carrier gets its part of this direction added."""
        self._direction, self._finish_queued = direction, False
        for name, parameter in self._regularizer.parameters.items():
            if hasattr(parameter, "device_mesh"):
                part = self._regularizer.gradient(name, direction)
                parameter.grad = part if parameter.grad is None else parameter.grad + part
            else:
                self._pending.add(name)

    @property
    def has_pending(self) -> bool:
        """Whether a carrier is still waiting for its gradient, and could be given it."""
        return bool(self._pending) and not self._before_accumulation

    def finish(self, scale: float = 1.0) -> None:
        """Adds what no backward pass came for, times `scale`."""
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
