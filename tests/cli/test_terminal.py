"""No unfiltered text of a name, file or service reaches a terminal, however it is printed."""

import inspect
import io
import logging
import os
import re
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import typer
from huggingface_hub import constants
from rich.table import Table
from rich.text import Text
from safetensors.numpy import save_file
from typer.models import ArgumentInfo

from hf_fingerprint import Issuer
from hf_fingerprint.blackbox import AccusationCheck, ProofCheck, QueryResult, QueryScore
from hf_fingerprint.blackbox.querying.candidates import SkippedRecord
from hf_fingerprint.blackbox.querying.session import QueryStats
from hf_fingerprint.cli import output, terminal
from hf_fingerprint.cli.main import app, main
from hf_fingerprint.errors import CheckpointError, FingerprintError, FingerprintWarning
from hf_fingerprint.extraction import Lineage
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.printable import printable
from hf_fingerprint.tracing import ComparedBase, RecipientScore, RecordedCopy, SkippedSource, TraceResult
from tests.helpers.loopback_suspect import LoopbackSuspect
from tests.helpers.quick_age import lock_quickly
from tests.helpers.screens import Screen, show_bars
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, plain_arrays, save_plain


NASTY = (
    "\x1b[31mred\x1b]0;title\x07\x9b2J",  # escape sequences
    "a\nError: all is well\r\x0b\x85",  # lines that nobody wrote
    "\u202egnp.exe\u2066\u200f",  # turned writing
    "a\u200bb\u00ad\u2060\ufeff",  # what has no width
    "x\u2028y\u2029z\t",
    "\udcff",  # half of a pair, which UTF-8 does not have
    "[red]x[/red][link=http://evil.example]y[/link]:bomb:",
)
HOSTILE = "".join(NASTY)
FEW = ["--amplitude", "0.003", "--coalition", "3", "--expected-recipients", "4"]


def check(text: str) -> str:
    """Holds a text to what may reach a terminal; returns it."""
    strange = {c for c in text if not c.isprintable() and unicodedata.category(c) != "Zs"} - {"\n"}
    assert not strange, f"{sorted(strange)} in {text!r}"
    assert not any(line.startswith("Error: all is well") for line in text.splitlines())
    return text


@pytest.fixture
def shown(capfd) -> Iterator[Any]:
    """Both streams, held to what may reach a terminal."""

    def shown() -> str:
        out, err = capfd.readouterr()
        return check(out) + check(err)

    yield shown


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_what_does_not_show_is_spelled_out_and_the_rest_stays(name):
    found = printable(name)

    assert check(found) == printable(found) and "\n" not in found
    assert found.encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass") == name.encode(
        "utf-16", "surrogatepass"
    )


def test_plain_names_of_any_script_stay_as_they_are():
    name = "Ada Lovelace, 艾达 Лавлейс ada\u00a0l é\u3000🙂 \\x1b [x]"

    assert printable(name) is not None and printable(name) == name


def test_every_way_to_print_a_line_is_filtered(shown):
    output.echo(HOSTILE)
    output.echo_err(HOSTILE)
    output.print_json({HOSTILE: [HOSTILE, Path("x\x1b")]})
    output.print_json_line({HOSTILE: HOSTILE})

    assert len(shown().splitlines()) == 1 + 1 + 6 + 1


def test_every_way_to_print_by_rich_is_filtered_and_no_markup_is_obeyed(capfd):
    place = terminal.console()
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    for cell in NASTY:
        table.add_row(cell)
        table.add_row(Text(cell, style="bold"))
    place.print(table, width=60)
    place.print(HOSTILE, Text(HOSTILE))
    out = check(capfd.readouterr().out)

    assert "[red]x[/red][link=http://evil.example]y[/link]:bomb:" in "".join(out.split("\n"))
    assert {len(line) for line in out.splitlines() if line.startswith(("│", "┃"))} == {
        max(len(line) for line in out.splitlines() if line.startswith("┏"))
    }


def test_bars_on_a_terminal_are_filtered_and_lines_are_written_above_them(monkeypatch):
    screen = show_bars(monkeypatch)
    with terminal.sanitized_output():
        with output.progress_bars() as progress:
            progress(HOSTILE, 0, None)
        with output.progress_bars() as progress:
            progress(HOSTILE, 1, 2)
            output.echo_err(HOSTILE)

    seen = screen.getvalue()
    assert "\\x1b[31mred" in seen and "\x1b[31mred" not in seen
    assert "50%" in seen and not re.search(r"%\|[^\r]*\\x1b\[31mred", seen)
    check(seen.replace("\r", ""))


