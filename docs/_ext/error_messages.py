"""Lists every error message of the package, from its source, for the troubleshooting page."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


BASES = {"FingerprintError", "FingerprintWarning", "ValueError"}


class Message(NamedTuple):
    """One message: its error class, the module that raises it, what is wrong and what to do."""

    error: str
    module: str
    line: int
    text: str


def messages(package: Path) -> list[Message]:
    """The messages of all `raise` statements with an error of this package, by module and line."""
    found = []
    classes = _error_classes(package)
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function, node in _raises(tree):
            name = _called_name(node)
            if name in classes and node.args:
                text = _text(node.args[0], function)
                found.append(Message(name, path.relative_to(package).as_posix(), node.lineno, text))
    return found


def _error_classes(package: Path) -> set[str]:
    return {node.name for node in ast.parse((package / "errors.py").read_text()).body if isinstance(node, ast.ClassDef)}


def _called_name(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _raises(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Each call of a name that ends in `Error` or `Warning`, with the function around it."""

    def walk(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.AST, ast.Call]]:
        inner = node if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call) and _called_name(node).endswith(("Error", "Warning")):
            yield inner, node
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(tree, tree)


def _text(node: ast.AST, function: ast.AST) -> str:
    """The text of a message, with what varies as words in capitals."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, function) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, function)
    if isinstance(node, ast.Name):
        values = [
            each.value
            for each in ast.walk(function)
            if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in each.targets)
        ]
        if len(values) == 1 and isinstance(values[0], (ast.Constant, ast.JoinedStr)):
            return _text(values[0], function)
        return node.id.upper()
    if isinstance(node, ast.Attribute):
        return node.attr.upper()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, function) + _text(node.right, function)
    return "..."


if __name__ == "__main__":
    import sys

    for each in messages(Path(sys.argv[1])):
        print(each.error, each.module, each.line, each.text)
