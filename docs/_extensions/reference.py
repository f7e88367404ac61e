"""The reference: each page lists names, and each name becomes its own entry, made from its docstring.

A page holds blocks of names, one a line. A name without a dot is a public one; others stand with their full path. What
is neither a class nor a function has no docstring, so its text stands here.

    ```{names}
    issue
    hf_fingerprint.outcomes.Outcome
    MAX_ALPHA: the largest alpha
    ```
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


# packages with public names: a name is documented as one of the first that has it
PACKAGES = (
    "hf_fingerprint",
    *("hf_fingerprint.errors", "hf_fingerprint.hub", "hf_fingerprint.training", "hf_fingerprint.blackbox"),
    *("hf_fingerprint.evaluation", "hf_fingerprint.attacks", "hf_fingerprint.privacy", "hf_fingerprint.codes"),
)
PAGES = Path(__file__).parents[1] / "reference"
_BLOCK = re.compile(r"^```\{names\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def public_names() -> dict[str, str]:
    """The full path of each public name."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", None) or _defined(module):
            if not name.startswith("_"):
                found.setdefault(name, f"{package}.{name}")
    return found


def _defined(module: Any) -> list[str]:
    """The classes of a module without `__all__`."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


def listed(text: str) -> list[str]:
    """The full paths of the names that a page lists."""
    return [path for block in _BLOCK.findall(text) for path, _ in _entries(block)]


def _entries(block: str) -> Iterator[tuple[str, str]]:
    for line in block.splitlines():
        name, _, text = line.partition(": ")
        yield public_names().get(name, name), text


@cache
def documented() -> dict[str, str]:
    """The full path of each name on any page, by its last part."""
    return {path.rpartition(".")[2]: path for page in sorted(PAGES.glob("*.md")) for path in listed(page.read_text())}


def expand(text: str) -> str:
    """A page with directives of autodoc in place of its lists of names."""

    def directives(block: "re.Match[str]") -> str:
        entries = "\n".join(_directive(path, text) for path, text in _entries(block[1]))
        return f"```{{eval-rst}}\n{entries}\n```"

    return _BLOCK.sub(directives, text)


def _directive(path: str, text: str) -> str:
    """The directive of a name: of autodoc, or one with the text that is given."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{name} is no public name: give its full path.")
    value = getattr(importlib.import_module(module), name)
    if text:
        return f".. py:data:: {name}\n   :module: {module}\n\n   {text}\n"
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, Exception) else "class"
        return f".. auto{kind}:: {path}\n   :inherited-members: {', '.join(_bases_without_members(value))}\n"
    return f".. autofunction:: {path}"


def _bases_without_members(value: type) -> list[str]:
    """Bases whose members an entry does not repeat: those of other packages or with an entry, and what follows."""
    bases = value.__mro__[1:]
    internal = takewhile(
        lambda base: base.__module__.startswith("hf_fingerprint.") and base.__name__ not in documented(), bases
    )
    return [base.__name__ for base in bases[len(list(internal)) :]]


def _expand_page(app: Sphinx, page: str, source: list[str]) -> None:
    if page.startswith("reference/"):
        source[0] = expand(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _expand_page)
    return {"parallel_read_safe": True}
