"""Makes the long description of a release from README.md: links to files of the repository become addresses."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?:|#|mailto:)(?P<path>[^)\s]+)\)")


def with_addresses(text: str, source: str) -> str:
    """Markdown whose relative links lead into a repository at an address."""
    kinds = {"!": "raw", "": "blob"}
    return _LINK.sub(lambda m: f"{m['image']}{m['text']}({source}/{kinds[m['image']]}/HEAD/{m['path']})", text)


class LongDescription(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = with_addresses(Path(self.root, "README.md").read_text("utf-8"), metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
