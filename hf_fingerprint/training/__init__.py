"""The fingerprint as a loss term in training: for the transformers Trainer, timm's loop, and custom loops."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_fingerprint.training.deepmarks_preset import DeepMarks
    from hf_fingerprint.training.fingerprint import Fingerprint, RecordedCopy
    from hf_fingerprint.training.loss import DeepMarksLoss
    from hf_fingerprint.training.timm import FingerprintCriterion, FingerprintedModel, FingerprintTask
    from hf_fingerprint.training.trainer import FingerprintCallback, FingerprintTrainer, FingerprintTrainerMixin

_HOMES = {
    "DeepMarks": "deepmarks_preset",
    "DeepMarksLoss": "loss",
    "Fingerprint": "fingerprint",
    "FingerprintCallback": "trainer",
    "FingerprintCriterion": "timm",
    "FingerprintTask": "timm",
    "FingerprintTrainer": "trainer",
    "FingerprintTrainerMixin": "trainer",
    "FingerprintedModel": "timm",
    "RecordedCopy": "fingerprint",
}
__all__ = [
    "DeepMarks",
    "DeepMarksLoss",
    "Fingerprint",
    "FingerprintCallback",
    "FingerprintCriterion",
    "FingerprintTask",
    "FingerprintTrainer",
    "FingerprintTrainerMixin",
    "FingerprintedModel",
    "RecordedCopy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
