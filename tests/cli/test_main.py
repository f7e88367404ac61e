"""The command line itself: versions, help, completion, options with one meaning, and remedies for typing errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import hf_fingerprint
from hf_fingerprint import choices
from hf_fingerprint.cli.main import app, main
from hf_fingerprint.config import FingerprintConfig, PublishConfig, help_texts
from tests.helpers.small_models import new_vault


def visit(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups, with their words."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from visit(inner, (*words, name))


ROOT = typer.main.get_command(app)
COMMANDS = dict(visit(ROOT))
OPTIONS = [(words, each) for words, command in COMMANDS.items() for each in command.params if each.opts[0] != "--help"]


def plain(text: str) -> str:
    """Help without its frames, words joined by single spaces."""
    return " ".join("".join(" " if c in "│╭╮╰╯─" else c for c in text).split())


def test_the_version_is_one_line_with_the_versions_that_results_depend_on(run):
    code, out, err = run("--version")

    assert (code, err) == (0, "")
    assert out.startswith(f"hf-fingerprint {hf_fingerprint.__version__} (Python 3.")
    assert "torch " in out and "timm " in out and "transformers " in out
    assert len(out.splitlines()) == 1


def test_the_package_is_a_module_that_runs():
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "hf_fingerprint", *arguments], capture_output=True, text=True)

    helped, failed = run("--help"), run("recipients", "--vault", "nowhere")

    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: hf-fingerprint" in helped.stdout
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("Error: nowhere holds no vault")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_every_word_of_every_help_text(words, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run(*words, "--help")
    said = plain(out)

    assert code == 0
    assert plain(COMMANDS[words].help) in said
    for each in COMMANDS[words].params:
        assert plain(each.help.replace("\\[", "[")) in said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(words, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run(*words, "--help")[1]

    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_brackets_show_in_help(run):
    for command in ("trace", "verify"):
        assert "org/name[@revision]" in plain(run(command, "--help")[1])


def test_the_short_help_of_a_command_says_no_exit_codes(run):
    assert "Exit code" not in run("--help")[1]


def test_options_are_in_panels(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = run("issue", "--help")[1]
    panels = {part.split()[0]: part for part in out.split("╭─")[1:]}

    assert list(panels) == ["Arguments", "Options", "Common", "Hub", "Code"]
    assert "--recipient" in panels["Options"] and "--vault" in panels["Common"] and "--gated" in panels["Hub"]
    for name in help_texts(FingerprintConfig):
        assert f"--{name.replace('_', '-')} " in panels["Code"]


def test_an_option_has_one_meaning_in_all_commands():
    """Each name has one help text, but for details of a command; and each name of a config class has the class's."""
    texts: dict[str, set[str]] = {}
    for _, option in OPTIONS:
        if option.opts[0].startswith("--"):
            texts.setdefault(option.opts[0], set()).add(option.help)
    several = {name for name, each in texts.items() if len(each) > 1}

    assert several == {
        "--ancestor",  # to be recorded, or the files of the one on record
        "--account",  # one, or one for each recipient
        "--identity",  # of the vault, or of either of two
        "--max-mb",  # of one suspect, or of each of several
        "--new-passphrase-file",
        "--out",  # each command says what it writes there
        "--public-key",
        "--recipient",  # one or several
        "--token-env",  # of the Hub, or of a service
    }
    for config in (FingerprintConfig, PublishConfig):
        for name, text in help_texts(config).items():
            assert texts.get(f"--{name.replace('_', '-')}", {text}) == {text}


def test_the_vault_of_every_command_defaults_to_the_environment():
    of_vaults = [(words, each) for words, each in OPTIONS if each.opts[0] == "--vault" or each.envvar]

    assert len(of_vaults) > 20
    for words, each in of_vaults:
        assert each.envvar == "HF_FINGERPRINT_VAULT", words
    assert {words for words, each in of_vaults if each.opts[0] != "--vault"} == {("vault", "init"), ("vault", "pull")}


