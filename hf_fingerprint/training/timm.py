"""The fingerprint in timm's training loop: as a criterion, a task or a model.

```python
model = FingerprintedModel(timm.create_model("hf-hub:org/model", pretrained=True), fingerprint, strength=0.1)
criterion = model.criterion(LabelSmoothingCrossEntropy(0.1))
...  # timm's loop, its EMA, its checkpoints
save_for_hf(model.export(), "trained", safe_serialization=True)
fingerprint.record("trained")
```

The term is a part of the loss, so gradient accumulation, loss scaling, clipping and averaging over processes apply to
it as to the rest. A strength means the same in every kind of loop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
from timm.task import TrainingTask

from hf_fingerprint.training.loss import STRENGTH, DeepMarksLoss, Markable, measurement_metrics


T = TypeVar("T", bound=torch.Tensor)


class FingerprintCriterion(torch.nn.Module):
    """A criterion that adds the fingerprint's term while the model trains. Validation losses do not change.

    ```python
    train_loss_fn = FingerprintCriterion(LabelSmoothingCrossEntropy(0.1), DeepMarksLoss(model, fingerprint))
    loss = train_loss_fn(model(images), labels) / accumulation_steps
    ```

    Args:
        criterion (callable): the task's criterion.
        deepmarks ([`DeepMarksLoss`]): the term. Its model does not become a submodule of the criterion.
    """

    def __init__(self, criterion: Callable[..., torch.Tensor], deepmarks: DeepMarksLoss):
        super().__init__()
        self.criterion, self.deepmarks = criterion, deepmarks

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The criterion's loss, plus `strength * R` if gradients are enabled and the model is in training mode."""
        loss = self.criterion(output, target)
        return loss + self.deepmarks() if self.deepmarks.is_active else loss

    def extra_repr(self) -> str:
        """The term's strength and size."""
        return repr(self.deepmarks)


def _delegate_to_task(name: str) -> Any:
    def method(self: "FingerprintTask", *arguments: Any, **named: Any) -> Any:
        return getattr(self.task, name)(*arguments, **named)

    method.__name__, method.__doc__ = name, f"The task's own `{name}`."
    return method


class FingerprintTask(TrainingTask):
    """A timm training task with the fingerprint's term in its loss.

    ```python
    task = FingerprintTask(ClassificationTask(model, criterion), DeepMarksLoss(model, fingerprint))
    result = task(images, labels)
    (result["loss"] / accumulation_steps).backward()
    ```

    The result has two more entries: `fingerprint_loss` (R without its factor) and `fingerprint_agreement` (the share
    of correct bits). Compilation, distribution, EMA, checkpoints and evaluation are delegated to the task, so
    checkpoints are those of the task alone.

    Args:
        task (`timm.task.TrainingTask`): for example a `ClassificationTask`.
        deepmarks ([`DeepMarksLoss`]): the term for the model that the task trains.
    """

    def __init__(self, task: TrainingTask, deepmarks: DeepMarksLoss):
        super().__init__(device=task.device, dtype=task.dtype, verbose=False)
        self.task, self.deepmarks = task, deepmarks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """The task's result, with the term if gradients are enabled and the model is in training mode."""
        result = dict(self.task(input, target))
        if self.deepmarks.is_active:
            result["loss"] = result["loss"] + self.deepmarks()
            last = self.deepmarks.last_measurement
            assert last is not None
            result["fingerprint_loss"], result["fingerprint_agreement"] = last.loss, last.agreement
        return result

    def prepare_distributed(self, *arguments: Any, **named: Any) -> "FingerprintTask":
        """Wraps the trained module in DDP. The term is added on every process."""
        self.task.prepare_distributed(*arguments, **named)
        return self

    compile = _delegate_to_task("compile")
    get_trainable_module = _delegate_to_task("get_trainable_module")
    setup_ema = _delegate_to_task("setup_ema")
    has_ema = _delegate_to_task("has_ema")
    compile_ema = _delegate_to_task("compile_ema")
    update_ema = _delegate_to_task("update_ema")
    get_clip_parameters = _delegate_to_task("get_clip_parameters")
    get_eval_model = _delegate_to_task("get_eval_model")
    get_task_state = _delegate_to_task("get_task_state")
    load_task_state = _delegate_to_task("load_task_state")
    get_checkpoint_state = _delegate_to_task("get_checkpoint_state")
    load_checkpoint_state = _delegate_to_task("load_checkpoint_state")
    no_sync = _delegate_to_task("no_sync")
    create_evaluator = _delegate_to_task("create_evaluator")


