"""Docstrings in Markdown, as the libraries of Hugging Face write them, for autodoc, which reads reST.

[`Name`] becomes a reference to the entry of that name, or code if the package uses the name but the reference has no
entry for it; `code` becomes a literal and a fenced block a code block. Napoleon, which runs next, reads the sections
(Args, Returns, Raises, Attributes).
"""

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

from docs._extensions.reference import documented


_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\[`(~?[\w.]+)`\]|``[^`]+``|`([^`]+)`|\[([^\]`]+)\]\((https?://[^)\s]+)\)")
_JOINT = re.compile(r"^( +)(\w+(?:, \w+)+)( \(.+\):.*\n(?:\1 +.*\n)*)", re.MULTILINE)  # one text for several names


def to_rest(text: str) -> str:
    """A docstring in reST, from one in Markdown."""
    text = _JOINT.sub(lambda found: "".join(found[1] + name + found[3] for name in found[2].split(", ")), text)
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
    """A reference to a name, or to an attribute or method of it; after `~` only that is shown."""
    first, *rest = name.removeprefix("~").split(".")
    shown = rest[-1] if rest and name.startswith("~") else ".".join([first, *rest])
    path = documented().get(first, first)
    if path == first and first in internal_names():
        return f"``{shown}``"
    return f":py:obj:`{shown} <{'.'.join([path, *rest])}>`" if rest else f":py:obj:`~{path}`"


@cache
def internal_names() -> set[str]:
    """The functions and classes that modules of the package define or import."""
    trees = [ast.parse(path.read_text()) for path in (Path(__file__).parents[2] / "hf_fingerprint").rglob("*.py")]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.alias)}


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # napoleon takes "Text: more" for a type here, unless a line comes first; this one is an escaped line break
    first = ["\\"] if what in ("attribute", "property") else []
    lines[:] = first + to_rest("\n".join(lines)).split("\n")


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skips a function that is the default of a dataclass's field: it is no method."""
    return True if what == "class" and inspect.isfunction(obj) and obj.__qualname__ == obj.__name__ else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"
    return {"parallel_read_safe": True}
