"""What the builder does not check in the pages it wrote: every link inside them has a target, every picture a text."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging


_LOGGER = logging.getLogger(__name__)


class Page(HTMLParser):
    """The links, anchors and pictures without a text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.untitled: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag == "img" and not given.get("alt"):
            self.untitled.append(given.get("src", ""))


def faults(folder: Path) -> list[str]:
    """Says what is wrong in the pages of a folder, one sentence each."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        shown = path.relative_to(folder)
        found += [f"{shown}: the picture {source[:80]} has no text: give it one." for source in page.untitled]
        for link in dict.fromkeys(page.links):
            address, anchor = urldefrag(link)
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
            if not target.exists() or (target in pages and unquote(anchor) not in pages[target].anchors):
                found.append(f"{shown}: the link {link} has no target.")
    return found


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for fault in faults(Path(app.outdir).resolve()):
            _LOGGER.warning(fault)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
