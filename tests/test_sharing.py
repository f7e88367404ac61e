import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass

import pytest

from hf_fingerprint.errors import StorageError
from hf_fingerprint.sharing import JobLocks, JsonLinesStore, share_jobs
from tests.helpers.error_checks import refused
from tests.helpers.processes import environment


@dataclass(frozen=True)
class Answer:
    """The result of a job."""

    job: int
    by: str

    def to_dict(self):
        return asdict(self)


def open_store(folder):
    return JsonLinesStore(folder / "results.jsonl", lambda values: Answer(values["job"], values["by"]))


def written_keys(folder):
    return [json.loads(line)["key"] for line in (folder / "results.jsonl").read_bytes().splitlines()]


# One of several processes. It kills itself in the middle of the job with the number `fatal` that it begins, if any.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from hf_fingerprint.sharing import JobLocks, share_jobs
from tests.test_sharing import Answer, open_store

folder, name, jobs, fatal = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
begun = []

def work(job):
    begun.append(job)
    if len(begun) == fatal:
        (folder / f"begun-{job}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while not fatal and not any(folder.glob("begun-*")):
        time.sleep(0.01)  # the process that dies has its job by now
    time.sleep(0.02)
    return Answer(job, name)

with JobLocks(folder / "locks") as locks:
    print("ready", flush=True)
    sys.stdin.readline()
    seen = list(share_jobs([str(job) for job in range(jobs)], open_store(folder), locks, work))
print(sorted(seen) == list(range(jobs)), flush=True)
"""


def run_workers(folder, count, jobs, fatal=0):
    """Runs some processes at once; the first is killed in its job number `fatal`. Returns their output and exit
    codes."""
    if not fatal:
        (folder / "begun-nothing").touch()
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WORKER,
                str(folder),
                f"process {n}",
                str(jobs),
                str(0 if n else fatal),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for n in range(count)
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * count
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [(worker.communicate(timeout=60)[0].strip(), worker.returncode) for worker in workers]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_jobs_and_each_result_is_written_once(tmp_path, count):
    ended = run_workers(tmp_path, count, jobs=40)
    found = open_store(tmp_path).known

    assert ended == [("True", 0)] * count
    assert Counter(written_keys(tmp_path)) == {str(job): 1 for job in range(40)}
    assert all(found[str(job)].job == job for job in range(40))
    assert len({each.by for each in found.values()}) == count


@pytest.mark.parametrize("count", [2, 4])
def test_the_others_take_up_the_job_of_a_killed_process(tmp_path, count):
    ended = run_workers(tmp_path, count, jobs=20, fatal=1)
    found = open_store(tmp_path).known
    (begun,) = tmp_path.glob("begun-*")

    assert ended[0] == ("", -signal.SIGKILL)
    assert ended[1:] == [("True", 0)] * (count - 1)
    assert Counter(written_keys(tmp_path)) == {str(job): 1 for job in range(20)}
    assert found[begun.name.removeprefix("begun-")].by != "process 0"


def test_the_next_run_does_only_what_a_killed_one_left(tmp_path):
    (ended,) = run_workers(tmp_path, 1, jobs=10, fatal=7)
    before = written_keys(tmp_path)
    with JobLocks(tmp_path / "locks") as locks:
        done = []
        store = open_store(tmp_path)
        list(
            share_jobs(
                [str(job) for job in range(10)], store, locks, lambda job: done.append(job) or Answer(job, "me")
            )
        )

    assert ended == ("", -signal.SIGKILL)
    assert before == [str(job) for job in range(6)]
    assert done == [6, 7, 8, 9]


def test_a_job_that_is_no_longer_wanted_is_not_done(tmp_path):
    done = []
    store = open_store(tmp_path)
    with JobLocks(tmp_path / "locks") as locks:
        seen = list(
            share_jobs(
                ["a", "b", "c"],
                store,
                locks,
                lambda job: done.append(job) or Answer(job, "me"),
                wanted=lambda job: job != 1 or not store.known,
            )
        )

    assert done == seen == [0, 2]


def test_a_result_that_another_process_wrote_meanwhile_stays(tmp_path):
    mine, theirs = open_store(tmp_path), open_store(tmp_path)
    theirs.add("a", Answer(1, "them"))

    assert mine.known == {}
    assert mine.add("a", Answer(1, "me")).by == "them"
    assert written_keys(tmp_path) == ["a"]
    theirs.add("b", Answer(2, "them"))
    mine.refresh()
    assert list(mine.known) == ["a", "b"]


def test_a_line_that_is_being_written_is_read_once_it_is_complete(tmp_path):
    store = open_store(tmp_path)
    line = json.dumps({"key": "a", "job": 1, "by": "them"}).encode() + b"\n"
    file = tmp_path / "results.jsonl"
    file.write_bytes(line[:9])
    store.refresh()
    before = dict(store.known)
    file.write_bytes(line)
    store.refresh()

    assert (before, store.known) == ({}, {"a": Answer(1, "them")})


def test_a_lock_keeps_out_other_processes_until_it_is_released(tmp_path):
    script = (
        "import sys; from pathlib import Path; from hf_fingerprint.sharing import JobLocks\n"
        "with JobLocks(Path(sys.argv[1])) as locks:\n"
        "    for key in 'ab':\n"
        "        with locks.try_lock(key) as locked: print(locked)"
    )

    def others_find():
        command = [sys.executable, "-c", script, str(tmp_path / "locks")]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.split()

    with JobLocks(tmp_path / "locks") as locks:
        with locks.try_lock("a") as locked:
            during = others_find()
        after = others_find()

    assert locked
    assert (during, after) == (["False", "True"], ["True", "True"])
    assert (tmp_path / "locks").stat().st_size == 0
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("lock", "name"), [(fcntl.lockf, "locks"), (fcntl.flock, "results.jsonl")])
def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, lock, name):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, lock.__name__, fail)

    def share():
        with JobLocks(tmp_path / "locks") as locks:
            list(share_jobs(["a"], open_store(tmp_path), locks, lambda job: Answer(job, "me")))

    message = refused(share, error=StorageError)
    assert (
        message == f"{tmp_path / name} can't be locked (its disk has no file locks): choose a folder on another disk."
    )
