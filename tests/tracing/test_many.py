import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from hf_fingerprint import Issuer, trace, trace_all
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import PassphraseError
from hf_fingerprint.tracing import many
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.processes import environment, module
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    plain_arrays,
    save_plain,
    unlocked_vault,
    vault_bytes,
)


pytestmark = pytest.mark.integration
NAMES = ("alice", "bob", "carol")


@pytest.fixture
def case(tmp_path):
    """Three copies of one base, an unrelated model, and the vault, unlocked."""
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = [copy.path for copy in issuer.issue_all(NAMES, tmp_path / "copies")]
    stranger = save_plain(tmp_path / "stranger", plain_arrays(seed=9))
    return SimpleNamespace(vault=vault, model=model, suspects=[*copies, model, stranger], out=tmp_path / "out")


def written(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def count_traces():
    return patch.object(many, "run_request", side_effect=many.run_request)


def test_each_suspect_has_the_result_of_its_own_trace(case):
    found = list(trace_all(case.suspects, case.vault))

    assert [result.accused for result in found] == [(name,) for name in NAMES] + [(), ()]
    for suspect, result in zip(case.suspects, found, strict=True):
        alone = trace(suspect, case.vault).to_dict()
        assert result.to_dict() == alone | {"suspect": str(suspect)}


def test_the_vault_is_read_once_for_all_suspects_and_again_once_it_has_changed(case, tmp_path):
    results = trace_all(case.suspects, case.vault)
    with patch.object(Vault, "rows", autospec=True, side_effect=Vault.rows) as reads:
        before = [next(results) for _ in range(3)], reads.call_count
        with Issuer(case.model, case.vault, PLAIN_SETTINGS) as issuer:
            issuer.issue("dave", tmp_path / "dave")
        reads.reset_mock()
        after = [*results], reads.call_count

    assert (before[1], after[1]) == (1, 1)
    assert [each.found["recipients_tested"] for each in (*before[0], after[0][0])] == [3, 3, 3, 4]


def test_a_suspect_that_can_not_be_read_is_an_error_and_the_others_are_traced(case):
    found = list(trace_all([case.suspects[0], "no/such/folder/here", case.suspects[1]], case.vault))

    assert [result.outcome for result in found] == ["accused", None, "accused"]
    assert "no/such/folder/here" in found[1].error
    assert found[1].to_dict() == {"suspect": "no/such/folder/here", "error": found[1].error}


def test_results_are_kept_for_the_owner_alone_and_read_as_they_were_written(case):
    first = list(trace_all(case.suspects, case.vault, out=case.out))
    with count_traces() as traces:
        second = list(trace_all(case.suspects, case.vault, out=case.out))

    assert traces.call_count == 0
    assert [each.to_dict() for each in second] == json.loads(json.dumps([each.to_dict() for each in first]))
    assert stat.S_IMODE(case.out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in case.out.glob("*l*s*")} == {0o600}
    kept = (case.out / "results.jsonl").read_bytes()
    for record in case.vault.copies():
        assert case.vault.copy_key(record).hex().encode() not in kept
    assert case.vault.bases()[0].secret.hex().encode() not in kept


def test_what_failed_is_traced_again_by_the_next_run_alone(case, tmp_path):
    late = tmp_path / "late"
    suspects = [case.suspects[0], late]
    (first, failed) = trace_all(suspects, case.vault, out=case.out)
    shutil.copytree(case.suspects[1], late)
    with count_traces() as traces:
        found = list(trace_all(suspects, case.vault, out=case.out))

    assert (first.accused, failed.outcome) == (("alice",), None)
    assert traces.call_count == 1
    assert [each.accused for each in found] == [("alice",), ("bob",)]


@pytest.mark.parametrize("change", ["a copy", "options"])
def test_everything_is_traced_again_once_the_vault_or_the_options_change(case, tmp_path, change):
    list(trace_all(case.suspects, case.vault, out=case.out))
    if change == "a copy":
        with Issuer(case.model, case.vault, PLAIN_SETTINGS) as issuer:
            issuer.issue("dave", tmp_path / "dave")
    with count_traces() as traces:
        list(trace_all(case.suspects, case.vault, out=case.out, full=change == "options"))

    assert traces.call_count == len(case.suspects)


def test_a_suspect_that_is_listed_twice_is_traced_once(case):
    with count_traces() as traces:
        found = list(trace_all([case.suspects[0]] * 2, case.vault, out=case.out))

    assert [each.accused for each in found] == [("alice",)] * 2
    assert traces.call_count == 1


def test_a_locked_vault_or_a_folder_of_something_else_is_refused_before_a_trace(case, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    before = vault_bytes(case.vault)

    assert "thesis.tex" in refused(lambda: list(trace_all(case.suspects, case.vault, out=tmp_path / "full")))
    assert str(case.vault.folder) in refused(
        lambda: list(trace_all(case.suspects, case.vault, out=case.vault.folder / "out"))
    )
    refused(lambda: list(trace_all(case.suspects, case.vault.folder)), error=PassphraseError)
    assert vault_bytes(case.vault) == before


def test_several_processes_need_a_folder(case, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert "--out" in refused(lambda: list(trace_all(case.suspects, case.vault)))


@pytest.fixture
def command(case, tmp_path):
    """The command line that traces twelve suspects, three of them missing."""
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    suspects = [*case.suspects, *(tmp_path / f"missing-{n}" for n in range(3))]
    for number in range(4):
        suspects.append(shutil.copytree(case.suspects[number % 3], tmp_path / f"suspect-{number}"))
    listed = tmp_path / "suspects.txt"
    listed.write_text("# suspects\n\n" + "\n".join(map(str, suspects)) + "\n")
    options = ["--vault", case.vault.folder, "--passphrase-file", tmp_path / "passphrase", "--out", case.out]
    return ["trace-all", listed, *options]


def test_the_command_prints_a_line_for_each_suspect(case, command, capfd):
    capfd.readouterr()

    assert main(list(map(str, command))) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(lines) == 12
    assert Counter(line.get("outcome") for line in lines)["accused"] == 7
    assert sum("error" in line for line in lines) == 3


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_list_without_a_suspect_is_one_sentence(tmp_path, capfd, content):
    listed = tmp_path / "suspects.txt"
    if content is not None:
        listed.write_bytes(content)

    assert main(["trace-all", str(listed), "--vault", str(tmp_path / "none")]) == 2
    assert str(listed) in capfd.readouterr().err.replace("\n", "")


def test_accelerate_launches_processes_that_share_the_list(case, command):
    launch = ["launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m", "hf_fingerprint"]
    ended = subprocess.run(
        module("accelerate.commands.accelerate_cli", *launch, *command),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]

    assert ended.returncode == 0, ended.stderr
    assert Counter(each["key"] for each in written(case.out)).most_common(1)[0][1] == 1
    assert len(lines) == len(written(case.out)) == 12
    assert sum(line.get("outcome") == "accused" for line in lines) == 7


def test_four_processes_share_the_list_and_take_up_what_a_killed_one_left(case, command):
    processes = [
        subprocess.Popen(
            module("hf_fingerprint", *command),
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="4"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(4)
    ]
    deadline = time.monotonic() + 60
    while not (case.out / "results.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(processes[3].pid, signal.SIGKILL)
    ended = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, -signal.SIGKILL], ended
    assert [len(out.splitlines()) for out, _ in ended[:3]] == [12, 0, 0]
    keys = Counter(each["key"] for each in written(case.out))
    assert len(keys) == 12
    assert set(keys.values()) == {1}
