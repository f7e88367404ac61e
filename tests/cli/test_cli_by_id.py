import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hf_fingerprint import Issuer
from hf_fingerprint.cli.main import main
from tests.helpers.loopback_hub import Fault, LoopbackHub
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A vault with two copies, on the disk, and its passphrase in a file. Not to be added to."""
    root = tmp_path_factory.mktemp("shared")
    vault, model = new_vault(root / "vault"), save_plain(root / "model")
    (root / "passphrase").write_text(PASSPHRASE)
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {copy.recipient: copy.path for copy in issuer.issue_all(["alice", "[bold]bob"], root / "copies")}
    return SimpleNamespace(
        copies=copies, model=model, options=["--vault", vault.folder, "--passphrase-file", root / "passphrase"]
    )


@pytest.fixture
def hub(tmp_path, monkeypatch, shared) -> Iterator[LoopbackHub]:
    """A Hub with alice's copy, the base, and a gated copy, which is read in looks that fit it."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    monkeypatch.setattr("hf_fingerprint.extraction.looks.FIRST_LOOK_WEIGHTS", 1 << 14)
    monkeypatch.setenv("COLUMNS", "200")
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        server.add("org/leak", shared.copies["alice"], lfs=True)
        server.add("org/innocent", shared.model, lfs=True)
        server.add("org/gated", shared.copies["alice"], gated=True)
        yield server


@pytest.fixture
def run(run, shared):
    """The same with the vault."""
    return lambda *arguments: run(*arguments, *shared.options)


def test_a_suspect_on_the_hub_is_traced_and_printed_with_its_revision(hub, run):
    code, out, err = run("trace", "org/leak")

    said = " ".join(out.split())
    assert (code, err.strip()) == (0, "")
    assert f"org/leak@{hub.repos['org/leak'].refs['main']} against base" in said
    assert "accused: the copy made for alice (" in said
    assert f"in {len(hub.calls)} requests, tested in 1 look; --full looks for further colluders" in said


def test_a_suspect_that_proves_nothing_was_read_to_the_end(hub, run):
    code, out, _ = run("trace", "org/innocent@main")

    said = " ".join(out.split())
    assert code == 1
    assert "nobody is accused" in said
    assert "tested in 4 looks" in said
    assert "--full" not in said


def test_whole_reads_the_whole(hub, run):
    code, out, _ = run("trace", "org/leak", "--full")

    assert code == 0
    assert "MB fetched" not in out
    assert "131,328 weights read" in " ".join(out.split())


@pytest.mark.parametrize("command", [["trace", "org/leak"], ["verify", "org/leak", "--recipient", "alice"]])
def test_json_holds_what_was_fetched(hub, run, command):
    code, out, _ = run(*command, "--json")

    printed = json.loads(out)
    assert code == 0
    assert printed["revision"] == hub.repos["org/leak"].refs["main"]
    assert [score["recipient"] for score in printed["accused"]] == ["alice"]
    assert printed["requests"] == len(hub.calls)
    assert (printed["looks"], printed["complete"]) == (1, False)
    assert 0 < printed["bytes_fetched"] < printed["bytes_total"]


def test_a_budget_is_in_megabytes(hub, run):
    code, out, _ = run("trace", "org/innocent", "--max-mb", "0.2", "--json")
    printed = json.loads(out)

    assert (code, printed["outcome"]) == (1, "nobody")
    assert 150_000 < printed["bytes_fetched"] <= 200_000
    assert not printed["complete"]
    assert "a larger --max-mb may show more" in " ".join(run("trace", "org/innocent", "--max-mb", "0.2")[1].split())


@pytest.mark.parametrize("budget", ["0.0001", "0.005"])
def test_a_budget_too_small_to_find_a_copy_clears_nobody(hub, run, budget):
    code, out, _ = run("trace", "org/innocent", "--max-mb", budget, "--json")
    printed = json.loads(out)

    assert (code, printed["outcome"]) == (3, "not readable")
    assert "--max-mb" in printed["reason"]
    assert printed["bytes_fetched"] <= float(budget) * 1e6


def test_a_claim_is_confirmed_or_not(hub, run, shared):
    code, out, _ = run("verify", "org/leak", "--recipient", "alice")
    assert code == 0
    assert "confirmed: the copy made for alice (" in " ".join(out.split())

    code, out, _ = run("verify", "org/leak", "--recipient", "[bold]bob")
    assert code == 1
    assert "not confirmed: a copy made for [bold]bob." in " ".join(out.split())
    assert "alice" not in out


def test_a_claim_about_a_local_copy(shared, run):
    assert run("verify", shared.copies["alice"], "--recipient", "alice")[0] == 0
    assert run("verify", shared.model, "--recipient", "alice")[0] == 1
    code, out, _ = run("verify", shared.copies["alice"] / "model.safetensors", "--recipient", "alice", "--json")
    assert (code, json.loads(out)["requests"]) == (0, 0)


ERRORS = {
    "nobody of that name": (["verify", "org/leak", "--recipient", "zoe"], "zoe"),
    "no such repo": (["trace", "org/nowhere"], "org/nowhere"),
    "no such revision": (["trace", "org/leak@v9"], "org/leak@v9"),
    "gated": (["trace", "org/gated"], "ask for access on its page"),
    "no recipient": (["verify", "org/leak"], "--recipient"),
    "a budget below nothing": (["trace", "org/leak", "--max-mb", "-1"], "--max-mb"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_are_one_sentence_on_stderr(hub, run, what):
    command, said = ERRORS[what]

    code, out, err = run(*command)

    assert (code, out) == (2, "")
    err = err.lstrip("\n")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_hub_that_breaks_down_is_one_sentence(hub, run, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # its log may go to an earlier test's stderr
    hub.faults.append(Fault(match="/lfs-store/", kind="cut before", times=99))

    code, out, err = run("trace", "org/leak")

    assert (code, out) == (2, "")
    assert err.strip().startswith("Error: org/leak can't be fetched")


def test_help_names_the_exit_codes(capfd):
    assert main(["verify", "--help"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "Exit code 0: confirmed, 1: not confirmed, or the model is not comparable, 2: an error, "
        "3: not readable" in said
    )
    assert all(option in said for option in ("--recipient", "--full", "--max-mb", "--json"))
