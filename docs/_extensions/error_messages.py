"""The list of all errors on the troubleshooting page, read from the package's source."""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from sphinx.application import Sphinx


PAGE = "troubleshooting"  # what it holds is followed by the errors
PACKAGE = Path(__file__).parents[2] / "hf_fingerprint"
AREAS = {
    "checkpoints": "Models, files and the Hub's downloads",
    "models": "Building a model",
    "carriers": "Carriers",
    "codes": "Codes",
    "registration": "Registering a base",
    "issuing": "Issuing",
    "vault": "Vault",
    "tracing": "Tracing",
    "blackbox": "Queries, trigger sets and key images",
    "training": "Training",
    "privacy": "Private training",
    "hub": "Publishing",
    "attacks": "Attacks",
    "evaluation": "Evaluation",
    "cli": "Command line",
}
_VARIES = re.compile(r"\b_?[A-Z][A-Z_0-9]{2,}\b")


class Message(NamedTuple):
    """A message: the package and the class of its error, what is wrong, and what to do. What varies is in capitals."""

    package: str
    error: str
    problem: str
    remedy: str


def messages(package: Path = PACKAGE) -> Iterator[Message]:
    """The messages of all errors and warnings of this package, in the order of its packages."""
    errors = ast.parse((package / "errors.py").read_text()).body
    classes = {node.name for node in errors if isinstance(node, ast.ClassDef)}
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        for function, call in _calls(ast.parse(path.read_text())):
            if _name(call) in classes and call.args:
                problem, _, remedy = _text(call.args[0], function).strip().rpartition(": ")
                if _says_something(problem + remedy):
                    yield Message(part, _name(call), *((problem, remedy) if problem else (remedy, "")))


def _calls(tree: ast.AST, function: ast.AST | None = None) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Each call, with the function that it is in."""
    function = tree if function is None or isinstance(tree, ast.FunctionDef) else function
    if isinstance(tree, ast.Call):
        yield function, tree
    for child in ast.iter_child_nodes(tree):
        yield from _calls(child, function)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _text(node: ast.AST, function: ast.AST) -> str:
    """The text of an expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, function) for part in parts)
        case ast.FormattedValue(value=value):
            return _text(value, function)
        case ast.BinOp(left=left, right=right, op=ast.Add()):
            return _text(left, function) + _text(right, function)
        case ast.Attribute(attr=name):
            return name.strip("_").upper()
        case ast.Name(id=name):
            assigned = [
                each.value
                for each in ast.walk(function)
                if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in each.targets)
            ]
            if len(assigned) == 1 and isinstance(assigned[0], ast.Constant | ast.JoinedStr):
                return _text(assigned[0], function)
            return name.strip("_").upper()
    return "..."


def _says_something(text: str) -> bool:
    return len(re.findall(r"[a-z]{2,}", _VARIES.sub("", text))) > 3


def errors_as_markdown() -> str:
    """All messages as Markdown tables, one for each package."""
    parts = []
    everything = sorted(messages(), key=lambda each: list(AREAS).index(each.package) if each.package in AREAS else 99)
    for title, found in groupby(everything, key=lambda each: AREAS.get(each.package, "Configuration")):
        rows = dict.fromkeys(f"| {_cell(each.problem)} | {_cell(each.remedy)} | `{each.error}` |" for each in found)
        parts += [f"### {title}", "\n".join(["| message | what to do | error |", "| --- | --- | --- |", *rows])]
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    shown = re.sub(r"([\\|*<>\[\]$])", r"\\\1", text.replace("\n", " "))
    shown = re.sub(r"``?([^`]*)``?", r"\1", shown)
    return _VARIES.sub(lambda found: f"*{found[0].strip('_').lower().replace('_', ' ')}*", shown)


def _append_errors(app: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        source[0] += "\n\n" + errors_as_markdown()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _append_errors)
    return {"parallel_read_safe": True}
