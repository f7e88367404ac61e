"""The fingerprint in the transformers Trainer: add a callback.

```python
fingerprint = Fingerprint("org/model", "alice", vault="vault")
trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[FingerprintCallback(fingerprint)])
trainer.train()
trainer.save_model("trained")
fingerprint.record("trained")
```

The callback adds R's gradient to the first gradient of each step, before anything else changes it. It is therefore
exact under gradient accumulation, clipping, gradient scaling, DDP, FSDP2 and ZeRO-1 and 2.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.training.fingerprint import Fingerprint
from hf_fingerprint.training.injection import GradientInjection
from hf_fingerprint.training.loss import STRENGTH, Markable, check_strength, measurement_metrics
from hf_fingerprint.training.regularizer import Measurement, Regularizer


MIN_AGREEMENT = 0.75


class FingerprintCallback(TrainerCallback):
    """Adds `strength * R` to a Trainer's loss, and logs R and the share of correct bits.

    Carriers that are frozen, or that the optimizer lacks, are left out; see [`Fingerprint.bind`].

    Args:
        fingerprint ([`Fingerprint`] or [`DeepMarksFingerprint`]): the mark to train into the model.
        strength (`float`, *optional*, defaults to 0.1): the factor of R, which means the same in every kind of loop.
        embed (`bool`, *optional*, defaults to `True`): write the mark into the weights before the first step, so that
            training preserves it and every checkpoint traces. Not possible under DeepSpeed.
    """

    zero3 = False

    def __init__(self, fingerprint: Markable, strength: float = STRENGTH, embed: bool = True):
        self.fingerprint, self.strength, self.embed = fingerprint, check_strength(strength), embed
        self.regularizer: Regularizer | None = None
        self._injection: GradientInjection | None = None
        self._measured: Measurement | None = None
        self._step_armed = False
        self._deepspeed_config: Any = None

    def __repr__(self) -> str:
        return f"FingerprintCallback(strength={self.strength}, embed={self.embed})"

    @property
    def metrics(self) -> dict[str, float]:
        """`fingerprint_loss` (R) and `fingerprint_agreement` (the share of correct bits) of the last step."""
        return measurement_metrics(self._measured)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        model: torch.nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Finds the carriers, checks that they can be trained, and embeds the mark."""
        assert model is not None
        _refuse_deepspeed(self, args, model, deepspeed := _is_deepspeed(args, optimizer))
        if isinstance(self.fingerprint, Fingerprint):
            self.fingerprint.check_output_folder(Path(args.output_dir))
        with _without_zero3_init(self):
            self.regularizer = self.fingerprint.bind(model, optimizer)
        self.regularizer.check_related()
        _warn_if_overshooting(self.regularizer, self.strength, optimizer)
        # a resumed model has the mark, unless the Trainer didn't find the checkpoint's tensors (5.23: renamed ones)
        if self.embed and (state.global_step == 0 or self.regularizer.measure().agreement < MIN_AGREEMENT):
            self.regularizer.embed()
        if self._injection is not None:
            self._injection.remove()
        self._injection = GradientInjection(self.regularizer, before_accumulation=deepspeed)
        self._step_armed = False
        _move_before_reporters(self)

    def on_step_begin(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Measures R once for the step and arms its gradient."""
        if self._step_armed:  # the last window had no optimizer step, so its gradients are still there
            return
        assert self.regularizer is not None and self._injection is not None
        self._measured = self.regularizer.measure()
        strength: Any = self.strength
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None:
            strength = scaler.scale(torch.tensor(self.strength, device=self._measured.direction.device))
        self._injection.arm(self._measured.direction * strength)
        self._step_armed = True

    def on_pre_optimizer_step(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Adds R's gradient to carriers that no backward pass reached. Gradients are unscaled here."""
        if self._injection is not None and self._injection.has_pending:
            scaler = getattr(optimizer, "scaler", None)
            self._injection.finish(1.0 if scaler is None else 1 / scaler.get_scale())

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Allows the next step to be armed."""
        self._step_armed = False

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Adds both metrics to logs of the training loss, in the history and for all reporters."""
        if logs is not None and "loss" in logs:
            logs.update(self.metrics)
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1].update(self.metrics)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Removes the hooks and measures R a last time."""
        if self._injection is not None and self.regularizer is not None:
            self._injection.remove()
            self._measured = self.regularizer.measure()


class FingerprintTrainerMixin:
    """A mixin for Trainer subclasses that adds the callback and also works under ZeRO-3.

    ```python
    class MyTrainer(FingerprintTrainerMixin, Trainer): ...

    MyTrainer(model=model, args=arguments, train_dataset=data, fingerprint=fingerprint, strength=0.1)
    ```

    Args:
        fingerprint ([`Fingerprint`] or [`DeepMarksFingerprint`]): the mark to train into the model.
        strength (`float`, *optional*, defaults to 0.1): the factor of R.
        embed (`bool`, *optional*, defaults to `True`): see [`FingerprintCallback`].
        arguments, named: passed to the Trainer.
    """

    def __init__(
        self,
        *arguments: Any,
        fingerprint: Markable,
        strength: float = STRENGTH,
        embed: bool = True,
        callbacks: list[Any] | None = None,
        **named: Any,
    ):
        self.fingerprint_callback = FingerprintCallback(fingerprint, strength, embed)
        self.fingerprint_callback.zero3 = True
        named["callbacks"] = [*(callbacks or []), self.fingerprint_callback]
        super().__init__(*arguments, **named)


class FingerprintTrainer(FingerprintTrainerMixin, Trainer):
    """A [`Trainer`] with a fingerprint; see [`FingerprintTrainerMixin`]."""


def _is_deepspeed(args: TrainingArguments, optimizer: Any) -> bool:
    by_name = any("deepspeed" in kind.__module__ or "DeepSpeed" in kind.__name__ for kind in type(optimizer).__mro__)
    return by_name or getattr(args, "deepspeed", None) is not None


def _refuse_deepspeed(callback: FingerprintCallback, args: Any, model: torch.nn.Module, deepspeed: bool) -> None:
    """Raises an error if the mark can't be trained under this DeepSpeed setup, before anything is recorded."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()) and not callback.zero3:
        raise FingerprintError(
            "The model is partitioned by ZeRO-3, where a callback alone can't train the mark: use "
            "FingerprintTrainer or FingerprintTrainerMixin."
        )
    if deepspeed and (args.fp16 or any(parameter.dtype == torch.float16 for parameter in model.parameters())):
        raise FingerprintError("fp16 under DeepSpeed scales gradients out of reach: train in bf16.")
    if deepspeed and callback.embed:
        raise FingerprintError(
            "DeepSpeed keeps its own copy of the weights, so the mark can't be embedded before training: choose "
            "embed=False, or begin from an issued copy."
        )


