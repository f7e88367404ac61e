"""The command line: parses, calls, prints. Exit codes: 0 done or someone accused, 1 nobody accused, 2 an error."""

import os
import sys
from typing import Any

import typer

import hf_fingerprint
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
from hf_fingerprint.errors import FingerprintError


# recent typer brings its own click and older versions use the public one, so the class is found through typer
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_TRACEBACK_VARIABLE = "HF_FINGERPRINT_TRACEBACK"
_INTERRUPTED_EXIT_CODE = 130
_INTERRUPTED_MESSAGE = "Stopped before the end; run the same command again to go on."
EPILOG = f"Set {_TRACEBACK_VARIABLE}=1 to see where an error came from."

app = typer.Typer(
    name="hf-fingerprint",
    help=(hf_fingerprint.__doc__ or "").splitlines()[0],
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(vault_care_commands.app, name="vault")
app.command("design")(design_command.design)
app.command("inspect")(commands.inspect)
app.command("triggers")(triggers_command.triggers)
app.command("issue")(issue_commands.issue)
app.command("push")(issue_commands.push)
app.command("trace")(commands.trace)
app.command("verify")(commands.verify)
app.command("query")(query_command.query)
app.command("check-proof")(query_command.check_proof)
app.add_typer(key_images_command.app, name="key-images")
app.command("watch")(commands.watch)
app.command("evaluate")(evaluate_command.evaluate)
app.command("recipients")(commands.recipients)
app.command("hash")(issue_commands.content_hash)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code; errors and warnings are one line each on stderr."""
    with terminal.sanitized_output():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    try:
        result = app(args=arguments, standalone_mode=False)
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
        if not error.format_message():  # no command: the help was printed
            return 2
        return _fail(f"{error.format_message()} Try `hf-fingerprint --help`.")
    except UnicodeEncodeError as error:  # bytes in an argument, or in the name of a file, that are no text
        return _fail(f"{error.object[:200]} holds bytes that are not UTF-8: give another name.", error)
    except Exception as error:  # a mistake of ours; its text may hold anything, so only its kind is shown
        return _fail(
            f"An unexpected {type(error).__name__}: run again with {_TRACEBACK_VARIABLE}=1 and report what it shows.",
            error,
        )


def _fail(sentence: str, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get(_TRACEBACK_VARIABLE):
        raise error
    terminal.echo_err("Error: " + " ".join(sentence.split()))
    return 2


def run() -> None:
    """The console script."""
    sys.excepthook = terminal.show_traceback
    sys.exit(main())
