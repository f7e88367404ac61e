"""Trigger labels for a trained copy, embedded in the saved model, in the same way for every training loop.

Training moves the features of trigger images, so an issued copy's head update would no longer fit. The features are
measured anew on the trigger set, and the head is changed to match; see [`TriggerSet.head_update`].
"""

import warnings
from pathlib import Path

from hf_fingerprint.blackbox.trigger_set.build import adapt_trigger_set
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.carriers import DenseDelta, TensorUpdate
from hf_fingerprint.checkpoints import Checkpoint, open_checkpoint, rewrite_tensors
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.models import build_model, map_parameter_names
from hf_fingerprint.vault import Base, Vault


def embed_trigger_labels(
    folder: Path, base: Base, vault: Vault, copy_key: bytes, images: str | Path | None = None
) -> bool:
    """Changes the head of a saved model so that it predicts a recipient's labels on the base's trigger set.

    The file that holds the head is replaced atomically.

    Args:
        folder (`Path`): the model's folder, with its config.
        base ([`Base`]): the base that it was trained from.
        vault ([`Vault`]): the vault. It may be locked.
        copy_key (`bytes`): the recipient's copy key.
        images (`str` or `Path`, *optional*): a folder of ordinary images, see [`make_trigger_set`].

    Returns:
        `bool`: whether the head changed. `False` without a trigger set or, with a warning, for a model that can't run.
    """
    content = vault.trigger_set(base)
    if content is None:
        return False
    try:
        with open_checkpoint(folder) as trained:
            triggers = _measured_triggers(trained, TriggerSet.from_bytes(content), base, images)
            info = trained.tensors[triggers.head]
            path = trained.source.weights[info.file]
    except FingerprintError as error:
        warnings.warn(f"{folder} gets no trigger labels: {error}", FingerprintWarning, stacklevel=2)
        return False
    delta = DenseDelta(triggers.head_update(copy_key))
    rewrite_tensors(path, [(info, TensorUpdate(copy_key, info.name, info.dtype, info.columns, [delta]))])
    return True


def _measured_triggers(trained: Checkpoint, triggers: TriggerSet, base: Base, images: str | Path | None) -> TriggerSet:
    if trained.source.pickled:
        raise FingerprintError(f"{trained.source.name} is pickled: save it as safetensors.")
    built = build_model(trained)
    return adapt_trigger_set(built, map_parameter_names(built.module, trained), triggers, base.secret, images)
