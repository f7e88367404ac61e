"""A process that is killed while it issues leaves a vault and a folder that the same call mends."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_fingerprint import Issuer, Vault, issue, trace
from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.errors import CheckpointError
from tests.helpers.small_models import PLAIN_SETTINGS, bytes_of, names_in, plain_arrays, save_plain, unlocked_vault


pytestmark = pytest.mark.integration


# imports once, and runs each job from stdin in a fork: {"kill": [owner, name, "before" or "after", call]}
# ends that fork with SIGKILL at that call, {"event": k} at its k-th change to the disk, counted by an audit hook
FORKER = r"""
import json, os, shutil, signal, sys, traceback
from pathlib import Path
import hf_fingerprint.checkpoints.writer as writer
import hf_fingerprint.registration.registering as registering
from hf_fingerprint.issuing import Issuer, issue
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.vault import Vault

writer._GROUP_BYTES = 1  # a write for each tensor
OWNERS = {"os": os, "shutil": shutil, "Path": Path, "Vault": Vault, "writer": writer, "registering": registering}
CHANGES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree", "sqlite3.connect"}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(owner, name, when, call):
    original, calls = getattr(OWNERS[owner], name), []

    def dying(*arguments, **options):
        calls.append(None)
        now = len(calls) == call
        if now and when == "before":
            die()
        result = original(*arguments, **options)
        if now and when == "after":
            die()
        return result

    setattr(OWNERS[owner], name, dying)


def arm_events(last):
    seen = []

    def hook(event, arguments):
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writing:
            seen.append(event)
            if len(seen) == last:
                die()

    sys.addaudithook(hook)
    return seen


