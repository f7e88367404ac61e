"""An evaluation that several processes share, started as users start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from unittest.mock import patch

import pytest

from hf_fingerprint.evaluation.trial_runner import TrialRunner
from hf_fingerprint.evaluation.trials import PRIVATE, RESULTS
from tests.helpers.evaluation_runs import run
from tests.helpers.processes import environment


pytestmark = pytest.mark.integration
ATTACKS = ("half", "int", "average")


@pytest.fixture
def copies(place, tmp_path):
    """A folder with the registered model and its copies, and no trials."""
    out = tmp_path / "out"
    with patch.object(TrialRunner, "trials", return_value=()), patch("hf_fingerprint.evaluation.evaluate.Evaluation"):
        run(place, out, ATTACKS)
    return out


# The evaluation of `run`, so that the folder's vault fits.
WORKER = """
import sys
from pathlib import Path
from tests.evaluation.conftest import opening_quickly
from tests.helpers.evaluation_runs import run

place, out = map(Path, sys.argv[1:3])
with opening_quickly():
    found = run(place, out, tuple(sys.argv[3:]))
print(len(found.trials), found.skipped, flush=True)
"""


def start(place, out, rank, count):
    launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", WORKER, str(place), str(out), *ATTACKS]
    return subprocess.Popen(command, env=environment(**launched), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stored_keys(out):
    file = out / PRIVATE / RESULTS
    return [json.loads(line)["key"] for line in file.read_bytes().splitlines()] if file.exists() else []


def read_complete(place, out):
    """The evaluation in a folder where every trial is on the disk, each once: nothing is left to do."""
    assert set(Counter(stored_keys(out)).values()) == {1}
    with patch.object(TrialRunner, "_measure", side_effect=AssertionError("it was not done")):
        return run(place, out, ATTACKS)


def test_accelerate_launches_processes_that_share_the_trials(place, evaluation, tmp_path):
    out = tmp_path / "out"
    options = ["--coalition", "2", "--expected-recipients", "4", "--coalitions", "2", "--attacks", ",".join(ATTACKS)]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes=2",
    ]
    command += ["--main_process_port=0", "-m", "hf_fingerprint", "evaluate", str(place / "model")]
    command += ["--data", str(place / "images"), "--out", str(out), *options]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("the page:") == 1
    assert ended.stderr.count("issuing 3 copies") <= 1
    reported = json.loads((out / "results.json").read_text())
    assert len(stored_keys(out)) == len(set(stored_keys(out))) == len(reported["trials"])
    assert {each["attack"] for each in reported["trials"]} == {each.attack for each in evaluation.trials}


def test_four_processes_share_the_trials_and_take_up_those_of_a_killed_one(place, evaluation, copies):
    processes = [start(place, copies, rank, 4) for rank in range(4)]
    deadline = time.monotonic() + 120
    while not stored_keys(copies) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(processes[2].pid, signal.SIGKILL)
    ended = [process.communicate(timeout=240) for process in processes]

    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL, 0], ended
    found = read_complete(place, copies)
    printed = {out for number, (out, _) in enumerate(ended) if number != 2}
    assert printed == {f"{len(found.trials)} {found.skipped}\n".encode()}
    assert {(t.attack, t.colluders) for t in found.trials} == {(t.attack, t.colluders) for t in evaluation.trials}
    assert (found.unmarked.accused, found.copy.accused, found.skipped) == (False, True, {})
    assert [trial.caught for trial in found.of("collusion")] == [(True, True)]
    assert sum(trial.innocents_accused for trial in found.trials) == 0
