"""The closed choices of Python and of the command line: one type for each, and what to say about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, get_args


Layout = Literal["spread", "compact"]
Family = Literal["tardos", "nuida", "fair_signs"]
OutputKind = Literal["single_label", "multi_label", "dense", "features"]
Gating = Literal["auto", "manual"]
RequestFormat = Literal["raw", "json", "multipart"]
Strategy = Literal[
    "weighted average",
    "layer interleaving",
    "average",
    "block interleaving",
    "random pick",
    "minimum",
    "maximum",
    "min-max",
    "median",
    "random extreme",
    "minority",
]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[OutputKind, ...] = get_args(OutputKind)
GATES: tuple[Gating, ...] = get_args(Gating)
REQUEST_FORMATS: tuple[RequestFormat, ...] = get_args(RequestFormat)
FORGERIES: tuple[Strategy, ...] = get_args(Strategy)


def wrong_choice(name: str, given: object, choices: Iterable[str]) -> str:
    """The sentence about a value that is none of a closed choice, with the closest one if there is one."""
    choices = tuple(choices)
    sentence = f"`{name}` must be one of {', '.join(choices)}, got {given}"
    return f"{sentence}{close_names(str(given), choices) or '.'}"


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about an unknown name: the known names closest to it, or else what to do."""
    return close_names(given, known) or f": {otherwise}."


def close_names(given: str, known: Iterable[str]) -> str:
    """`": did you mean X or Y?"` with the known names closest to an unknown one, or an empty text."""
    close = closest(given, known)
    return f": did you mean {' or '.join(close)}?" if close else ""


def closest(given: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names that are close to an unknown one, closest first, in any case."""
    lowered = {name.lower(): name for name in known}
    return [lowered[name] for name in get_close_matches(given.lower(), lowered, limit)]
