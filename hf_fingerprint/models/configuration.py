"""Validated access to a model's configuration: plain values within limits, selected by name.

The folder may come from an attacker. No configuration is passed to a library unchecked: the modules that build models
list the entries they understand and get them here.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.limits import parse_json, read_bounded
from hf_fingerprint.errors import BuildError
from hf_fingerprint.printable import printable


CONFIG = "config.json"
_WORD = re.compile(r"[A-Za-z0-9_+.-]{0,64}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        [`BuildError`]: if it isn't one, or is larger than 16 MB.
    """
    try:
        content = read_bounded(path, limits.MAX_JSON, "a configuration", BuildError)
        found = parse_json(content, limits.MAX_CONFIG_VALUES)
    except (ValueError, OSError):
        raise BuildError(f"{path} is not JSON: download the model's folder again.") from None
    if not isinstance(found, dict):
        raise BuildError(f"{path} holds no JSON object: download the model's folder again.")
    return found


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is a number, a word or a list of these, so that no library takes it for a path, a URL or code.

    Words contain no slash, numbers are finite and at most 2^20, lists are short.
    """
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return -limits.MAX_CONFIG_NUMBER <= value <= limits.MAX_CONFIG_NUMBER  # False for NaN and for huge integers
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value))
    if isinstance(value, list | tuple):
        fits = depth < limits.MAX_CONFIG_DEPTH and len(value) <= limits.MAX_CONFIG_LIST
        return fits and all(is_plain(each, depth + 1) for each in value)
    return False


def plain_entries(config: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """The entries with known names.

    Args:
        config (mapping): the configuration.
        known (collection of `str`): names that the caller understands; others are ignored.
        where (`str`): the file, for errors.

    Raises:
        [`BuildError`]: if one of them is not plain; see [`is_plain`].
    """
    chosen = {name: value for name, value in config.items() if name in known and value is not None}
    for name, value in chosen.items():
        if not is_plain(value):
            raise BuildError(f"{where} gives {name} a value that no architecture accepts: don't use this model.")
    return chosen


def check_count(value: object, name: str, where: str, maximum: int = limits.MAX_CLASSES) -> int:
    """The value, checked to be a number of classes or channels.

    Raises:
        [`BuildError`]: if it is not an integer from 0 to `maximum`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
        raise BuildError(f"{where} gives {name} as {short_repr(value)}: it must be an integer from 0 to {maximum:,}.")
    return value


def check_size(size: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    """The input size (channels, height, width), checked.

    Raises:
        [`BuildError`]: if it is not an image's size or is too large.
    """
    sides_fit = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= limits.MAX_SIDE for n in size)
    if len(size) != 3 or not sides_fit or size[0] > 64:
        raise BuildError(
            f"{where} takes inputs of {short_repr(list(size))} (channels, height, width), and the limit is 64 "
            f"channels of {limits.MAX_SIDE:,} pixels a side: fix its size."
        )
    return size


def short_repr(value: object) -> str:
    """A value from a file as a short, single line."""
    return printable(str(value)[:80])
