"""The command line. Exit codes: 0 done or somebody accused, 1 nobody accused, 2 an error, 3 not readable."""

import os
import re
import sys
from contextlib import nullcontext, suppress
from functools import cache
from typing import Annotated, Any

import typer

import hf_fingerprint
from hf_fingerprint.choices import wrong_choice
from hf_fingerprint.cli import (
    commands,
    design_command,
    evaluate_command,
    issue_commands,
    key_images_command,
    query_command,
    terminal,
    triggers_command,
    vault_care_commands,
)
from hf_fingerprint.cli.options import option
from hf_fingerprint.errors import FingerprintError


# recent versions of typer bundle click, older ones import it, so the class is found through typer
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_TRACEBACK_VARIABLE = "HF_FINGERPRINT_TRACEBACK"
_INTERRUPTED_EXIT_CODE = 130
_INTERRUPTED_MESSAGE = "Interrupted: run the command again to resume."
EPILOG = f"Set {_TRACEBACK_VARIABLE}=1 for the traceback of an error."
NAME = "hf-fingerprint"
_COMPLETION_VARIABLE = "_HF_FINGERPRINT_COMPLETE"  # set by the shell's completion script
_VERSIONED = ("torch", "timm", "transformers")
_WRONG_CHOICE = re.compile(r"Invalid value for '([^']*)': (?:Value error, )?'(.*)' is not one of (.*)\.", re.DOTALL)

app = typer.Typer(
    name=NAME,
    help=(hf_fingerprint.__doc__ or "").splitlines()[0],
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(vault_care_commands.app, name="vault")
app.command("design")(design_command.design)
app.command("inspect")(commands.inspect)
app.command("triggers")(triggers_command.triggers)
app.command("issue")(issue_commands.issue)
app.command("push")(issue_commands.push)
app.command("trace")(commands.trace)
app.command("trace-all")(commands.trace_all)
app.command("verify")(commands.verify)
app.command("query")(query_command.query)
app.command("check-proof")(query_command.check_proof)
app.add_typer(key_images_command.app, name="key-images")
app.command("watch")(commands.watch)
app.command("evaluate")(evaluate_command.evaluate)
app.command("recipients")(commands.recipients)
app.command("hash")(issue_commands.content_hash)


def _print_version(wanted: bool) -> None:
    """Prints the versions of this package and of those that its results depend on, for bug reports."""
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        found = [f"Python {sys.version.split()[0]}"]
        for package in _VERSIONED:
            with suppress(PackageNotFoundError):
                found.append(f"{package} {version(package)}")
        terminal.echo(f"{NAME} {hf_fingerprint.__version__} ({', '.join(found)})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, option("--version", "Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Errors and warnings are printed to stderr, one line each."""
    completes = _COMPLETION_VARIABLE in os.environ  # prints words of this program alone, with tabs between them
    with nullcontext() if completes else terminal.sanitized_output():
        return _run(arguments)


@cache
def build_command() -> Any:
    """The command of `app`, built once. Its flags are `False` if not given, since typer imports pydantic to check a
    `None`, which takes a third of the time of `--help`."""
    command = typer.main.get_command(app)
    groups: list[Any] = [command]
    for group in groups:
        groups += [inner for inner in group.commands.values() if hasattr(inner, "commands")]
        for flag in group.get_params(typer.Context(group)):
            if flag.default is None and getattr(flag, "is_flag", False):
                flag.default = False
    return command


def _run(arguments: list[str] | None) -> int:
    if not hasattr(os, "preadv"):
        return _fail(f"{NAME} runs on Linux and macOS alone: on Windows, run it in WSL.")
    try:
        result = build_command()(args=arguments, prog_name=NAME, standalone_mode=False)
        if result == _INTERRUPTED_EXIT_CODE:
            return _fail(_INTERRUPTED_MESSAGE)
        return result if isinstance(result, int) else 0
    except FingerprintError as error:
        return _fail(str(error), error)
    except (typer.Abort, KeyboardInterrupt, EOFError):
        return _fail(_INTERRUPTED_MESSAGE)
    except typer.Exit as stop:
        return stop.exit_code
    except _UsageError as error:
        if not error.format_message():  # without a command, the help was printed
            return 2
        command = NAME if error.ctx is None else error.ctx.command_path
        return _fail(f"{_usage_sentence(error)} Try `{command} --help`.")
    except UnicodeEncodeError as error:  # an argument or file name that is not UTF-8
        return _fail(f"{error.object[:200]} is not valid UTF-8: use another name.", error)
    except Exception as error:  # a bug; its message may hold secrets, so only its class is shown
        return _fail(
            f"An unexpected {type(error).__name__}: run the command again with {_TRACEBACK_VARIABLE}=1 "
            "and report the output.",
            error,
        )


def _usage_sentence(error: Any) -> str:
    """What is wrong with a command line, with the closest option or choice."""
    if getattr(error, "possibilities", None):
        return f"{error.message.partition('.')[0]}: did you mean {' or '.join(error.possibilities)}?"
    message = error.format_message().replace(". Did you mean", ": did you mean")
    message += "" if message.endswith((".", "?")) else "."
    wrong = _WRONG_CHOICE.fullmatch(message)
    return message if wrong is None else wrong_choice(wrong[1], wrong[2], re.findall("'([^']*)'", wrong[3]))


def _fail(sentence: str, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get(_TRACEBACK_VARIABLE):
        raise error
    terminal.echo_err("Error: " + " ".join(sentence.split()))
    return 2


def run() -> None:
    """The console script."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes memory in large pages, which are quicker to get
    sys.excepthook = terminal.show_traceback
    sys.exit(main())
