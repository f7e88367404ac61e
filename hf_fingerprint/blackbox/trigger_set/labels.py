"""Each recipient's assigned triggers and labels, drawn from its copy key.

All recipients share the trigger images. On its share of them, a copy predicts labels drawn from its copy key; on the
others it predicts what the base does. A few hundred images therefore distinguish thousands of recipients. If copies
are averaged, a trigger assigned to only one of them keeps that one's label, as the others don't oppose it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive


BLOCK_SIZE = 4096  # recipients at a time
MAX_CLASSES = 1 << 16
_WORD_RANGE, _SHARE_STEPS = 1 << 32, 1 << 16


def keyed_labels(copy_keys: Sequence[bytes], triggers: int, classes: int) -> np.ndarray:
    """The labels that each recipient's copy predicts on its assigned triggers.

    Each label is uniform over all classes, the base's prediction among them, and independent of all others. The labels
    of an innocent recipient therefore agree with any responses exactly as often as chance.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        triggers (`int`): the number of trigger images. The labels of fewer images are a prefix of those of more.
        classes (`int`): the number of classes, 2 to 65,536.

    Returns:
        `np.ndarray` of shape `(n, triggers)`: `uint16`.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, or no triggers.
    """
    check_class_count(classes, triggers)
    out = np.empty((len(copy_keys), triggers), np.uint16)
    for row, key in enumerate(copy_keys):
        out[row] = _uniform_integers(Stream(derive(key, "answers", str(classes))), triggers, classes)
    return out


def assigned_triggers(copy_keys: Sequence[bytes], triggers: int, assigned_share: float) -> np.ndarray:
    """Which triggers are assigned to each recipient.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        triggers (`int`): the number of trigger images. The result for fewer images is a prefix of that for more.
        assigned_share (`float`): the probability of an assignment, above 0 and at most 1, in steps of 1 / 65,536.

    Returns:
        `np.ndarray` of shape `(n, triggers)`: `bool`.

    Raises:
        [`CodeError`]: if `assigned_share` is out of range.
    """
    threshold = _share_threshold(assigned_share)
    out = np.empty((len(copy_keys), triggers), bool)
    for row, key in enumerate(copy_keys):
        out[row] = Stream(derive(key, "owned")).take(2 * triggers).view("<u2") < threshold
    return out


def label_blocks(
    copy_keys: Sequence[bytes], triggers: int, classes: int, assigned_share: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """[`keyed_labels`] and [`assigned_triggers`] in blocks of recipients: `(rows, labels, assigned)`."""
    for start in range(0, len(copy_keys), BLOCK_SIZE):
        rows = slice(start, min(start + BLOCK_SIZE, len(copy_keys)))
        keys = copy_keys[rows]
        yield rows, keyed_labels(keys, triggers, classes), assigned_triggers(keys, triggers, assigned_share)


def check_trigger_counts(triggers: int, classes: int, assigned_share: float) -> None:
    """Checks that a trigger set of these counts can identify a recipient.

    Raises:
        [`CodeError`]: if `classes`, `triggers` or `assigned_share` is out of range; see [`keyed_labels`].
    """
    check_class_count(classes, triggers)
    _share_threshold(assigned_share)


def check_class_count(classes: int, triggers: int = 1) -> None:
    """Checks the counts alone; see [`check_trigger_counts`]."""
    if not 2 <= classes <= MAX_CLASSES or triggers < 1:
        problem = f"{triggers} trigger images with {classes} classes can't identify a copy"
        raise CodeError(f"{problem}: use a model of 2 to 65,536 classes and at least 1 trigger image.")


def _share_threshold(assigned_share: float) -> int:
    # NaN and infinity can't be rounded
    threshold = round(assigned_share * _SHARE_STEPS) if 0 < assigned_share <= 2 else 0
    if not 1 <= threshold <= _SHARE_STEPS:
        raise CodeError(f"{assigned_share} of the triggers can't be assigned: choose a share above 0 and at most 1.")
    return threshold


def _uniform_integers(stream: Stream, count: int, classes: int) -> np.ndarray:
    """Uniform integers below `classes`: 32-bit words modulo `classes`, with rejection against bias."""
    found = np.empty(0, np.uint32)
    while len(found) < count:
        words = stream.take(4 * (count - len(found))).view("<u4")
        found = np.concatenate([found, words[words < _WORD_RANGE - _WORD_RANGE % classes] % classes])
    return found
