"""The DeepMarks term in timm's loop, in whichever of its three places suits: criterion, task or model.

```python
model = FingerprintedModel(timm.create_model("hf-hub:org/model", pretrained=True), fingerprint, strength=0.1)
criterion = model.criterion(LabelSmoothingCrossEntropy(0.1))
...  # timm's loop, its EMA, its checkpoints
save_for_hf(model.export(), "trained", safe_serialization=True)
fingerprint.record("trained")
```

The term is a part of the loss, so dividing the loss by accumulation steps, scaling it for half precision, clipping
and averaging over processes treat it as they treat the rest: one strength means the same in every loop.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from timm.task import TrainingTask

from hf_fingerprint.training.loss import STRENGTH, DeepMarksLoss, Markable, measurement_metrics


class FingerprintCriterion(torch.nn.Module):
    """A criterion with the fingerprint's term added while the model trains; validation losses stay what they were.

    ```python
    train_loss_fn = FingerprintCriterion(LabelSmoothingCrossEntropy(0.1), DeepMarksLoss(model, fingerprint))
    loss = train_loss_fn(model(images), labels) / accumulation_steps
    ```

    Args:
        criterion (callable): timm's, torch's or your own.
        deepmarks ([`DeepMarksLoss`]): the term. The model it belongs to is not a part of the criterion.
    """

    def __init__(self, criterion: Callable[..., torch.Tensor], deepmarks: DeepMarksLoss):
        super().__init__()
        self.criterion, self.deepmarks = criterion, deepmarks

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The criterion's loss, plus `strength * R` where gradients are wanted and the model is in training mode."""
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
    """One of timm's training tasks with the fingerprint's term in its loss.

    ```python
    task = FingerprintTask(ClassificationTask(model, criterion), DeepMarksLoss(model, fingerprint))
    result = task(images, labels)
    (result["loss"] / accumulation_steps).backward()
    ```

    The result tells two figures more: `fingerprint_loss`, R without its factor, and `fingerprint_agreement`, the share
    of right bits. Compiling, distributing, EMA, checkpoints and evaluation are the task's own, so a checkpoint is the
    one that the task alone would have written.

    Args:
        task (`timm.task.TrainingTask`): for example a `ClassificationTask`.
        deepmarks ([`DeepMarksLoss`]): the term for the model that the task trains.
    """

    def __init__(self, task: TrainingTask, deepmarks: DeepMarksLoss):
        super().__init__(device=task.device, dtype=task.dtype, verbose=False)
        self.task, self.deepmarks = task, deepmarks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """The task's result, with the term where gradients are wanted and the model is in training mode."""
        result = dict(self.task(input, target))
        if self.deepmarks.is_active:
            result["loss"] = result["loss"] + self.deepmarks()
            last_measurement = self.deepmarks.last_measurement
            assert last_measurement is not None
            result["fingerprint_loss"], result["fingerprint_agreement"] = (
                last_measurement.loss,
                last_measurement.agreement,
            )
        return result

    def prepare_distributed(self, *arguments: Any, **named: Any) -> "FingerprintTask":
        """Wraps what the task trains in DDP; the term is added on every process."""
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
    """A timm model that carries its fingerprint through training: same output, same parameters, same state dict.

    ```python
    model = FingerprintedModel(timm.create_model("hf-hub:org/model", pretrained=True), fingerprint)
    ema = ModelEmaV3(model, decay=0.999)
    loss = cross_entropy(model(images), labels) + model.fingerprint_loss()
    (loss / accumulation_steps).backward()
    ema.update(model)
    ema.module.metrics["fingerprint_agreement"]
    ```

    What it doesn't have itself (`num_classes`, `pretrained_cfg`, `forward_features`, `get_classifier`) is the timm
    model's. It may be moved, compiled, deep-copied (EMA) and wrapped in DDP; a copy has a reading of its own.

    Args:
        model (`torch.nn.Module`): from `timm.create_model`, with the base's weights, or a copy's; a new head is fine.
        fingerprint ([`Fingerprint`] or [`DeepMarks`]): what to train into it.
        strength (`float`, *optional*, defaults to 0.1): the factor of R; the same in every loop.
        embed (`bool`, *optional*, defaults to `True`): put the mark in at once, so that training only has to hold it.

    Raises:
        [`FingerprintError`]: in one sentence, why this model can't be trained with this fingerprint.
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
        """The term for these weights; a copy of the model finds its own carriers when it is first asked."""
        if self._deepmarks is None:
            self._deepmarks = DeepMarksLoss(self.model, self._fingerprint, self._strength, embed=False)
        return self._deepmarks

    def fingerprint_loss(self) -> torch.Tensor:
        """`strength * R`, to be added to the loss of each micro-batch before it is divided or scaled."""
        return self.deepmarks()

    def criterion(self, inner: Callable[..., torch.Tensor]) -> FingerprintCriterion:
        """A criterion with this model's term, for a loop that has no place for another line."""
        return FingerprintCriterion(inner, self.deepmarks)

    @property
    def metrics(self) -> dict[str, float]:
        """`fingerprint_loss`, R without its factor, and `fingerprint_agreement`, the share of right bits, read from
        the weights as they are now."""
        return measurement_metrics(self.deepmarks.regularizer.measure())

    def export(self) -> torch.nn.Module:
        """The timm model itself, an ordinary one that holds the mark in its weights and nothing else of ours."""
        return self.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # being made or copied
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
        """The timm model's, with its keys."""
        return self.model.state_dict(*arguments, **named)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The timm model's, with its keys."""
        return self.model.load_state_dict(state_dict, strict, assign)

    def named_parameters(self, *arguments: Any, **named: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Those of the timm model with its names, which timm's optimisers go by."""
        prefix = arguments[0] if arguments else named.get("prefix", "")
        for name, parameter in super().named_parameters(*arguments, **named):
            yield _strip_model_prefix(name, prefix), parameter

    def named_buffers(self, *arguments: Any, **named: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Those of the timm model with its names."""
        prefix = arguments[0] if arguments else named.get("prefix", "")
        for name, buffer in super().named_buffers(*arguments, **named):
            yield _strip_model_prefix(name, prefix), buffer


def _strip_model_prefix(name: str, prefix: str) -> str:
    inside = f"{prefix}.model." if prefix else "model."
    return f"{prefix}.{name.removeprefix(inside)}" if prefix else name.removeprefix(inside)


def _add_model_prefix(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Lets a module around this one (DDP) load the plain keys too."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)
