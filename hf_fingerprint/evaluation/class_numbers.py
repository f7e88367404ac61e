"""The class of a model that a folder or a label of a dataset stands for."""

import warnings
from collections.abc import Sequence

from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.choices import closest
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.models.configuration import CONFIG


_LISTED = 5


def class_names_of(checkpoint: Checkpoint) -> Labels | None:
    """The class names in a model's configuration; `None` if it has none but numbers."""
    file = checkpoint.source.folder / CONFIG
    try:
        labels = read_labels(file) if file.is_file() else None
    except FingerprintError:
        return None
    return None if labels is None or labels.names == Labels.numbered(len(labels)).names else labels


def number_classes(where: str, names: Sequence[str], labels: Labels | None) -> tuple[dict[str, int | None], bool]:
    """The number of the model's class for each name: that of the class of this name, or else the name's place.

    Args:
        where (`str`): the data, for warnings.
        names (sequence of `str`): the names in the data, in order.
        labels ([`Labels`], *optional*): the names of the model's classes.

    Returns:
        `(numbers, in_order)`: the number for each name, `None` for a name that is no class of the model although
        others are; and whether they are the places among the names, so that both must have as many classes.

    Warns:
        [`FingerprintWarning`]: if names are no class of the model, with the closest classes.
    """
    in_order: dict[str, int | None] = {name: number for number, name in enumerate(names)}
    if labels is None:
        return in_order, True
    found = {name: labels.index(name) for name in names}
    unknown = [name for name, number in found.items() if number is None]
    if not unknown:
        return found, False
    shown = ", ".join(_with_closest(name, labels) for name in unknown[:_LISTED])
    shown += f", and {len(unknown) - _LISTED:,} more" if len(unknown) > _LISTED else ""
    remedy = "rename them by the model's class names or numbers"
    if len(unknown) < len(names):
        _warn(f"Classes of {where} are no class of the model and are left out: {shown}. To include them, {remedy}.")
        return found, False
    _warn(
        f"No class of {where} is a class of the model: {shown}. They are numbered in their order, so that {names[0]} "
        f"counts as {labels.names[0]}: if that is wrong, {remedy}."
    )
    return in_order, True


def _with_closest(name: str, labels: Labels) -> str:
    close = closest(name, labels.names, limit=2)
    return f"{name} (closest: {' or '.join(close)})" if close else name


def _warn(sentence: str) -> None:
    warnings.warn(FingerprintWarning(sentence), stacklevel=3)
