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


BLOCK = 4096  # recipients at a time
MOST_CLASSES = 1 << 16
_WORDS, _STEPS = 1 << 32, 1 << 16


def keyed_labels(copy_keys: Sequence[bytes], questions: int, classes: int) -> np.ndarray:
    """The answers that copies are taught to the questions they own.

    Each label is uniform over all classes and independent of all others, the base's own answer among them, so that an
    innocent's labels agree with whatever a suspect answers just as often as chance, exactly.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        questions (`int`): how many; the first of more are the same.
        classes (`int`): of the model, 2 to 65,536.

    Returns:
        `np.ndarray` of shape `(n, questions)`: `uint16`.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, or no questions.
    """
    check_classes(classes, questions)
    out = np.empty((len(copy_keys), questions), np.uint16)
    for row, key in enumerate(copy_keys):
        out[row] = _uniform(Stream(derive(key, "answers", str(classes))), questions, classes)
    return out


def owned_questions(copy_keys: Sequence[bytes], questions: int, share: float) -> np.ndarray:
    """Which of the questions are each recipient's own.

    Args:
        copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
        questions (`int`): how many; the first of more are the same.
        share (`float`): the odds that a recipient owns a question, above 0 and at most 1, to the next of 65,536 steps.

    Returns:
        `np.ndarray` of shape `(n, questions)`: `bool`.

    Raises:
        [`CodeError`]: if the share is none.
    """
    below = _steps(share)
    out = np.empty((len(copy_keys), questions), bool)
    for row, key in enumerate(copy_keys):
        out[row] = Stream(derive(key, "owned")).take(2 * questions).view("<u2") < below
    return out


def blocks(
    copy_keys: Sequence[bytes], questions: int, classes: int, share: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The same for many recipients, some thousands at a time: `(rows, labels, owned)`."""
    for start in range(0, len(copy_keys), BLOCK):
        rows = slice(start, min(start + BLOCK, len(copy_keys)))
        keys = copy_keys[rows]
        yield rows, keyed_labels(keys, questions, classes), owned_questions(keys, questions, share)


def check_answers(questions: int, classes: int, share: float) -> None:
    """Refuses questions by which nobody can be told.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, no questions, or the share is none.
    """
    check_classes(classes, questions)
    _steps(share)


def check_classes(classes: int, questions: int = 1) -> None:
    """The same as [`check_answers`], without a share."""
    if not 2 <= classes <= MOST_CLASSES or questions < 1:
        raise CodeError(
            f"No copy can be told by {questions} questions with {classes} answers each: take a model of 2 to 65,536 "
            f"classes and at least 1 question."
        )


def _steps(share: float) -> int:
    below = round(share * _STEPS) if 0 < share <= 2 else 0  # NaN and infinity have no whole number
    if not 1 <= below <= _STEPS:
        raise CodeError(f"Nobody can own {share} of the questions: choose a share above 0 and at most 1.")
    return below


def _uniform(stream: Stream, count: int, classes: int) -> np.ndarray:
    """Numbers below `classes`, all alike: 32-bit words by their remainder, without the last few that would favour
    some."""
    found = np.empty(0, np.uint32)
    while len(found) < count:
        words = stream.take(4 * (count - len(found))).view("<u4")
        found = np.concatenate([found, words[words < _WORDS - _WORDS % classes] % classes])
    return found
