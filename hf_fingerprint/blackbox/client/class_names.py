"""The names of a model's classes, and the index that a label in a response stands for.

A name that two classes share stands for neither of them. A number always stands for its class.
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
        names (sequence of `str`): the name of each class, in order. Use `Labels.numbered(classes)` if they have none.

    Raises:
        [`FingerprintError`]: if there are fewer than 2 names or more than 65,536.
    """

    def __init__(self, names: Sequence[str]):
        if not 2 <= len(names) <= MAX_CLASSES:
            raise FingerprintError(f"A classifier has 2 to {MAX_CLASSES:,} classes, not {len(names)}: give all names.")
        self.names = tuple(names)
        self._indices: dict[str, int | None] = {}
        for index, name in enumerate(map(_normalize, self.names)):
            self._indices[name] = None if name in self._indices else index

    @classmethod
    def numbered(cls, classes: int) -> "Labels":
        """Labels named `LABEL_0`, `LABEL_1` and so on."""
        return cls([f"LABEL_{index}" for index in range(classes)])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Labels({len(self)} classes, the first {self.names[0]!r})"

    def index(self, predicted: int | str) -> int | None:
        """The index of the class that a label stands for.

        Args:
            predicted (`int` or `str`): an index, `"LABEL_3"`, `"3"`, or a name in any case, with space around it. A
                name takes precedence over the number in it.

        Returns:
            `int` or `None`: `None` if the label stands for no class or for several.
        """
        if isinstance(predicted, str):
            name = _normalize(predicted)
            if name in self._indices:
                return self._indices[name]
            number = _NUMBERED.fullmatch(name)
            predicted = int(number[1]) if number else -1
        return predicted if 0 <= predicted < len(self) else None


def read_labels(path: str | Path) -> Labels:
    """Reads the class names from a file.

    Args:
        path (`str` or `Path`): a text file with a name on each line, a JSON list of names, a JSON object from numbers
            to names, or a `config.json` of transformers (`id2label`) or timm (`label_names` or `num_classes`).

    Raises:
        [`FingerprintError`]: if the file can't be read or holds no class names.
    """
    try:
        text = read_bounded(path, MAX_LIST, "a list of labels", FingerprintError, allow_pipe=True).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not text"
        raise FingerprintError(f"The labels in {path} can't be read ({reason}): give a text or JSON file.") from None
    try:
        content = parse_json(text, MAX_CONFIG_VALUES)
    except ValueError:
        content = None
    if not isinstance(content, list | dict):
        return Labels([line.strip() for line in text.splitlines() if line.strip()])
    if (found := _labels_from_json(content)) is None:
        remedy = "give a list of names, an object from numbers to names or a config.json"
        raise FingerprintError(f"{path} holds no labels: {remedy}.")
    return found


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
