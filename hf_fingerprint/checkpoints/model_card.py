"""Reads the model card of a folder within limits: it may be hostile."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import limits
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    from huggingface_hub import ModelCard


README = "README.md"
_FRONT_MATTER = re.compile(r"\s*---[\r\n]")
_BLANK_LINES = re.compile(r"[\r\n]{50,}")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")


def read_card(folder: Path) -> "ModelCard | None":
    """The model card in a folder; `None` if it has none.

    Raises:
        [`CheckpointError`]: if it is too long, or its front matter is not that of a model card.
    """
    text = _read_text(folder / README)
    return None if text is None else _parse(folder / README, text)


def named_base_model(folder: Path) -> str | None:
    """The Hub id of the one `base_model` that the card in a folder names; `None` if it names none.

    Raises:
        [`CheckpointError`]: if the card can't be read, or names several models or something else than a Hub id.
    """
    text = _read_text(folder / README)
    if text is None or not _FRONT_MATTER.match(text):  # the library logs that there is no front matter
        return None
    named = _parse(folder / README, text).data.to_dict().get("base_model")
    if isinstance(named, list) and len(named) == 1:
        (named,) = named
    if named is None or named == []:
        return None
    if not isinstance(named, str) or not _REPO.fullmatch(named) or ".." in named or "--" in named:
        shown = f"{len(named)} models" if isinstance(named, list) else printable(str(named)[:80])
        raise CheckpointError(
            f"{folder / README}, the base's model card, names {shown} as base_model, not one Hub id such as org/name: "
            f"correct it."
        )
    return named


def _read_text(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        text = limits.read_bounded(path, limits.MAX_CARD, "a model card").decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    text = _BLANK_LINES.sub("\n\n", text)  # the library's search for the front matter is quadratic in them
    if len(text.partition("\n---")[0]) > limits.MAX_FRONT_MATTER and text.lstrip().startswith("---"):
        size = f"more than {limits.MAX_FRONT_MATTER} bytes of front matter"
        raise CheckpointError(f"{path}, the base's model card, has {size}: shorten it.")
    return text


def _parse(path: Path, text: str) -> "ModelCard":
    from huggingface_hub import ModelCard

    try:
        return ModelCard(text, ignore_metadata_errors=False)
    except Exception as error:  # the library raises errors of any class for unexpected YAML
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    failed = f"can't be read ({type(error).__name__})"
    return CheckpointError(f"{path}, the base's model card, {failed}: correct its front matter.")
