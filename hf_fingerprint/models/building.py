"""A model that runs, from a folder, with timm or transformers: never with code that came with it, never with anything
fetched, and never with other weights than those that were read.

Everything in this package that runs a model gets it here.
"""

import warnings
from contextlib import redirect_stderr
from io import StringIO

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import BuildError, FingerprintError, FingerprintWarning
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.configuration import CONFIG, read_json


def build_model(checkpoint: Checkpoint) -> BuiltModel:
    """Builds the model of a folder.

    Args:
        checkpoint ([`Checkpoint`]): its open weights.

    Returns:
        [`BuiltModel`]: its tensors are the checkpoint's, in single precision.

    Raises:
        [`BuildError`]: if that needs a library, a configuration or code that isn't here; what a library raised is its
            cause.
    """
    source = checkpoint.source
    file = source.folder / CONFIG
    if not source.owns_folder or not file.is_file():
        raise BuildError(f"{source.name} has no {CONFIG}, so it can't be run: give the model's whole folder.")
    where, config = str(file), read_json(file)
    raised: Exception | None = None
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FingerprintWarning)
        try:
            built = _build(checkpoint, config, where)
        except FingerprintError:
            raise
        except Exception as error:
            raised = error
    if raised is not None:
        raise BuildError(_error_message(source.name, raised)) from raised
    for warning in caught:
        warnings.warn(warning.message, stacklevel=2)
    return built


def _build(checkpoint: Checkpoint, config: dict[str, object], where: str) -> BuiltModel:
    import torch

    from hf_fingerprint.models.timm_models import build_timm, is_timm
    from hf_fingerprint.models.transformers_models import build_transformers

    built = (build_timm if is_timm(config) else build_transformers)(checkpoint, config, where)
    with torch.inference_mode():
        built.module(torch.zeros(1, *built.size))  # what can't take its own input is told now
    return built


def _error_message(name: str, error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "a library").partition(".")[0]
        return f"{name} can't be run without {missing}: pip install 'hf-fingerprint[models]'."
    if isinstance(error, ImportError):
        return f"{name} can't be run, since a library fails to load ({kind}): install timm and transformers again."
    return (
        f"{name} can't be run by timm or transformers ({kind}; HF_FINGERPRINT_TRACEBACK=1 shows where): see that its "
        f"config.json belongs to its weights."
    )
