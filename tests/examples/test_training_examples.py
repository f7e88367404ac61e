import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes import environment, module, run_here


pytestmark = pytest.mark.docs


def run(script: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """An example as a user runs it, on one core and without the Hub."""
    command = module(f"examples.{script}", "--out", folder / "out", *arguments)
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", ["trainer_callback", "timm_finetune"])
def test_the_example_trains_a_copy_that_traces_to_its_recipient(script, tmp_path):
    out, _ = run_here(script, tmp_path, "--out", tmp_path / "out", "--steps", 12)

    check_training(tmp_path, out)


@pytest.mark.slow
def test_the_accelerate_loop_trains_a_copy_in_two_processes_that_traces_to_its_recipient(tmp_path):
    done = run("accelerate_loop", tmp_path, "--steps", "12")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    check_training(tmp_path, done.stdout)


def check_training(tmp_path: Path, out: str) -> None:
    printed = " ".join(out.split())
    assert re.search(r"accused: the copy made for alice \([^)]*\)\. 3 copies tested", printed)
    assert printed.count("ACCUSED") == 1
    assert "recorded: " in printed
    assert "fingerprint_agreement 1" in printed
    out = tmp_path / "out"
    assert {"base", "copies", "trained", "vault"} <= {path.name for path in out.iterdir()}
    assert list(tmp_path.iterdir()) == [out]
    config, weights = (out / "trained" / "config.json"), (out / "trained" / "model.safetensors")
    assert b"fingerprint" not in config.read_bytes() + weights.read_bytes()


@pytest.mark.slow
def test_the_accelerate_loop_runs_alone_too(tmp_path):
    done = run("accelerate_loop", tmp_path, "--steps", "8", "--processes", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 processes train it" in done.stdout


def test_another_folder_is_left_alone(tmp_path):
    from examples._common.owner import empty_folder

    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="choose another folder"):
        empty_folder(tmp_path)

    assert (tmp_path / "thesis.txt").exists()


def test_an_unexpected_trace_is_a_failure(tmp_path, monkeypatch):
    from examples._common import owner
    from hf_fingerprint import Issuer
    from tests.helpers.small_models import PLAIN_SETTINGS, new_vault, save_plain

    vault = new_vault(tmp_path / "vault", owner.PASSPHRASE)
    with Issuer(save_plain(tmp_path / "model"), vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("bob", tmp_path / "bob")

    owner.expect_trace(tmp_path / "bob", vault, "bob")
    for suspect in ("bob", "model"):
        with pytest.raises(SystemExit) as left:
            owner.expect_trace(tmp_path / suspect, vault, "alice")
        assert left.value.code == 1
