"""The names of a model's classes, and which class a suspect's word for one means.

Two classes that share a name can't be told apart by it, and neither is meant; a number always names its class.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.limits import MAX_CONFIG_VALUES, MAX_LIST, parse_json, read_bounded
from hf_fingerprint.errors import FingerprintError


MAX_CLASSES = 1 << 16
_NUMBERED = re.compile(r"(?:label_)?([0-9]{1,9})")


class Labels:
    """The classes of the base.

    Args:
        names (sequence of `str`): the name of each class in their order; `Labels.numbered(classes)` where they have
            none.

    Raises:
        [`FingerprintError`]: if there are fewer than 2 or more than 65,536.
    """

    def __init__(self, names: Sequence[str]):
        if not 2 <= len(names) <= MAX_CLASSES:
            raise FingerprintError(f"{len(names)} labels are none of a classifier: give the names of all its classes.")
        self.names = tuple(names)
        self._indices: dict[str, int | None] = {}
        for index, name in enumerate(map(_normalize, self.names)):
            self._indices[name] = None if name in self._indices else index

    @classmethod
    def numbered(cls, classes: int) -> "Labels":
        """Labels without names, `LABEL_0` and so on."""
        return cls([f"LABEL_{index}" for index in range(classes)])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Labels({len(self)} classes, the first {self.names[0]!r})"

    def index(self, predicted: int | str) -> int | None:
        """The class that is meant: a number, a name whatever its case and the space around it, `"LABEL_3"` or `"3"`.

        A name comes before a number in words, so that classes that are named by numbers are found by their names.

        Returns:
            `int` or `None`: `None` if no class is, or several are.
        """
        if isinstance(predicted, str):
            name = _normalize(predicted)
            if name in self._indices:
                return self._indices[name]
            number = _NUMBERED.fullmatch(name)
            if number is None:
                return None
            predicted = int(number[1])
        return predicted if 0 <= predicted < len(self) else None


def read_labels(path: str | Path) -> Labels:
    """Reads labels from a file: a name on each line; a JSON list of names; a JSON object from numbers to names; or a
    model's `config.json`, of transformers (`id2label`) or timm (`label_names`, or just `num_classes`).

    Args:
        path (`str` or `Path`): the file.

    Raises:
        [`FingerprintError`]: if it can't be read or holds no labels.
    """
    try:
        text = read_bounded(path, MAX_LIST, "a list of labels", FingerprintError, allow_pipe=True).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "is not text"
        raise FingerprintError(f"The labels in {path} can't be read ({why}): give a text or JSON file.") from None
    try:
        content = parse_json(text, MAX_CONFIG_VALUES)
    except ValueError:
        content = None
    if isinstance(content, list | dict):
        found = _labels_from_json(content)
        if found is None:
            raise FingerprintError(
                f"{path} holds no labels: give a list of names, an object from numbers to names or a config.json."
            )
        return found
    return Labels([line.strip() for line in text.splitlines() if line.strip()])


def _labels_from_json(content: Any) -> Labels | None:
    if isinstance(content, dict):
        names = content.get("id2label") or content.get("label_names")
        inner = content.get("pretrained_cfg")
        classes = content.get("num_classes", inner.get("num_classes") if isinstance(inner, dict) else None)
        if names is None and type(classes) is int and 2 <= classes <= MAX_CLASSES:
            return Labels.numbered(classes)
        content = content if names is None else names
    if isinstance(content, dict):
        content = [content.get(str(index)) for index in range(len(content))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        return None
    return Labels(content)


def _normalize(name: str) -> str:
    return name.strip().casefold()
