"""What each recipient's copy answers to a pool of questions: labels drawn from the copy key.

All recipients share the questions. Each owns a share of them, drawn from its copy key: those are its key images, which
its copy answers by labels drawn from the same key, and the others as the base would. So a couple of hundred questions
tell thousands of recipients apart, and where several copies are averaged, a question that only one of the givers owns
is answered by that one's label against the others' indifference.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive


BLOCK_SIZE = 4096  # recipients at a time
MAX_CLASSES = 1 << 16
_WORD_RANGE, _SHARE_STEPS = 1 << 32, 1 << 16


def keyed_labels(copy_keys: Sequence[bytes], triggers: int, classes: int) -> np.ndarray:
    """The answers that copies are taught to the questions they own.

    Each label is uniform over all classes and independent of all others, the base's own answer among them, so that an
    innocent's labels agree with whatever a suspect answers just as often as chance, exactly.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        triggers (`int`): how many; the first of more are the same.
        classes (`int`): of the model, 2 to 65,536.

    Returns:
        `np.ndarray` of shape `(n, questions)`: `uint16`.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, or no questions.
    """
    check_class_count(classes, triggers)
    out = np.empty((len(copy_keys), triggers), np.uint16)
    for row, key in enumerate(copy_keys):
        out[row] = _uniform_integers(Stream(derive(key, "answers", str(classes))), triggers, classes)
    return out


def assigned_triggers(copy_keys: Sequence[bytes], triggers: int, assigned_share: float) -> np.ndarray:
    """Which of the questions are each recipient's own.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        triggers (`int`): how many; the first of more are the same.
        assigned_share (`float`): the odds that a recipient owns a question, above 0 and at most 1, to the next of 65,536 steps.

    Returns:
        `np.ndarray` of shape `(n, questions)`: `bool`.

    Raises:
        [`CodeError`]: if the share is none.
    """
    threshold = _share_threshold(assigned_share)
    out = np.empty((len(copy_keys), triggers), bool)
    for row, key in enumerate(copy_keys):
        out[row] = Stream(derive(key, "owned")).take(2 * triggers).view("<u2") < threshold
    return out


def label_blocks(
    copy_keys: Sequence[bytes], triggers: int, classes: int, assigned_share: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The same for many recipients, some thousands at a time: `(rows, labels, owned)`."""
    for start in range(0, len(copy_keys), BLOCK_SIZE):
        rows = slice(start, min(start + BLOCK_SIZE, len(copy_keys)))
        keys = copy_keys[rows]
        yield rows, keyed_labels(keys, triggers, classes), assigned_triggers(keys, triggers, assigned_share)


def check_trigger_counts(triggers: int, classes: int, assigned_share: float) -> None:
    """Refuses questions by which nobody can be told.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, no questions, or the share is none.
    """
    check_class_count(classes, triggers)
    _share_threshold(assigned_share)


def check_class_count(classes: int, triggers: int = 1) -> None:
    """The same as [`check_trigger_counts`], without a share."""
    if not 2 <= classes <= MAX_CLASSES or triggers < 1:
        raise CodeError(
            f"No copy can be told by {triggers} questions with {classes} answers each: take a model of 2 to 65,536 "
            f"classes and at least 1 question."
        )


def _share_threshold(assigned_share: float) -> int:
    threshold = (
        round(assigned_share * _SHARE_STEPS) if 0 < assigned_share <= 2 else 0
    )  # NaN and infinity have no whole number
    if not 1 <= threshold <= _SHARE_STEPS:
        raise CodeError(f"Nobody can own {assigned_share} of the questions: choose a share above 0 and at most 1.")
    return threshold


def _uniform_integers(stream: Stream, count: int, classes: int) -> np.ndarray:
    """Numbers below `classes`, all alike: 32-bit words by their remainder, without the last few that would favour
    some."""
    found = np.empty(0, np.uint32)
    while len(found) < count:
        words = stream.take(4 * (count - len(found))).view("<u4")
        found = np.concatenate([found, words[words < _WORD_RANGE - _WORD_RANGE % classes] % classes])
    return found