class FingerprintedModel(torch.nn.Module):
    """A timm model with its fingerprint's loss term. Outputs, parameters and state dict are those of the timm model.

    ```python
    model = FingerprintedModel(timm.create_model("hf-hub:org/model", pretrained=True), fingerprint)
    ema = ModelEmaV3(model, decay=0.999)
    loss = cross_entropy(model(images), labels) + model.fingerprint_loss()
    (loss / accumulation_steps).backward()
    ema.update(model)
    ema.module.metrics["fingerprint_agreement"]
    ```

    Other attributes (`num_classes`, `pretrained_cfg`, `forward_features`, `get_classifier`) are the timm model's. You
    can move, compile, deep-copy (EMA) and wrap it in DDP. A copy has its own metrics.

    Args:
        model (`torch.nn.Module`): a timm model with the weights of the base or of a copy. A new head is allowed.
        fingerprint ([`Fingerprint`] or [`DeepMarksFingerprint`]): the mark to train into it.
        strength (`float`, *optional*, defaults to 0.1): the factor of R, which means the same in every kind of loop.
        embed (`bool`, *optional*, defaults to `True`): write the mark into the weights now; training preserves it.

    Raises:
        [`FingerprintError`]: if this model can't be trained with this fingerprint.
    """

    def __init__(self, model: torch.nn.Module, fingerprint: Markable, strength: float = STRENGTH, embed: bool = True):
        super().__init__()
        self.model = model
        self.train(model.training)
        self._fingerprint, self._strength = fingerprint, strength
        self._deepmarks: DeepMarksLoss | None = DeepMarksLoss(model, fingerprint, strength, embed)
        self.register_load_state_dict_pre_hook(_add_model_prefix)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The timm model's output, unchanged."""
        return self.model(*arguments, **named)

    @property
    def deepmarks(self) -> DeepMarksLoss:
        """The term for these weights. A copy of the model creates its own on first use."""
        if self._deepmarks is None:
            self._deepmarks = DeepMarksLoss(self.model, self._fingerprint, self._strength, embed=False)
        return self._deepmarks

    def fingerprint_loss(self) -> torch.Tensor:
        """`strength * R`. Add it to the loss of each micro-batch, before dividing or scaling the loss."""
        return self.deepmarks()

    def criterion(self, inner: Callable[..., torch.Tensor]) -> FingerprintCriterion:
        """A criterion that adds this model's term, for loops that you can't edit."""
        return FingerprintCriterion(inner, self.deepmarks)

    @property
    def metrics(self) -> dict[str, float]:
        """`fingerprint_loss` (R) and `fingerprint_agreement` (the share of correct bits) of the current weights."""
        return measurement_metrics(self.deepmarks.regularizer.measure())

    def export(self) -> torch.nn.Module:
        """The plain timm model, with the mark in its weights."""
        return self.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # during construction or copying
                raise
        return getattr(self.model, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FingerprintedModel":
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        torch.nn.Module.__init__(copied)
        copied.model = deepcopy(self.model, memo)
        copied.train(self.training)
        copied._fingerprint, copied._strength, copied._deepmarks = self._fingerprint, self._strength, None
        copied.register_load_state_dict_pre_hook(_add_model_prefix)
        return copied

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        """The timm model's state dict."""
        return self.model.state_dict(*arguments, **named)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dict of the timm model."""
        return self.model.load_state_dict(state_dict, strict, assign)

    def named_parameters(self, *arguments: Any, **named: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The timm model's parameters by its own names, which timm's optimizers rely on."""
        return _strip_model_prefix(super().named_parameters(*arguments, **named), *arguments, **named)

    def named_buffers(self, *arguments: Any, **named: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The timm model's buffers by its own names."""
        return _strip_model_prefix(super().named_buffers(*arguments, **named), *arguments, **named)


def _strip_model_prefix(
    found: Iterable[tuple[str, T]], prefix: str = "", *_: Any, **__: Any
) -> Iterator[tuple[str, T]]:
    """Tensors by the timm model's names, from the arguments of `named_parameters` or `named_buffers`."""
    start = f"{prefix}." if prefix else ""
    for name, tensor in found:
        yield start + name.removeprefix(f"{start}model."), tensor


def _add_model_prefix(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Lets a wrapper (DDP) load state dicts of the plain timm model."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