def run(job):
    seen = arm_events(job.get("event", 0))
    if "kill" in job:
        arm(*job["kill"])
    settings = FingerprintConfig(coalition=3, expected_recipients=4, amplitude=0.003)
    if "several" in job:
        with Issuer(job["model"], Vault(job["vault"]), settings) as issuer:
            list(issuer.issue_all(job["several"], Path(job["out"])))
    else:
        issue(job["model"], job["recipient"], job["vault"], job["out"], settings)
    Path(job["out"] + ".events").write_text(json.dumps(seen)) if "event" in job else None


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(json.loads(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLED = -signal.SIGKILL
POINTS = [
    ("Vault", "begin_copy", "before", 1),
    ("Vault", "begin_copy", "after", 1),
    ("Path", "mkdir", "after", 2),
    ("Path", "mkdir", "after", 3),
    ("writer", "copy_file", "before", 1),
    ("writer", "copy_file", "after", 2),
    ("os", "posix_fallocate", "after", 1),
    ("writer", "write_all", "before", 1),
    ("writer", "write_all", "after", 1),
    ("writer", "write_all", "after", 15),
    ("os", "fsync", "before", 1),
    ("os", "fsync", "after", 2),
    ("os", "fsync", "after", 3),
    ("Vault", "mark_written", "before", 1),
    ("Vault", "mark_written", "after", 1),
    ("Path", "rename", "before", 1),
    ("Path", "rename", "after", 1),
    ("os", "fsync", "before", 4),
    ("Vault", "mark_issued", "before", 1),
    ("Vault", "mark_issued", "after", 1),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base that is registered already, an unlocked vault, and a process that issues in forks of itself."""
    root = tmp_path_factory.mktemp("crashes")
    model = save_plain(root / "model", README_md="# A model\n", labels__classes_txt="cat\n")
    vault = unlocked_vault(root / "vault")
    Issuer(model, vault, PLAIN_SETTINGS).__exit__()
    command = [sys.executable, "-c", FORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def run(**job) -> int:
            job = {"model": model, "vault": vault.folder} | job
            process.stdin.write(json.dumps(job, default=str) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield SimpleNamespace(model=model, vault=vault, run=run)
        process.stdin.close()


def check_mended(place: SimpleNamespace, recipient: str, out: Path) -> None:
    """One record, one folder, nothing next to it, and it traces to its recipient alone."""
    (record,) = place.vault.copies(recipient=recipient)
    assert (record.state, record.out) == ("issued", str(out))
    assert names_in(out.parent) == [out.name]
    expected = bytes_of(place.model)
    assert {n: c for n, c in bytes_of(out).items() if n != "model.safetensors"} == {
        n: c for n, c in expected.items() if n != "model.safetensors"
    }
    with open_checkpoint(out) as checkpoint:
        assert content_hash(checkpoint.tensors, digest_tensors(checkpoint)) == record.content_hash
    assert [score.recipient for score in trace(out, place.vault).accused] == [recipient]


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p[2]} {p[1]} {p[3]}")
def test_a_process_killed_while_issuing_is_mended_by_the_same_call(place, tmp_path, point):
    recipient, out = f"killed {' '.join(map(str, point))}", tmp_path / "copy"

    assert place.run(kill=point, recipient=recipient, out=out) == KILLED

    records = place.vault.copies(recipient=recipient)
    assert len(records) <= 1
    if out.exists():  # never a part of a copy in the output folder
        assert bytes_of(out).keys() == bytes_of(place.model).keys()
        assert records[0].state in {"written", "issued"}
    if records and records[0].state == "begun":
        assert place.vault.copies(recipient=recipient)[0].content_hash is None
    before = [record.copy_id for record in records]
    copy = issue(place.model, recipient, place.vault, out, PLAIN_SETTINGS)
    assert before in ([], [copy.copy_id])
    check_mended(place, recipient, out)


def test_a_process_killed_at_any_change_to_the_disk_is_mended_by_the_same_call(place, tmp_path):
    (tmp_path / "counted").mkdir()
    assert place.run(event=0, recipient="counted", out=tmp_path / "counted" / "copy") == 0
    events = json.loads((tmp_path / "counted" / "copy.events").read_text())
    assert {"os.mkdir", "os.rename", "sqlite3.connect", "open"} <= set(events)

    for k in range(1, len(events) + 1):
        recipient, out = f"killed at event {k}", tmp_path / str(k) / "copy"
        assert place.run(event=k, recipient=recipient, out=out) == KILLED, f"event {k} of {events}"
        issue(place.model, recipient, place.vault, out, PLAIN_SETTINGS)
        check_mended(place, recipient, out)


@pytest.mark.parametrize(
    "point",
    [("Vault", "mark_written", "after", 1), ("Path", "rmdir", "before", 1)],
    ids=["after mark_written", "before rmdir"],
)
def test_a_process_killed_while_it_fills_an_empty_folder_is_mended_too(place, tmp_path, point):
    recipient, out = f"into an empty folder {' '.join(map(str, point))}", tmp_path / "copy"
    out.mkdir()

    assert place.run(kill=point, recipient=recipient, out=out) == KILLED
    issue(place.model, recipient, place.vault, out, PLAIN_SETTINGS)

    check_mended(place, recipient, out)


def test_a_partial_folder_of_a_killed_process_is_cleaned_up(place, tmp_path):
    out = tmp_path / "copy"

    place.run(kill=("writer", "write_all", "after", 5), recipient="partial", out=out)

    (begun,) = place.vault.copies(recipient="partial")
    (partial,) = tmp_path.iterdir()
    assert begun.state == "begun"
    assert begun.copy_id in partial.name
    assert (partial / "model.safetensors").stat().st_size > 0
    assert issue(place.model, "partial", place.vault, out, PLAIN_SETTINGS).copy_id == begun.copy_id
    assert not partial.exists()
    check_mended(place, "partial", out)


def test_a_copy_that_was_never_finished_is_not_tested_for(place, tmp_path):
    place.run(kill=("Vault", "mark_written", "before", 1), recipient="never finished", out=tmp_path / "copy")

    result = trace(place.model, place.vault, all_scores=True)

    assert "never finished" not in [score.recipient for score in result.scores]
    tested = [c for c in place.vault.copies(result.base) if c.state != "begun"]
    assert result.recipients_tested == len(result.scores) == len(tested)


def test_a_copy_complete_but_not_yet_in_its_place_traces(place, tmp_path):
    place.run(kill=("Path", "rename", "before", 1), recipient="written", out=tmp_path / "copy")

    (partial,) = tmp_path.iterdir()

    assert partial.name.endswith(".partial")
    assert [score.recipient for score in trace(partial, place.vault).accused] == ["written"]


def test_a_new_key_is_drawn_for_a_copy_begun_again(place, tmp_path):
    place.run(kill=("writer", "write_all", "after", 9), recipient="rekeyed", out=tmp_path / "copy")
    (before,) = place.vault.copies(recipient="rekeyed")

    issue(place.model, "rekeyed", place.vault, tmp_path / "copy", PLAIN_SETTINGS)

    (after,) = place.vault.copies(recipient="rekeyed")
    assert place.vault.copy_key(before) != place.vault.copy_key(after)


def test_a_process_killed_twice_is_mended(place, tmp_path):
    out = tmp_path / "copy"
    for point in (("os", "fsync", "before", 2), ("writer", "write_all", "after", 3), ("Path", "rename", "before", 1)):
        assert place.run(kill=point, recipient="twice", out=out) == KILLED

    assert issue(place.model, "twice", place.vault, out, PLAIN_SETTINGS).new

    check_mended(place, "twice", out)


@pytest.mark.parametrize("call", [3, 40, 70])
def test_a_process_killed_among_several_copies_is_mended(place, tmp_path, call):
    names, out = [f"several {call} {i}" for i in range(3)], tmp_path / "out"

    assert place.run(kill=("writer", "write_all", "after", call), several=names, out=out) == KILLED
    with Issuer(place.model, place.vault, PLAIN_SETTINGS) as issuer:
        copies = list(issuer.issue_all(names, out))

    assert names_in(out) == names
    for copy in copies:
        assert [c.state for c in place.vault.copies(recipient=copy.recipient)] == ["issued"]
        assert [score.recipient for score in trace(copy.path, place.vault).accused] == [copy.recipient]


@pytest.mark.parametrize(
    "point",
    [
        ("registering", "analyze_base", "after", 1),
        ("Vault", "add_base", "before", 1),
        ("Vault", "add_base", "after", 1),
    ],
    ids=lambda p: f"{p[2]} {p[1]}",
)
def test_a_process_killed_while_registering_is_mended(place, tmp_path, point):
    vault, out = unlocked_vault(tmp_path / "vault"), tmp_path / "out" / "copy"

    assert place.run(kill=point, recipient="alice", out=out, vault=vault.folder) == KILLED
    issue(place.model, "alice", vault, out, PLAIN_SETTINGS)

    assert len(vault.bases()) == 1
    check_mended(SimpleNamespace(model=place.model, vault=vault), "alice", out)


ISSUE_SEVERAL = """
import sys, time
from pathlib import Path
from hf_fingerprint.issuing import Issuer
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.vault import Vault
model, vault, out, go, *names = sys.argv[1:]
Path(f"{go} {names[0]}").touch()
while not Path(go).exists():
    time.sleep(0.01)
with Issuer(model, Vault(vault), FingerprintConfig(coalition=3, expected_recipients=4, amplitude=0.003)) as issuer:
    for copy in issuer.issue_all(names, Path(out)):
        print(copy.recipient, copy.new, flush=True)
"""


def issue_at_once(
    place: SimpleNamespace, vault: Vault, out: Path, parts: list[list[str]]
) -> list[tuple[int, str, str]]:
    """Runs a process for each part, all starting together: `(exit code, stdout, stderr)` of each."""
    go = [out.parent / f"go {i}" for i in range(len(parts))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ISSUE_SEVERAL, place.model, vault.folder, out, signal_to_go, *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for names, signal_to_go in zip(parts, go, strict=True)
    ]
    while not all(Path(f"{path} {names[0]}").exists() for path, names in zip(go, parts, strict=True)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for path in go:
        path.touch()
    said = [process.communicate(timeout=60) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_two_processes_issue_into_one_vault_at_once(place, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    names = [[f"{process} {i}" for i in range(10)] for process in "ab"]

    said = issue_at_once(place, vault, tmp_path / "out", names)

    assert [code for code, _, _ in said] == [0, 0], said
    assert len(vault.bases()) == 1
    records = vault.copies()
    assert sorted(record.recipient for record in records) == sorted([*names[0], *names[1]])
    assert {record.state for record in records} == {"issued"}
    assert names_in(tmp_path / "out") == sorted([*names[0], *names[1]])
    for record in records:
        result = trace(record.out, vault)
        assert [score.recipient for score in result.accused] == [record.recipient]
        assert result.recipients_tested == 20


def test_two_processes_that_issue_the_same_copy_make_one(place, tmp_path):
    out = tmp_path / "out"

    said = issue_at_once(place, place.vault, out, [["the same"], ["the same"]])

    for code, printed, errors in said:
        if code:
            assert "is being issued by another process" in errors.splitlines()[-1]
        else:
            assert printed in {"the same True\n", "the same False\n"}
    assert sum(printed == "the same True\n" for _, printed, _ in said) == 1
    assert names_in(out) == ["the same"]
    check_mended(place, "the same", out / "the same")


def test_a_killed_process_does_not_keep_others_from_its_copy(place, tmp_path):
    vault, out = unlocked_vault(tmp_path / "vault"), tmp_path / "out" / "copy"
    place.run(kill=("os", "fsync", "before", 1), recipient="locked", out=out, vault=vault.folder)
    locks = list((vault.folder / "locks").iterdir())

    assert len(locks) == 1
    issue(place.model, "locked", vault, out, PLAIN_SETTINGS)

    check_mended(SimpleNamespace(model=place.model, vault=vault), "locked", out)


def test_a_stranger_in_the_place_of_a_copy_made_meanwhile_is_left_alone(place, tmp_path):
    out = tmp_path / "copy"
    place.run(kill=("Path", "rename", "before", 1), recipient="late", out=out)
    shutil.copytree(save_plain(tmp_path / "other", plain_arrays(1)), out)
    before = bytes_of(out)

    with pytest.raises(CheckpointError, match=r"not as it was issued|is not this recipient's copy"):
        issue(place.model, "late", place.vault, out, PLAIN_SETTINGS)

    assert bytes_of(out) == before