def _warn_if_overshooting(regularizer: Regularizer, strength: float, optimizer: Any) -> None:
    """Warns if plain gradient descent overshoots the mark: above a learning rate set by R's curvature."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.SGD):
        return
    max_curvature = regularizer.max_curvature()
    for group in inner.param_groups:
        rate, limit = group.get("initial_lr", group["lr"]), 2 * (1 + group["momentum"])
        if float(rate) * strength * max_curvature > limit:
            warnings.warn(
                f"SGD at a learning rate of {float(rate):.3g} overshoots the mark at strength {strength:.3g}: choose "
                f"a strength of at most {limit / (2 * float(rate) * max_curvature):.1g}.",
                stacklevel=2,
            )


@contextmanager
def _without_zero3_init(callback: FingerprintCallback) -> Iterator[None]:
    """Disables ZeRO-3, which partitions every new model over all processes. Only the first builds the base's model."""
    from transformers.integrations import HfDeepSpeedConfig, deepspeed_config, unset_hf_deepspeed_config

    config = deepspeed_config()
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            callback._deepspeed_config = HfDeepSpeedConfig(config)  # registers itself, as long as it is referenced


def _move_before_reporters(callback: FingerprintCallback) -> None:
    """Moves the callback before the Trainer's reporters, so that its metrics are in a log before they get it."""
    handler = _calling_handler()
    if handler is not None:
        handler.callbacks.remove(callback)
        handler.callbacks.insert(0, callback)


def _calling_handler() -> CallbackHandler | None:
    """The handler that is running a callback, from the calling frames: the Trainer passes no reference to it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler):
            return handler
        frame = frame.f_back
    return None
