import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples._common.results import Figure, Results
from examples.benchmarks import gpu, gpu_steps
from examples.benchmarks.gpu_jobs import weigh_on_device
from examples.benchmarks.gpu_sizes import SMALL, Job, read_figures
from hf_fingerprint.codes.scoring import weigh_codewords
from tests.helpers.processes import ROOT, environment, module


SCRIPT = ROOT / "examples" / "benchmarks" / "gpu.sh"
NAMES = ["device", *(part.name for part in gpu.PARTS)]


def run_script(*arguments, **variables):
    """Runs gpu.sh from another folder; returns the exit code and what it says on stderr."""
    command = [SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=200, cwd="/")
    return done.returncode, done.stderr


def stub(folder, *failing):
    """Makes a Python that has torch, and fails if an argument contains one of these words."""
    file = folder / "python"
    cases = "".join(f'*"{word}"*) exit 1 ;;\n' for word in failing)
    file.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}*m.version*) echo 2.8.0 ;;\nesac\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.integration
def test_every_part_runs_at_small_sizes(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        module("examples.benchmarks.gpu", "--small", "--budget", 1200, "--out", out),
        capture_output=True,
        text=True,
        env=environment(),
    )
    results = Results.read(out)
    figures = {what: measured for table in results.tables[1:] for what, measured, _ in table.rows}

    assert done.returncode == 0, done.stderr + done.stdout
    assert [table.name for table in results.tables] == NAMES
    assert len(figures) == 2 + 2 + 2 + 4 + 3
    assert not [measured for measured in figures.values() if gpu.NOT_MEASURED in measured]
    assert all(float(measured.split()[0]) > 0 for what, measured in figures.items() if " / " in what)
    assert figures["colluders accused in it"].endswith("innocents none")
    assert results.tables[0].rows[0][1] == "1"


@pytest.mark.integration
def test_a_budget_of_nothing_leaves_all_parts_out_and_says_why(tmp_path):
    out = tmp_path / "gpu.json"

    code, _ = run_script("--small", "--budget", 0, "--out", out, PYTHON=sys.executable)

    results = Results.read(out)
    assert code == 0
    assert [table.name for table in results.tables] == NAMES
    for part, table in zip(gpu.PARTS, results.tables[1:], strict=True):
        assert table.rows == ((part.title, "not measured: the budget of 0 s was spent", ""),)
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


def test_a_part_that_takes_too_long_or_fails_keeps_the_figures_that_it_has(monkeypatch, tmp_path):
    scripts = {
        "slow": "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
        "; time.sleep(60)",
        "fails": "raise MemoryError('out of memory in /some/folder/model.py')",
    }
    part, popen = gpu.PARTS[0], subprocess.Popen
    monkeypatch.setattr(gpu, "read_figures", lambda file: [Figure("a / b", "1.0", "")])
    found = {}
    for name, script in scripts.items():
        fake = SimpleNamespace(**vars(subprocess))
        fake.Popen = lambda command, script=script, **options: popen([sys.executable, "-c", script], **options)
        monkeypatch.setattr(gpu, "subprocess", fake)
        began = time.monotonic()
        found[name] = gpu.table_of(part, *gpu.measure(part, "cpu", True, 2.0)).rows
        assert time.monotonic() - began < 30

    assert [rows[0] for rows in found.values()] == [("a / b", "1.0", "")] * 2
    assert found["slow"][1][1] == "not measured: the part took more than 2 s"
    assert found["fails"][1][1] == "not measured: MemoryError: out of memory in model.py"


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, tmp_path):
    def run(job, title, architecture, batch, seconds):
        if batch > 1:
            raise torch.OutOfMemoryError
        yield Figure(title, str(batch), "")

    monkeypatch.setattr(gpu_steps, "_model_figures", run)
    job = Job(replace(SMALL, models=(("a", "b", 4), ("c", "d", 1))), "cpu", tmp_path, 0.0)

    assert [(each.what, each.measured) for each in gpu_steps.step_figures(job)] == [("a", "1"), ("c", "1")]


def test_figures_are_read_up_to_a_line_that_was_cut_short(tmp_path):
    file, line = tmp_path / "figures", json.dumps({"what": "a", "measured": "1", "bound": "reported"})
    file.write_text(f"{line}\n{line[:20]}")

    assert read_figures(file) == [Figure("a", "1", "reported")]
    assert read_figures(tmp_path / "none") == []


@pytest.mark.parametrize("arguments", [[], ["--small"], ["--small", "--out", gpu.OUT]])
def test_a_cpu_s_figures_and_small_ones_are_not_written_as_results(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)

    with pytest.raises(SystemExit) as stopped:
        gpu.main()

    assert stopped.value.code == 2
    assert re.search(r"error: .*: (add --small|give another file)", capsys.readouterr().err)
    assert not gpu.OUT.exists()


def test_the_product_on_a_device_is_the_compiled_one():
    rng = np.random.default_rng(0)
    packed, weights = rng.integers(0, 256, (9, 16), np.uint8), rng.standard_normal((2, 128)).astype(np.float32)

    np.testing.assert_allclose(weigh_on_device(packed, weights, "cpu"), weigh_codewords(packed, weights), atol=1e-5)


class TestTheScript:
    @pytest.mark.parametrize(
        ("failing", "reason"),
        [
            (["version_info"], "is older than 3.11"),
            (["m.version"], "has no torch"),
            (["examples.benchmarks", "venv"], "can't be installed"),
        ],
    )
    def test_says_in_a_sentence_what_is_missing(self, failing, reason, tmp_path):
        code, said = run_script(PYTHON=stub(tmp_path, *failing), VENV=str(tmp_path / "venv"))

        assert code == 2
        last = said.splitlines()[-1]
        assert last.startswith("gpu.sh: ") and reason in last and last.endswith(".")
        assert len(said.splitlines()) <= 2

    def test_says_that_there_is_no_python(self, tmp_path):
        code, said = run_script(PYTHON=str(tmp_path / "nothing"))

        assert code == 2
        assert said.count("\n") == 1 and "set PYTHON" in said

    def test_installs_what_is_missing_next_to_the_torch_that_is_there(self, tmp_path):
        binaries = tmp_path / "venv" / "bin"
        binaries.mkdir(parents=True)
        log = tmp_path / "log"
        (binaries / "python").write_text(
            f"#!/bin/sh\necho $* >> {log}\n"
            f'case "$*" in *purelib*) echo {binaries} ;; *import*gpu_jobs*) [ -e {binaries}/torch.pth ] ;; esac\n'
        )
        (binaries / "python").chmod(0o755)

        code, _ = run_script("--small", PYTHON=stub(tmp_path, "examples.benchmarks"), VENV=str(tmp_path / "venv"))

        assert code == 0
        *_, install, check, run = log.read_text().splitlines()
        assert "pip install" in install and "--editable .[models]" in install
        assert (tmp_path / "venv" / "constraints.txt").read_text() == "torch==2.8.0\n"
        assert "import" in check
        assert (binaries / "torch.pth").exists()
        assert re.fullmatch(r"-m examples.benchmarks.gpu --budget 2\d\d --small", run)

        code, said = run_script("--small", PYTHON=stub(tmp_path, "examples.benchmarks"), VENV=str(tmp_path / "venv"))

        assert (code, said) == (0, "")  # what an earlier run installed is used
        assert log.read_text().count("pip install") == 1
