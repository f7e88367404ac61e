"""Text as a person may see it who doesn't trust where it comes from."""

import unicodedata


def printable(text: str) -> str:
    r"""The same text with whatever does not show as itself spelled out, as in `\x1b` or `\u202e`.

    Control characters (line ends and tabs among them), marks that turn the direction of writing, characters without
    width, separators of lines, halves of surrogate pairs, and what Unicode has not assigned. Spaces of any width stay.
    What comes out goes in and stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
