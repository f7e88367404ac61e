"""The page of the command line has every command and option with its help."""

import typer

from docs._extensions.command_line import commands_as_markdown
from hf_fingerprint.cli.main import app


def page_of(application: typer.Typer) -> str:
    command = typer.main.get_command(application)
    return "\n\n".join(commands_as_markdown(command, command.make_context("tool", [], resilient_parsing=True)))


def options_of(command) -> set[str]:
    found = {option for each in command.params if not each.hidden for option in each.opts if each.name != "help"}
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


def test_every_option_and_command_is_on_the_page():
    page, command = page_of(app), typer.main.get_command(app)

    assert not {option for option in options_of(command) if option.startswith("--") and f"`{option}" not in page}
    for name in ("design", "issue", "trace", "vault init", "key-images export"):
        assert f" tool {name}\n" in page, name


def test_help_is_read_as_text():
    toy = typer.Typer()

    @toy.command()
    def run(
        path: str = typer.Argument(help="A [file] or <folder>."),
        size: int = typer.Option(3, "--size", help="Not with --other-one or `a[b]`.", rich_help_panel="Common"),
        secret: str = typer.Option("", "--secret", hidden=True),
    ) -> None:
        """Runs * things."""

    page = page_of(toy)

    assert page.startswith("## tool\n\nRuns \\* things.\n\n```console\n$ tool [OPTIONS]")
    assert "**Arguments**\n\n`path" in page and ": A \\[file] or \\<folder>." in page
    assert "**Common**\n\n`--size" in page and ": Not with `--other-one` or `a[b]`." in page
    assert "--secret" not in page and "--help" not in page
