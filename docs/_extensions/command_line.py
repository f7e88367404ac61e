"""The page of the command line, from the commands themselves: every command, argument and option with its help."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx


PAGE = "command-line"  # what it holds is followed by the commands
_MARKED = re.compile(r"(`[^`]*`)|(?<![\w-])(--[a-z][\w-]*)|([\[<*])")
_PANELS = {"argument": "Arguments", "option": "Options"}


def commands_as_markdown(command: Any, context: Any, level: int = 2) -> Iterator[str]:
    """Yields the paragraphs on a command and the commands below it, in Markdown."""
    yield f"{'#' * level} {context.command_path}"
    yield _as_markdown(inspect.cleandoc(command.help or ""))
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```console\n$ {context.command_path} {usage}\n```"
    for panel, parameters in _panels(command, context).items():
        yield f"**{panel}**"
        yield "\n\n".join(f"{names}\n: {text or '...'}" for names, text in parameters)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        inner = command.get_command(context, name)
        if not inner.hidden:
            yield from commands_as_markdown(inner, type(context)(inner, context, info_name=name), level + 1)


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Each panel's parameters, as their names and their help."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.name != "help":
            panel = getattr(parameter, "rich_help_panel", None) or _PANELS[parameter.param_type_name]
            found.setdefault(panel, []).append((f"`{record[0]}`", _as_markdown(record[1].replace("\\[", "["))))
    return found


def _as_markdown(text: str) -> str:
    """Help with its options as code, and with nothing that Markdown reads as a link or HTML."""
    return _MARKED.sub(lambda found: found[1] or (found[2] and f"`{found[2]}`") or f"\\{found[3]}", text)


def _append_commands(app: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        from hf_fingerprint.cli.main import app as cli

        command = typer.main.get_command(cli)
        context = command.make_context("hf-fingerprint", [], resilient_parsing=True)
        source[0] += "\n\n" + "\n\n".join(commands_as_markdown(command, context))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _append_commands)
    return {"parallel_read_safe": True}
