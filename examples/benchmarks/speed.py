"""Measures speed as ratios to plain work in the same run (medians over alternating pairs), and peak memory."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import save_timm
from examples._common.results import Figure
from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models import BuiltModel, build_model
from hf_fingerprint.registration import measuring


PASSPHRASE = "a passphrase for the benchmark"
BATCH, AMPLITUDE = 4, 0.003
MEMORY = Path("/dev/shm")
ONE_MORE = "one more copy of 86 M weights in a batch"


def seconds(work: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speed_rows(out: Path, pairs: int = 4) -> list[Figure]:
    """Returns the time to issue and trace an 86 M weight model, relative to loading, saving and subtracting it."""
    model = out / "vit"
    save_timm(timm.create_model("vit_base_patch16_224"), model)
    vault = Vault.create(out / "vault_speed", PASSPHRASE)
    with unbuilt():  # amplitudes don't matter here, and 86 M weights take a minute to calibrate
        issuer = Issuer(model, vault, FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE))
    weights = model / "model.safetensors"
    rows = []
    with issuer:
        if MEMORY.is_dir():
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                figure = issuing_ratio(issuer, weights, Path(folder), pairs, synced=False)
            rows.append(Figure(f"issue {ONE_MORE} / `load_file` + `save_file`, both to memory", figure, "<= 2.5"))
        figure = issuing_ratio(issuer, weights, out / "copies_speed", pairs, synced=True)
        rows.append(Figure(f"issue {ONE_MORE} / the same, both synced to the disk", figure, "reported"))
        suspect = issuer.issue("suspect", out / "suspect").path
        for i in range(999 - len(vault.copies())):
            record, key = vault.begin_copy(issuer.base, f"innocent-{i}", Path("nowhere") / str(i))
            vault.mark_written(record, key, "00" * 32)

    vault.unlock(PASSPHRASE)
    first = seconds(lambda: trace(suspect, vault))
    ours, theirs = [], []

    def subtract() -> None:
        base, other = load_file(weights), load_file(suspect / "model.safetensors")
        {name: base[name] - other[name] for name in base}

    for _ in range(pairs):
        theirs.append(seconds(subtract))
        ours.append(seconds(lambda: trace(suspect, vault)))
    rows.append(
        Figure("trace among 1,000 recipients / load base and suspect and subtract", ratio(ours, theirs), "<= 4")
    )
    cold = f"{first / statistics.median(theirs):.2f}"
    rows.append(Figure("the same, first trace of a vault (each copy key unsealed by itself)", cold, "reported"))
    return rows


def issuing_ratio(issuer: Issuer, weights: Path, folder: Path, pairs: int, synced: bool) -> str:
    """Returns the time to issue a copy in a batch, relative to a plain copy; every copy is removed again."""
    plain = folder / "plain" / "plain.safetensors"
    plain.parent.mkdir(parents=True, exist_ok=True)

    def plain_copy() -> None:
        plain.unlink(missing_ok=True)
        save_file(load_file(weights), plain)
        if synced:
            sync(plain)

    ours, theirs = [], []
    for turn in range(pairs):
        os.sync()  # so that neither waits for the writes of the other
        theirs.append(seconds(lambda: [plain_copy() for _ in range(BATCH)]))
        os.sync()
        names = [f"{folder.name}-{turn}-{i}" for i in range(BATCH)]
        ours.append(seconds(lambda names=names: list(issuer.issue_all(names, folder / "copies"))))
        shutil.rmtree(folder / "copies")
    return ratio(ours, theirs)


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Returns the median ratio of the pairs, with the smallest and the largest."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"


class unbuilt:
    """A context in which no model can be built, so that registration measures no output."""

    def __enter__(self) -> None:
        def refuse(*_: object) -> BuiltModel:
            raise BuildError("models are not built here")

        measuring.build_model = refuse

    def __exit__(self, *exception: object) -> None:
        measuring.build_model = build_model


def memory_rows(out: Path) -> list[Figure]:
    """Returns the peak memory of issue and trace on a file of 1 GB."""
    rng = np.random.default_rng(0)
    arrays = {f"layers.{i}.weight": rng.standard_normal((4096, 4096), dtype=np.float32) for i in range(15)}
    arrays["head.weight"] = rng.standard_normal((10, 4096), dtype=np.float32)
    model = out / "big.safetensors"
    save_arrays(arrays, model)
    largest = max(array.nbytes for array in arrays.values()) / 1e6
    del arrays
    config = FingerprintConfig(expected_recipients=10, amplitude=AMPLITUDE)
    Issuer(model, Vault.create(out / "vault_memory", PASSPHRASE), config).__exit__()
    allowed = f"<= {4 * largest + 200:.0f} MB"
    issued, traced = out / "big_copy", out / "big_copy" / model.name
    rows = []
    for job, arguments in (
        ("issue", [model, out / "vault_memory", issued]),
        ("trace", [traced, out / "vault_memory"]),
    ):
        used, _ = measure(job, *map(str, arguments))
        rows.append(Figure(f"peak memory of {job} on a 1 GB file, above the imports", f"{used} MB", allowed))
    shutil.rmtree(issued)
    return rows


def scoring_rows(count: int = 1_000_000, length: int = 65_536) -> list[Figure]:
    """Returns time and memory of decoding among a million recipients."""
    rows = []
    for family in ("tardos", "fair_signs"):
        used, took = measure("score", family, str(count), str(length))
        each = float(took) / count * 1e6
        figure = f"{float(took):.0f} s, {each:.0f} us each, {used} MB"
        rows.append(Figure(f"decoding {count:,} recipients, V = {length:,}, {family}", figure, "< 2 GB, aim < 120 s"))
    return rows


def measure(job: str, *arguments: str) -> list[str]:
    """Returns peak memory in MB and seconds of a job in a separate process."""
    command = [sys.executable, "-m", "examples.benchmarks.memory", job, *arguments]
    environment = {**os.environ, "HF_FINGERPRINT_PASSPHRASE": PASSPHRASE}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()


def help_row() -> Figure:
    """Returns the user time of `hf-fingerprint --help`."""
    command = [str(Path(sys.executable).with_name("hf-fingerprint")), "--help"]
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(command, check=True, capture_output=True)
        times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return Figure("`hf-fingerprint --help`, user time", f"{statistics.median(times):.2f} s", "<= 0.25 s")