def test_what_other_packages_write_is_filtered(shown):
    from tqdm import tqdm

    logger = logging.getLogger("huggingface_hub.of_a_test")
    with terminal.sanitized_output():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.propagate = False
        try:
            logger.warning("got %s", HOSTILE.replace("\n", ""))
        finally:
            logger.removeHandler(handler)
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
        warnings.warn(HOSTILE, FingerprintWarning, stacklevel=1)
        sys.stdout.write(HOSTILE.replace("\n", ""))
        sys.stderr.writelines([HOSTILE.replace("\n", "")])

    assert "Warning: \\x1b[31mred" in shown()
    with terminal.sanitized_output():
        tqdm([1], desc=HOSTILE.replace("\n", ""), disable=False, file=sys.stderr, leave=False).close()


def test_bars_of_tqdm_move_and_their_names_do_not(monkeypatch):
    from tqdm import tqdm

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.sanitized_output():
        for position in range(2):
            tqdm([1], desc="\x1b[A\r" + HOSTILE.replace("\n", ""), position=position, file=sys.stderr).close()

    seen = screen.getvalue()
    assert "\x1b[A" in seen and "\\x1b[A\\r\\x1b[31mred" in seen  # one of tqdm's own, and one of the name
    check(re.sub(r"\x1b\[A|\r", "", seen))


def test_errors_and_warnings_of_the_library_show_on_one_line():
    for kind in (FingerprintError, CheckpointError, FingerprintWarning):
        assert check(str(kind(HOSTILE))) == printable(HOSTILE)
        assert check(f"{kind(HOSTILE)}") and kind("plain").args == ("plain",)


def test_a_requested_traceback_is_filtered():
    arguments = ["x", "trace", "\x1b[2Jno", "--vault", "v"]
    code = f"import sys\nfrom hf_fingerprint.cli import main\nsys.argv = {arguments!r}\nmain.run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=debugging())

    assert "Traceback" in done.stderr and done.returncode == 1
    check(done.stderr)


def debugging() -> dict[str, str]:
    return os.environ | {"HF_FINGERPRINT_TRACEBACK": "1", "PYTHONPATH": str(Path(terminal.__file__).parents[2])}


def test_names_that_an_encoding_does_not_have_are_spelled_out(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    with terminal.sanitized_output():
        output.echo("艾达")
        terminal.console().print(Text("艾达"))

    stream.flush()
    assert stream.buffer.getvalue() == b"\\u827e\\u8fbe\n" * 2
    assert stream.errors == "strict"


def hostile(value: Any) -> Any:
    """The same with every text in it hostile."""
    if isinstance(value, Outcome) or value is None:
        return value
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, tuple | list):
        return type(value)(map(hostile, value)) if not hasattr(value, "_fields") else type(value)(*map(hostile, value))
    if is_dataclass(value):
        return replace(value, **{each.name: hostile(getattr(value, each.name)) for each in fields(value) if each.init})
    return value


def test_results_of_hostile_texts_alone_are_shown(shown):
    score = RecipientScore("x", "x", 60.0, -300.0, True, "x", "pushed")
    trace = TraceResult(
        suspect="x",
        revision="x",
        base="x",
        base_source="x",
        outcome=Outcome.ACCUSED,
        accused=(score,),
        scores=(score, replace(score, accused=False)),
        recipients_tested=2,
        recipients_covered=2,
        tensors_matched=16,
        tensors_marked=17,
        weights_read=131_000,
        weights_dropped=328,
        lineage=Lineage(True, 0.998, 0.0123),
        alpha=1e-6,
        threshold=6.5,
        rounds=2,
        files=("x", "y"),
        files_not_read=(SkippedSource("x", "x", "x"),),
        bases_read=(ComparedBase("x", "x", 2, "x"),) * 2,
        bases_not_read=(SkippedSource("x", "x", "x"),),
        on_record=(RecordedCopy("x", "x", "x", "x", "x"),),
    )
    output.print_result(hostile(replace(trace, claim="x")))
    stats = QueryStats(queried=40, answered=39, decoys_queried=4, resumed=0, retries=0, stop_reason="proven")
    query = QueryResult(
        "x", ("x", "y"), (QueryScore("x", "x", 17, 18, -12.0, True, "x"),), 8, 10, 1e-6, stats, Outcome.ACCUSED
    )
    query = replace(hostile(replace(query, skipped=(SkippedRecord("x", "x", 3),), non_answering=("x",))), stats=stats)
    output.print_result(query)

    assert "\\x1b[31mred" in shown().replace("\n", "")
    proven = {"counted": 9, "agreeing": 9, "log10_bound": -9.0, "holds": True, "copies": 3, "alpha": 1e-6}
    texts = {each.name: "x" for each in fields(AccusationCheck) if each.name not in proven}
    check = AccusationCheck(**texts | proven | {"opened": True, "published": True})
    output.print_result(hostile(ProofCheck((check,))))
    shown()


