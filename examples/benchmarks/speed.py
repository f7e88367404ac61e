"""Measures speed as ratios to plain work in the same run (medians over alternating pairs), and peak memory."""

import contextlib
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import lite0, save_timm
from examples._common.results import Figure
from examples.benchmarks.bulk_vault import add_copies
from hf_fingerprint import FingerprintConfig, Issuer, Vault, register, trace
from hf_fingerprint.checkpoints import sync
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models import BuiltModel, build_model
from hf_fingerprint.registration import measuring


PASSPHRASE = "a passphrase for the benchmark"
BATCH, AMPLITUDE = 4, 0.003
MEMORY = Path("/dev/shm")


def seconds(work: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def marked_vit(
    out: Path, vault_name: str, architecture: str = "vit_base_patch16_224"
) -> Iterator[tuple[Issuer, Path]]:
    """Yields the issuer of a timm model, by default a ViT-B/16, with a vault of its own, and its weight file."""
    model = out / architecture
    if not model.exists():
        save_timm(timm.create_model(architecture), model)
    vault = Vault.create(out / vault_name, PASSPHRASE)
    with unbuilt():  # amplitudes don't matter here, and 86 M weights take a minute to calibrate
        issuer = Issuer(model, vault, FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE))
    with issuer:
        yield issuer, model / "model.safetensors"


def speed_rows(out: Path, pairs: int = 8) -> list[Figure]:
    """Returns the time to register, issue and trace a model of 86 M weights, relative to plain work on its file."""
    rows = []
    with marked_vit(out, "vault_issuing") as (issuer, weights):
        rows.append(registering_ratio(weights.parent, out, pairs))
        if MEMORY.is_dir():
            with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
                rows.append(issuing_ratio(issuer, weights, Path(folder), pairs, synced=False))
        rows.append(issuing_ratio(issuer, weights, out / "copies_speed", pairs, synced=True))
    for recipients in (15, 1000, 10_000):
        with marked_vit(out, f"vault_{recipients}") as (issuer, weights):
            suspect = issuer.issue("suspect", out / f"suspect_{recipients}").path
            add_copies(issuer.vault, issuer.base, recipients - 1)
            rows += tracing_ratios(issuer.vault, weights, suspect, recipients, pairs)
    return rows


def registering_ratio(model: Path, out: Path, pairs: int) -> Figure:
    """Returns the time to register a model at a fixed strength, relative to hashing its file."""
    ours, theirs = [], []
    config = FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE)
    for turn in range(pairs):
        vault = Vault.create(out / f"vault_registering_{turn}", PASSPHRASE)
        theirs.append(seconds(lambda: hash_file(model / "model.safetensors")))
        with unbuilt():
            ours.append(seconds(lambda vault=vault: register(model, vault, config)))
    return bounded("register 86 M weights at a fixed strength / SHA-256 of the file", ours, theirs, 3)


def tracing_ratios(vault: Vault, weights: Path, suspect: Path, recipients: int, pairs: int) -> list[Figure]:
    """Returns the time of the first trace of a vault in seconds, and of further ones relative to plain work."""
    vault.unlock(PASSPHRASE)
    first = seconds(lambda: trace(suspect, vault))
    ours, theirs = [], []

    def subtract() -> None:
        base, other = load_file(weights), load_file(suspect / "model.safetensors")
        {name: base[name] - other[name] for name in base}

    for _ in range(pairs):
        theirs.append(seconds(subtract))
        ours.append(seconds(lambda: trace(suspect, vault)))
    what = f"trace among {recipients:,} recipients"
    more = first - statistics.median(ours)
    bounds = {15: 2.0, 1000: 2.0}
    return [
        bounded(f"{what} / load base and suspect and subtract", ours, theirs, bounds.get(recipients)),
        Figure(f"{what}, the first of a vault: seconds more", f"{more:.2f}", "<= 5", more <= 5),
    ]


def bounded(what: str, ours: list[float], theirs: list[float], bound: float | None) -> Figure:
    """Returns the figure of a ratio: its median holds a bound, if there is one."""
    shown = ratio(ours, theirs)
    if bound is None:
        return Figure(what, shown, "reported")
    return Figure(what, shown, f"<= {bound:g}", float(shown.split()[0]) <= bound)


def hash_file(path: Path) -> None:
    """One SHA-256 pass over a file."""
    with path.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")