def test_a_vault_in_the_environment_need_not_be_repeated(run, tmp_path, monkeypatch):
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    for name in ("one", "two"):
        monkeypatch.setenv("HF_FINGERPRINT_VAULT", str(tmp_path / name))
        assert run("vault", "init", "--passphrase-file", tmp_path / "passphrase")[0] == 0
    assert run("recipients") == (0, "0 copies, 0 recipients\n", "")

    new_vault(tmp_path / "three")
    out = run("vault", "check", "--locked", "--vault", tmp_path / "three")[1]

    assert str(tmp_path / "three") in out and "two" not in out
    monkeypatch.setenv("HF_FINGERPRINT_VAULT", "")
    assert "Missing option '--vault'" in run("recipients")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trce", "x"], "No such command 'trce': did you mean 'trace', 'trace-all'?"),
        (["vault", "intt"], "No such command 'intt': did you mean 'init'?"),
        (["trace", "x", "--identitty", "y"], "--identitty: did you mean --identity?"),
        (["inspect", "x", "--code", "tardos-code"], "`--code` must be one of tardos, nuida, fair_signs, got tardos"),
        (["inspect", "x", "--code", "Tardoz"], "got Tardoz: did you mean tardos?"),
        (
            ["query", "x", "--request-format", "jsn"],
            "must be one of raw, json, multipart, got jsn: did you mean json?",
        ),
        (["design", "--strategy", "averege"], "got averege: did you mean average?"),
        (
            ["evaluate", "m", "--data", "d", "--out", "o", "--attacks", "prune-row"],
            "did you mean prune-rows",
        ),
        (["evaluate", "m", "--data", "d", "--out", "o", "--attacks", "qqq"], "qqq: choose among finetune"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_typing_error_gets_the_closest_name(arguments, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


def test_closed_choices_of_options_are_those_of_python(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = run("issue", "--help")[1] + run("query", "--help")[1]

    for each in (choices.LAYOUTS, choices.FAMILIES, choices.KINDS, choices.GATES, choices.REQUEST_FORMATS):
        assert "|".join(each) in out


def complete(shell: str, line: str, **variables: str) -> str:
    """What completion says to a begun line, in a process as a shell starts it."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": line}
    words |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_HF_FINGERPRINT_COMPLETE": f"complete_{shell}"}
    code = "import sys; from hf_fingerprint.cli.main import run; sys.argv[0] = 'hf-fingerprint'; run()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | words | variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("hf-fingerprint tr", ["triggers", "trace", "trace-all"]),
        ("hf-fingerprint vault is", ["issuer"]),
        ("hf-fingerprint inspect model --cal", ["--calibration", "--calibration-images"]),
        ("hf-fingerprint issue model --output-kind ", list(choices.KINDS)),
        ("hf-fingerprint evaluate model --attacks prune-2-of-4,half,dummy-c", ["prune-2-of-4,half,dummy-cancelling"]),
        ("hf-fingerprint verify model --recipient ", []),
    ],
)
def test_commands_options_and_choices_are_completed_and_no_vault_is_read(line, found, tmp_path):
    new_vault(tmp_path / "vault")
    (tmp_path / "vault" / "vault.db").chmod(0)

    assert complete("bash", line, HF_FINGERPRINT_VAULT=str(tmp_path / "vault")).split() == found


def test_completion_of_fish_has_the_tabs_that_fish_needs():
    assert complete("fish", "hf-fingerprint hash").startswith("hash\tPrint a model's content hash")


def test_the_completion_script_is_shown(run, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code = "import sys; from hf_fingerprint.cli.main import run; sys.argv = ['x', '--show-completion', 'bash']; run()"
    script = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    assert "_HF_FINGERPRINT_COMPLETE=complete_bash" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_a_system_without_preadv_gets_one_sentence(run, monkeypatch):
    monkeypatch.delattr(os, "preadv")

    assert run("hash", "model")[::2] == (
        2,
        "Error: hf-fingerprint runs on Linux and macOS alone: on Windows, run it in WSL.\n",
    )
    assert main(["--version"]) == 2


@pytest.mark.parametrize("words", [(), ("trace",), ("vault", "issuer", "add")], ids=" ".join)
def test_help_loads_nothing_that_it_does_not_need(words):
    code = "import sys; from hf_fingerprint.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}

    assert {"typer", "rich"} <= loaded
    assert loaded.isdisjoint(("torch", "numpy", "scipy", "huggingface_hub", "cryptography", "pydantic"))
