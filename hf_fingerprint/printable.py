"""Untrusted text made safe to display."""

import unicodedata


def printable(text: str) -> str:
    r"""The text with every non-printing character escaped, as in `\x1b` or `\u202e`.

    Escapes control characters (line ends and tabs too), direction marks, zero-width characters, line separators,
    surrogates and unassigned code points. Spaces of any width stay. Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
