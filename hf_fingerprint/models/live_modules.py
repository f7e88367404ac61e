"""Modules that already run: measure them on copies of themselves, and save them as their libraries do."""

import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints.memory import MemoryCheckpoint, copy_module
from hf_fingerprint.errors import BuildError, CheckpointError, FingerprintError, FingerprintWarning
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.processors import DEFAULT_SIDE, make_preprocess


if TYPE_CHECKING:
    import torch

_SIZES = ("image_size", "img_size", "input_size")


def build_live(checkpoint: MemoryCheckpoint) -> BuiltModel:
    """A copy of a module on the CPU, in single precision and evaluation mode, with the input that its library says.

    A module of neither timm nor transformers gets inputs of its first convolution's channels and the size in its
    attribute `image_size`, `img_size` or `input_size`, else of 224 pixels with a warning.

    Raises:
        [`BuildError`]: if it is a state dict, or can't be run.
    """
    import torch

    where = checkpoint.source.name
    if checkpoint.module is None:
        raise BuildError(f"The {where} can't be run: give the module.")
    built = _describe(copy_module(checkpoint.module).cpu().float().eval(), where)
    try:
        with torch.inference_mode():
            built.module(torch.zeros(1, *built.size))
    except Exception as error:  # the model's code may raise anything
        image = f"an image of {' x '.join(map(str, built.size))} ({type(error).__name__})"
        raise BuildError(f"{where} can't be run on {image}: set its image_size to that of its inputs.") from error
    return built


def _describe(module: Any, where: str) -> BuiltModel:
    """A module with the inputs of its library, or those that it seems to take."""
    timm_part = module if _is_timm(module) else getattr(module, "timm_model", None)
    if timm_part is not None and _is_timm(timm_part):
        from hf_fingerprint.models.timm_models import describe_timm

        return describe_timm(module, timm_part, where)
    if _is_transformers(module):
        from hf_fingerprint.models.transformers_models import describe_transformers

        return describe_transformers(module, where)
    size = _channels(module), *_side(module, where)
    half = (0.5,) * size[0]
    return BuiltModel(module, size, half, half, make_preprocess(None, size, half, half))


def has_own_format(module: "torch.nn.Module | None") -> bool:
    """Whether [`save_module`] saves a module as its library does."""
    return module is not None and (callable(getattr(module, "save_pretrained", None)) or _is_timm(module))


def save_module(module: "torch.nn.Module", folder: Path) -> None:
    """Saves a timm or transformers model, or a `PyTorchModelHubMixin`, as its library does, in safetensors.

    Raises:
        [`CheckpointError`]: if the library fails.
    """
    raised: Exception | None = None
    try:
        with redirect_stderr(StringIO()):  # their progress bars
            if callable(save := getattr(module, "save_pretrained", None)):
                save(folder)
            else:
                from timm.models import save_for_hf

                save_for_hf(module, str(folder), safe_serialization=True)
    except (FingerprintError, OSError):
        raise
    except Exception as error:  # libraries raise anything
        raised = error
    if raised is not None:
        name, kind = type(module).__name__, type(raised).__name__
        raise CheckpointError(f"{name} can't be saved by its library ({kind}): give its state dict.") from raised


def _is_timm(module: Any) -> bool:
    config = getattr(module, "pretrained_cfg", None)
    return isinstance(config, dict) and "architecture" in config and type(module).__module__.startswith("timm.")


def _is_transformers(module: Any) -> bool:
    return callable(getattr(module, "save_pretrained", None)) and hasattr(
        getattr(module, "config", None), "model_type"
    )


def _channels(module: "torch.nn.Module") -> int:
    import torch

    kind = torch.nn.modules.conv._ConvNd
    return next((part.in_channels for part in module.modules() if isinstance(part, kind)), 3)


def _side(module: "torch.nn.Module", where: str) -> tuple[int, int]:
    for name in _SIZES:
        size = getattr(module, name, None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) >= 2 and all(isinstance(side, int) for side in size):
            return size[-2], size[-1]
    message = f"{where} has no input size: the model is run at {DEFAULT_SIDE} pixels."
    warnings.warn(message, FingerprintWarning, stacklevel=2)
    return DEFAULT_SIDE, DEFAULT_SIDE
