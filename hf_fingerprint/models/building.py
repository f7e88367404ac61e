"""Build a runnable model from its folder with timm or transformers.

Never executes the folder's code, never downloads anything, and uses no weights but the checkpoint's. The only place in
the package that builds models.
"""

import warnings
from contextlib import redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.memory import MemoryCheckpoint
from hf_fingerprint.errors import BuildError, FingerprintError, FingerprintWarning
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.configuration import CONFIG, read_json
from hf_fingerprint.models.devices import to_device
from hf_fingerprint.models.live_modules import build_live


if TYPE_CHECKING:
    import torch


def build_model(checkpoint: Checkpoint, device: "str | torch.device | None" = None) -> BuiltModel:
    """A runnable model with the checkpoint's weights in single precision.

    Args:
        checkpoint ([`Checkpoint`]): the model's open weights; a module in memory is copied.
        device (`str` or `torch.device`, *optional*): the device that the model is moved to. Defaults to the CPU.

    Raises:
        [`BuildError`]: if a library, a configuration or code is missing. Its cause is the library's exception.
    """
    checkpoint = checkpoint.stored
    if isinstance(checkpoint, MemoryCheckpoint):
        live = build_live(checkpoint)
        to_device(live.module, device)
        return live
    source = checkpoint.source
    file = source.folder / CONFIG
    if not source.owns_folder or not file.is_file():
        raise BuildError(f"{source.name} has no {CONFIG}, so it can't be run: give the model's whole folder.")
    config, raised = read_json(file), None
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FingerprintWarning)
        try:
            built = _build(checkpoint, config, str(file))
        except FingerprintError:
            raise
        except Exception as error:
            raised = error
    if raised is not None:
        raise BuildError(_error_message(source.name, raised)) from raised
    for warning in caught:
        warnings.warn(warning.message, stacklevel=2)
    to_device(built.module, device)
    return built


def _build(checkpoint: Checkpoint, config: dict[str, object], where: str) -> BuiltModel:
    import torch

    from hf_fingerprint.models.timm_models import build_timm, is_timm
    from hf_fingerprint.models.transformers_models import build_transformers

    built = (build_timm if is_timm(config) else build_transformers)(checkpoint, config, where)
    with torch.inference_mode():
        built.module(torch.zeros(1, *built.size))  # fails now if the model can't take its own input
    return built


def _error_message(name: str, error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "a library").partition(".")[0]
        return f"{name} can't be run without {missing}: pip install 'hf-fingerprint[models]'."
    if isinstance(error, ImportError):
        return f"{name} can't be run, since a library fails to load ({kind}): reinstall timm and transformers."
    problem = f"can't be run by timm or transformers ({kind}; HF_FINGERPRINT_TRACEBACK=1 shows where)"
    return f"{name} {problem}: check that its config.json belongs to its weights."
