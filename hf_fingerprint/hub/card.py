"""Makes the model card of a published copy, from the base's card and the template `model_cards/variant.md`.

The card holds the base's license and tags, the hashes of the weights, and how to check them. It never holds the
recipient's name or a secret.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_fingerprint
from hf_fingerprint.checkpoints import limits
from hf_fingerprint.checkpoints.configs import CONFIG
from hf_fingerprint.checkpoints.model_card import README, read_card
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from jinja2 import Template


_TEMPLATE = "variant.md"
_VARIANT = re.compile(r"(pytorch_)?model\.(?P<variant>[A-Za-z0-9_-]+?)(-\d+-of-\d+)?\.safetensors")


def make_card(
    folder: Path,
    repo: str,
    weights: Mapping[str, str],
    content_hash: str,
    base_model: str | None = None,
    commitment: str | None = None,
    readable_files: Collection[str] | None = None,
    base_revision: str | None = None,
    base_folder: str | None = None,
) -> "ModelCard":
    """Renders the model card of a copy.

    Args:
        folder (`Path`): the copy's folder. Its `README.md`, which comes from the base, provides the license, the tags
            and the description.
        repo (`str`): the variant repo.
        weights (mapping): the SHA-256 of each weight file, by file name.
        content_hash (`str`): the content hash of the copy's weights.
        base_model (`str`, *optional*): the base's Hub id. Defaults to the one in the base's card.
        commitment (`str`, *optional*): the commitment to the fingerprint. The card discloses the fingerprint if it is
            given.
        readable_files (collection of `str`, *optional*): the names of the files that may be read. Defaults to all.
        base_revision, base_folder (`str`, *optional*): the commit of the base, and its folder in the repo.

    Raises:
        [`CheckpointError`]: if the base's card can't be read.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data, about = _base_card(folder) if readable_files is None or README in readable_files else ({}, "")
    config = _config(folder) if readable_files is None or CONFIG in readable_files else {}
    if base_model is not None:
        data["base_model"] = base_model
    named = data.get("base_model")
    library = "timm" if {"architecture", "pretrained_cfg"} <= config.keys() else "transformers"
    data.setdefault("library_name", library)
    data.setdefault("pipeline_tag", "image-classification")
    data.pop("model-index", None)  # evaluation results, which belong to the base
    written = ModelCardData(**{key: value for key, value in data.items() if value is not None})
    content = _template().render(
        card_data=written.to_yaml(),
        title=repo.rsplit("/", 1)[-1],
        repo=repo,
        base_model=_escape_inline(named[0] if isinstance(named, list) and named else named),
        base_revision=_as_code(base_revision),
        base_folder=_as_code(base_folder),
        variant=next((found["variant"] for found in map(_VARIANT.fullmatch, weights) if found), None),
        library=library,
        weights={_as_code(name): digest for name, digest in weights.items()},
        content_hash=content_hash,
        commitment=commitment,
        about=about,
    )
    return ModelCard(content)


def _as_code(text: str | None) -> str | None:
    """Text for use within a code span of a table."""
    return None if text is None else printable(text).replace("`", "'").replace("|", r"\|")


def _escape_inline(text: Any) -> Any:
    """Escapes a name for use within a line of Markdown. A value that is not text is returned unchanged."""
    return re.sub(r"([\\`|\[\]()<>])", r"\\\1", printable(text)) if isinstance(text, str) else text


@cache
def _template() -> "Template":
    """The template, which is inside an installed package and at the top of a checkout."""
    from jinja2 import Template

    package = Path(hf_fingerprint.__file__).parent
    inside = package / "model_cards" / _TEMPLATE
    path = inside if inside.exists() else package.parent / "model_cards" / _TEMPLATE
    return Template(path.read_text(encoding="utf-8"))


def _base_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the base's card, with headings one level deeper."""
    card = read_card(folder)
    if card is None:
        return {}, ""
    lines, in_code_block = [], False
    for line in card.text.strip().splitlines():
        in_code_block ^= line.startswith("```")
        lines.append(f"##{line}" if line.startswith("#") and not in_code_block else line)
    return card.data.to_dict(), "\n".join(lines)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        content = limits.read_bounded(path, limits.MAX_JSON, "a configuration") if path.exists() else b"{}"
        found = limits.parse_json(content, limits.MAX_CONFIG_VALUES)
    except (ValueError, OSError):
        raise CheckpointError(f"{path} is not valid JSON: download the model again.") from None
    return found if isinstance(found, dict) else {}