def commands(group: typer.Typer = app, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands that there are: their words, and their functions."""
    for command in group.registered_commands:
        yield (*before, command.name or command.callback.__name__.replace("_", "-")), command.callback
    for below in group.registered_groups:
        yield from commands(below.typer_instance, (*before, below.name))


COMMANDS = dict(commands())


def filled(function: Any, optional: bool) -> list[str]:
    """Arguments for a command: a hostile name wherever there may be a name."""
    found = []
    for each in inspect.signature(function).parameters.values():
        kind, option = get_args(each.annotation)
        kinds = (kind, *get_args(kind))
        choices = [choice for each_kind in kinds if get_origin(each_kind) is Literal for choice in get_args(each_kind)]
        value = choices[0] if choices else "1" if {int, float} & {*kinds} else HOSTILE
        if kind is not bool and (each.default is each.empty or optional):
            found += [value] if isinstance(option, ArgumentInfo) else [option.default, value]
    return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A vault whose rows are hostile, as versions before could write them, and a model that is."""
    root = tmp_path_factory.mktemp("hostile")
    vault, model = new_vault(root / "vault"), save_plain(root / "model", plain_arrays(blocks=1))
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "alice")
    suspect = root / f"sus{HOSTILE.replace('/', '')}"
    suspect.mkdir()
    names = [name for name in NASTY if "\udcff" not in name]
    save_file(
        plain_arrays(blocks=1) | {name: np.ones((3, 3), np.float16) for name in names}, suspect / "model.safetensors"
    )
    (suspect / f"x{HOSTILE.replace('/', '')}.bin").write_bytes(b"no weights")
    with vault.connect() as connection:
        connection.execute("UPDATE copies SET recipient = ?", (NASTY[0] + NASTY[1] + NASTY[2],))
    return SimpleNamespace(root=root, vault=vault.folder, model=model, suspect=suspect)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder to run in, a passphrase, no Hub, and identities that are locked in no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hf_fingerprint.vault.store.encrypt_identity", lock_quickly)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("optional", [False, True], ids=["", "all options"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_shows_hostile_arguments_spelled_out(words, optional, shown):
    code = main([*words, *filled(COMMANDS[words], optional)])

    said = shown()
    assert code in (0, 1, 2, 3) and "unexpected" not in said


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "arguments",
    [
        "recipients VAULT",
        "trace SUSPECT VAULT",
        "trace ALICE VAULT --json",
        "verify SUSPECT VAULT --recipient alice",
        "hash SUSPECT",
        "inspect SUSPECT FEW",
        "inspect SUSPECT FEW --json",
        "issue SUSPECT --recipient bob --out out VAULT FEW",
        "vault add SUSPECT VAULT FEW",
        "vault issuer list VAULT",
        "vault issuer add age1x --name HOSTILE VAULT",
        "no-such-command",
        "--HOSTILE",
        "HOSTILE",
        "trace SUSPECT VAULT --max-mb HOSTILE",
    ],
)
def test_hostile_files_tensors_and_rows_are_shown_spelled_out(arguments, scene, shown):
    places = {"VAULT": ["--vault", str(scene.vault)], "SUSPECT": [str(scene.suspect)], "HOSTILE": [HOSTILE]}
    places |= {"ALICE": [str(scene.root / "alice")], "--HOSTILE": [f"--{HOSTILE}"], "FEW": FEW}
    main([part for word in arguments.split() for part in places.get(word, [word])])

    shown()


@pytest.mark.usefixtures("alone")
def test_the_response_of_a_service_is_escaped(scene, shown):
    (scene.root / "labels").write_text("\n".join(f"class {i}" for i in range(10)))
    with LoopbackSuspect(lambda label: {HOSTILE[:40]: HOSTILE[:40]}) as suspect:
        main(["query", suspect.url, "--vault", str(scene.vault), "--labels", str(scene.root / "labels")])

    shown()
