"""Which class a reply tells, in whatever shape models behind APIs answer.

A reply that is misread costs evidence and never an innocent: their labels don't hang on what is answered. So where a
reply may be meant in several ways, the likeliest is taken.
"""

from collections.abc import Sequence
from typing import Any

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.errors import FingerprintError


NAMED = ("label", "class", "prediction", "predictions", "probabilities", "scores", "logits")  # the first one counts
WEIGHTS = ("score", "probability", "confidence")
DEEPEST = 8
PATIENCE = 3  # replies without a class, before anything else was understood
_SHOWN = 60


def class_told(reply: Any, labels: Labels | Sequence[str], field: str | None = None) -> int | None:
    """The class that a reply tells.

    Args:
        reply: a class as a number or name; scores `(classes,)`, the highest of which counts, as list, numpy array or
            tensor; a list of `{"label", "score"}`, or of names with the surest first; an object from names to scores;
            one with `label`, `class`, `prediction`, `predictions`, `probabilities`, `scores` or `logits`; or a list
            that holds just one of these.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): where in the reply to look, as in `"result.top.0"`.

    Returns:
        `int` or `None`: `None` if it tells no class of the base's, or two of them at once.
    """
    labels = labels if isinstance(labels, Labels) else Labels(labels)
    try:
        return _index(_part(reply, field), labels)
    except _NoClass:
        return None


class Reader:
    """Reads one suspect's replies, and gives up when the first of them all tell no class.

    Args:
        suspect (`str`): its name, without secrets.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): as for [`class_told`].
    """

    def __init__(self, suspect: str, labels: Labels | Sequence[str], field: str | None = None):
        self._suspect, self._field = suspect, field
        self._labels = labels if isinstance(labels, Labels) else Labels(labels)
        self._strange: int | None = 0

    def __call__(self, reply: Any) -> int | None:
        """The class that a reply tells, or `None`.

        Raises:
            [`FingerprintError`]: if none of the first three replies told a class of the base's.
        """
        try:
            index = _index(_part(reply, self._field), self._labels)
        except _NoClass as why:
            if self._strange is None:
                return None
            self._strange += 1
            if self._strange == PATIENCE:
                raise FingerprintError(
                    f"None of the first {PATIENCE} answers of {self._suspect} tells a class of the base, which has "
                    f"{len(self._labels)}; the last {why}."
                ) from None
            return None
        self._strange = None
        return index


class _NoClass(Exception):
    """Why a reply tells no class, and what to do, as the end of a sentence."""


def _part(reply: Any, field: str | None) -> Any:
    for step in field.split(".") if field else ():
        try:
            reply = reply[int(step)] if isinstance(reply, list | tuple) else reply[step]
        except (LookupError, TypeError, ValueError):
            raise _NoClass(f"has no field {field!r}: name the field that holds the class") from None
    return reply


def _index(reply: Any, labels: Labels, depth: int = 0) -> int:
    if depth > DEEPEST:
        raise _NoClass("is lists within lists: name the field that holds the class")
    if hasattr(reply, "tolist"):  # numpy's and torch's, wherever the tensor is
        reply = reply.tolist()
    if isinstance(reply, str) or type(reply) is int:
        return _known(reply, labels)
    if isinstance(reply, dict):
        return _in_object(reply, labels, depth)
    if isinstance(reply, list | tuple) and reply:
        return _in_list(list(reply), labels, depth)
    raise _NoClass(f"is {_shown(reply)}: name the field that holds the class")


def _in_object(reply: dict[Any, Any], labels: Labels, depth: int) -> int:
    for name in NAMED:
        if name in reply:
            return _index(reply[name], labels, depth + 1)
    if reply and all(_is_number(score) for score in reply.values()):
        return _highest(list(reply.items()), labels)
    raise _NoClass(f"has the fields {_shown(sorted(map(str, reply)))}: name the one that holds the class")


def _in_list(reply: list[Any], labels: Labels, depth: int) -> int:
    if len(reply) > 1 and all(map(_is_number, reply)):
        if len(reply) != len(labels):
            raise _NoClass(f"has {len(reply)} scores: give --labels of this suspect's classes, or ask another")
        return _highest(list(enumerate(reply)), labels)
    if all(isinstance(each, dict) for each in reply):
        weighed = [(each.get("label"), next((each[w] for w in WEIGHTS if w in each), None)) for each in reply]
        if all(_is_number(weight) and _is_name(name) for name, weight in weighed):
            return _highest(weighed, labels)
    elif len(reply) > 1 and not all(isinstance(each, str) for each in reply):
        raise _NoClass(f"is {_shown(reply)}: name the field that holds the class")
    return _index(reply[0], labels, depth + 1)


def _highest(weighed: list[tuple[Any, Any]], labels: Labels) -> int:
    """The class with the highest score; of several, the first in the base's order, in whatever order they came."""
    best = max((score for _, score in weighed if score == score), default=None)
    if best is None:
        raise _NoClass("has no scores but NaN: ask a model that works")
    names = [name for name, score in weighed if score == best]
    found = [index for name in names if (index := labels.index(name)) is not None]
    return min(found) if found else _known(names[0], labels)


def _known(told: int | str, labels: Labels) -> int:
    index = labels.index(told)
    if index is None:
        raise _NoClass(f"tells {_shown(told)}: give --labels with the suspect's names of the base's classes")
    return index


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _shown(value: Any) -> str:
    """As a person may see it who doesn't trust it: short, on one line."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number or a nesting without end
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
