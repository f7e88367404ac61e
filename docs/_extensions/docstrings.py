"""Docstrings in Markdown, as the libraries of Hugging Face write them, for autodoc, which reads reST.

[`Name`] becomes a reference to the public name, `code` a literal and a fenced block a code block. Napoleon, which runs
next, reads the sections (Args, Returns, Raises, Attributes).
"""

import importlib
import re
from functools import cache
from typing import Any

from sphinx.application import Sphinx


# packages with public names; a name is documented in the first that has it
PACKAGES = (
    "hf_fingerprint",
    *(f"hf_fingerprint.{name}" for name in ("errors", "hub", "training", "blackbox", "evaluation", "attacks")),
    *(f"hf_fingerprint.{name}" for name in ("privacy", "codes")),
)
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\[`([\w.]+)`\]|``[^`]+``|`([^`]+)`|\[([^\]`]+)\]\((https?://[^)\s]+)\)")


@cache
def public_names() -> dict[str, str]:
    """Each public name, with its full path."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", None) or _defined(module):
            if not name.startswith("_"):
                found.setdefault(name, f"{package}.{name}")
    return found


def _defined(module: Any) -> list[str]:
    """Public classes of a module without `__all__`."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


def to_rest(text: str) -> str:
    """A docstring in reST, from one in Markdown."""
    parts, end = [], 0
    for block in _FENCED.finditer(text):
        indent, language, code = block.groups()
        body = "".join(f"    {line}" if line.strip() else line for line in code.splitlines(keepends=True))
        parts += [_INLINE.sub(_inline, text[end : block.start()])]
        parts += [f"\n{indent}.. code-block:: {language or 'text'}\n\n{body}\n"]
        end = block.end()
    return "".join([*parts, _INLINE.sub(_inline, text[end:])])


def _inline(found: "re.Match[str]") -> str:
    name, code, label, address = found.groups()
    if name:
        return _reference(name)
    if label:
        return f"`{label} <{address}>`__"
    return f"``{code}``" if code else found[0]


def _reference(name: str) -> str:
    first, *rest = name.split(".")
    path = public_names().get(first)
    if path is None:
        return f":py:obj:`.{name}`"
    return f":py:obj:`{name} <{'.'.join([path, *rest])}>`" if rest else f":py:obj:`~{path}`"


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rest("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True}