def issuing_ratio(issuer: Issuer, weights: Path, folder: Path, pairs: int, synced: bool) -> Figure:
    """Returns the time to issue a copy in a batch, relative to plain work; every copy is removed again.

    In memory, that is the longer of loading and saving the file and of hashing it; on a disk, a plain copy.
    """
    plain = folder / "plain" / "plain.safetensors"
    plain.parent.mkdir(parents=True, exist_ok=True)

    def load_and_save() -> None:
        plain.unlink(missing_ok=True)
        save_file(load_file(weights), plain)

    def copy_synced() -> None:
        plain.unlink(missing_ok=True)
        shutil.copyfile(weights, plain)
        sync(plain)

    ours, theirs = [], []
    for turn in range(pairs):
        os.sync()  # so that neither waits for the writes of the other
        works = [copy_synced] if synced else [load_and_save, lambda: hash_file(weights)]
        theirs.append(max(seconds(lambda work=work: [work() for _ in range(BATCH)]) for work in works))
        os.sync()
        names = [f"{folder.name}-{turn}-{i}" for i in range(BATCH)]
        ours.append(seconds(lambda names=names: list(issuer.issue_all(names, folder / "copies"))))
        shutil.rmtree(folder / "copies")
    if synced:
        return bounded("issue one more copy in a batch, synced / a synced plain copy of the file", ours, theirs, 1.2)
    what = "issue one more copy in a batch, to memory / the longer of load + save and SHA-256 of the file"
    return bounded(what, ours, theirs, 1.5)


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


def scoring_rows(out: Path, count: int = 1_000_000, more: int = 10_000_000, length: int = 65_536) -> list[Figure]:
    """Returns time and memory of tracing among a million recipients on record, and of decoding among more."""
    with marked_vit(out, "vault") as (issuer, _):
        suspect = issuer.issue("suspect", out / "suspect").path
        add_copies(issuer.vault, issuer.base, count - 1)
        vault = str(issuer.vault.folder)
    rows = []
    for name in ("first trace of the vault", "next trace"):
        used, took = measure("trace", str(suspect), vault)
        figure, is_first = f"{float(took):.0f} s, {used} MB", name != "next trace"
        holds = float(used) < 1500 and (is_first or float(took) <= 45)
        what = f"{name}, ViT-B among {count:,} recipients on record, V = {length:,}"
        rows.append(Figure(what, figure, "< 1500 MB" if is_first else "<= 45 s, < 1500 MB", holds))
    for family in ("tardos", "fair_signs"):
        for recipients in (count, more):
            used, took = measure("score", family, str(recipients), str(length))
            each = float(took) / recipients * 1e6
            figure = f"{float(took):.0f} s, {each:.0f} us each, {used} MB"
            rows.append(Figure(f"decoding alone, {recipients:,} recipients, {family}", figure, "reported"))
    return rows


def measure(job: str, *arguments: str) -> list[str]:
    """Returns peak memory in MB and seconds of a job in a separate process."""
    command = [sys.executable, "-m", "examples.benchmarks.memory", job, *arguments]
    environment = {**os.environ, "HF_FINGERPRINT_PASSPHRASE": PASSPHRASE}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()


def start_rows(out: Path, runs: int = 7) -> list[Figure]:
    """Returns the user time of `hf-fingerprint --help`, and the time of a small model's trace besides unlocking."""
    command = str(Path(sys.executable).with_name("hf-fingerprint"))
    times = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([command, "--help"], check=True, capture_output=True)
        times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    needed = statistics.median(times)
    rows = [Figure("`hf-fingerprint --help`, user time", f"{needed:.2f} s", "<= 0.25 s", needed <= 0.25)]
    save_timm(lite0(), out / "lite0")
    vault = Vault.create(out / "vault_start", PASSPHRASE)
    config = FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE)
    with unbuilt(), Issuer(out / "lite0", vault, config) as issuer:
        suspect, *_ = (copy.path for copy in issuer.issue_all([f"recipient {i}" for i in range(15)], out / "copies"))
    environment = {**os.environ, "HF_FINGERPRINT_PASSPHRASE": PASSPHRASE}
    trace_it = [command, "trace", str(suspect), "--vault", str(vault.folder)]
    whole, unlocking = [], []
    for _ in range(runs):
        unlocking.append(seconds(lambda: vault.unlock(PASSPHRASE)))
        whole.append(seconds(lambda: subprocess.run(trace_it, check=True, capture_output=True, env=environment)))
    rest = statistics.median(a - b for a, b in zip(whole, unlocking, strict=True))
    shown = f"{rest:.2f} s, and {statistics.median(unlocking):.2f} s to unlock"
    return [
        *rows,
        Figure("`hf-fingerprint trace` of Lite0 among 15 recipients", shown, "< 1 s besides unlocking", rest < 1),
    ]
