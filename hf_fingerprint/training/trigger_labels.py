"""A trained model taught to answer for its recipient, once it is saved: the same for every loop.

Training moves the features of a base's questions, so that what binds an issued copy's answers would miss. The
questions are asked once more, of the trained model itself, and its head is changed by what it says; see
[`TriggerSet.head_update`].
"""

import warnings
from pathlib import Path

from hf_fingerprint.blackbox.trigger_set.build import adapt_trigger_set
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.carriers import DenseDelta, TensorUpdate
from hf_fingerprint.checkpoints import Checkpoint, open_checkpoint, replace_tensor
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.models import build_model, map_parameter_names
from hf_fingerprint.vault import Base, Vault


def embed_trigger_labels(
    folder: Path, base: Base, vault: Vault, copy_key: bytes, images: str | Path | None = None
) -> bool:
    """Changes the head of a saved model so that it answers the base's questions for a recipient.

    The one file that holds the head is written beside and renamed.

    Args:
        folder (`Path`): the model's, with its config.
        base ([`Base`]): what it was trained from.
        vault ([`Vault`]): it need not be unlocked.
        copy_key (`bytes`): the recipient's.
        images (`str` or `Path`, *optional*): a folder of ordinary images, see [`make_trigger_set`].

    Returns:
        `bool`: whether it was done. There are no questions, or, with a warning, the model can't be asked them.
    """
    content = vault.trigger_set(base)
    if content is None:
        return False
    try:
        with open_checkpoint(folder) as trained:
            triggers = _measured_triggers(trained, TriggerSet.from_bytes(content), base, images)
            info = trained.tensors[triggers.head]
            raw = trained.read(info).copy()
            path = trained.source.weights[info.file]
    except FingerprintError as error:
        warnings.warn(f"{folder} won't answer for its recipient: {error}", FingerprintWarning, stacklevel=2)
        return False
    delta = DenseDelta(triggers.head_update(copy_key))
    TensorUpdate(copy_key, info.name, info.dtype, info.columns, [delta])(raw)
    replace_tensor(path, info, raw)
    return True


def _measured_triggers(trained: Checkpoint, triggers: TriggerSet, base: Base, images: str | Path | None) -> TriggerSet:
    if trained.source.pickled:
        raise FingerprintError(f"{trained.source.name} is pickled: save it as safetensors.")
    built = build_model(trained)
    return adapt_trigger_set(built, map_parameter_names(built.module, trained), triggers, base.secret, images)
