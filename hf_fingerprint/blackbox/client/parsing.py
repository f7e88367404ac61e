"""The class that a response predicts, in whatever format the model answers.

A misread response weakens the evidence and never harms an innocent recipient, whose labels are independent of the
response. An ambiguous response is therefore read in the most likely way.
"""

from collections.abc import Sequence
from typing import Any

from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.errors import FingerprintError


LABEL_KEYS = ("label", "class", "prediction", "predictions", "probabilities", "scores", "logits")  # by precedence
SCORE_KEYS = ("score", "probability", "confidence")
MAX_DEPTH = 8
MAX_UNPARSED = 3  # responses at the start of a session
_MAX_SHOWN = 60


def parse_response(response: Any, labels: Labels | Sequence[str], field: str | None = None) -> int | None:
    """The index of the class that a response predicts.

    Args:
        response: a class as an index or name; scores `(classes,)` as a list, numpy array or tensor; a list of
            `{"label", "score"}`; a list of names, best first; an object from names to scores; an object with `label`,
            `class`, `prediction`, `predictions`, `probabilities`, `scores` or `logits`; or a list of one of these.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): the path of the field that holds the class, such as `"result.top.0"`.

    Returns:
        `int` or `None`: `None` if the response predicts no class of the base, or several.
    """
    labels = labels if isinstance(labels, Labels) else Labels(labels)
    try:
        return _parse_label(_select_field(response, field), labels)
    except _UnparsableResponse:
        return None


class ResponseParser:
    """Parses the responses of one suspect, and gives up if none of the first ones predicts a class.

    Args:
        suspect (`str`): its name, without secrets, for error messages.
        labels ([`Labels`] or sequence of `str`): the base's classes.
        field (`str`, *optional*): as for [`parse_response`].
    """

    def __init__(self, suspect: str, labels: Labels | Sequence[str], field: str | None = None):
        self._suspect, self._field = suspect, field
        self._labels = labels if isinstance(labels, Labels) else Labels(labels)
        self._unparsed: int | None = 0

    def __call__(self, response: Any) -> int | None:
        """The index of the class that a response predicts, or `None`; see [`parse_response`].

        Raises:
            [`FingerprintError`]: if none of the first three responses predicts a class of the base.
        """
        try:
            index = _parse_label(_select_field(response, self._field), self._labels)
        except _UnparsableResponse as error:
            if self._unparsed is None:
                return None
            self._unparsed += 1
            if self._unparsed == MAX_UNPARSED:
                problem = f"None of the first {MAX_UNPARSED} responses of {self._suspect} predicts a class of the base"
                raise FingerprintError(f"{problem}, which has {len(self._labels)}; the last one {error}.") from None
            return None
        self._unparsed = None
        return index


class _UnparsableResponse(Exception):
    """A response predicts no class. The text is the end of a sentence: the problem and what to do."""


def _select_field(response: Any, field: str | None) -> Any:
    for step in field.split(".") if field else ():
        try:
            response = response[int(step)] if isinstance(response, list | tuple) else response[step]
        except (LookupError, TypeError, ValueError):
            raise _UnparsableResponse(f"has no field {field!r}: name the field that holds the class") from None
    return response


def _parse_label(response: Any, labels: Labels, depth: int = 0) -> int:
    if depth > MAX_DEPTH:
        raise _UnparsableResponse("is nested too deeply: name the field that holds the class")
    if hasattr(response, "tolist"):  # numpy arrays, and tensors on any device
        response = response.tolist()
    if isinstance(response, str) or type(response) is int:
        return _label_index(response, labels)
    if isinstance(response, dict):
        return _parse_object(response, labels, depth)
    if isinstance(response, list | tuple) and response:
        return _parse_list(list(response), labels, depth)
    raise _UnparsableResponse(f"is {_shorten(response)}: name the field that holds the class")


def _parse_object(response: dict[Any, Any], labels: Labels, depth: int) -> int:
    for name in LABEL_KEYS:
        if name in response:
            return _parse_label(response[name], labels, depth + 1)
    if response and all(_is_number(score) for score in response.values()):
        return _top_label(list(response.items()), labels)
    raise _UnparsableResponse(f"has the fields {_shorten(sorted(map(str, response)))}: name the one with the class")


def _parse_list(response: list[Any], labels: Labels, depth: int) -> int:
    if len(response) > 1 and all(map(_is_number, response)):
        if len(response) != len(labels):
            remedy = "give --labels with this suspect's classes, or query another model"
            raise _UnparsableResponse(f"has {len(response)} scores: {remedy}")
        return _top_label(list(enumerate(response)), labels)
    if all(isinstance(each, dict) for each in response):
        scored = [(each.get("label"), next((each[w] for w in SCORE_KEYS if w in each), None)) for each in response]
        if all(_is_number(weight) and _is_name(name) for name, weight in scored):
            return _top_label(scored, labels)
    elif len(response) > 1 and not all(isinstance(each, str) for each in response):
        raise _UnparsableResponse(f"is {_shorten(response)}: name the field that holds the class")
    return _parse_label(response[0], labels, depth + 1)


def _top_label(scored: list[tuple[Any, Any]], labels: Labels) -> int:
    """The class with the highest score; among ties, the one with the lowest index."""
    best = max((score for _, score in scored if score == score), default=None)
    if best is None:
        raise _UnparsableResponse("has only NaN scores: query a model that works")
    names = [name for name, score in scored if score == best]
    found = [index for name in names if (index := labels.index(name)) is not None]
    return min(found) if found else _label_index(names[0], labels)


def _label_index(predicted: int | str, labels: Labels) -> int:
    index = labels.index(predicted)
    if index is None:
        raise _UnparsableResponse(f"is {_shorten(predicted)}: give --labels with the suspect's names of the classes")
    return index


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _shorten(value: Any) -> str:
    """A short form of an untrusted value, on one line."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a huge number or a deep nesting
        text = type(value).__name__
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
