"""Measures publishing and tracing by Hub id, with the real client against the tests' Hub on 127.0.0.1."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import digits, lite0, load_model, save_timm
from examples._common.results import Figure
from examples._common.training import fine_tune
from examples.benchmarks.speed import AMPLITUDE, PASSPHRASE, ratio, seconds, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace
from hf_fingerprint.attacks import Quantization, collude
from hf_fingerprint.hub import Assignment, Publisher
from tests.helpers.loopback_hub import LoopbackHub


TOKEN = "hf_the-owner-of-org"


class Patches:
    """A stand-in for pytest's monkeypatch, for `LoopbackHub.point_client`."""

    def setattr(self, target: object, name: str, value: object, raising: bool = True) -> None:
        """Sets an attribute until `patch.stopall()`."""
        patch.object(target, name, value, create=not raising).start()

    def setenv(self, name: str, value: str) -> None:
        """Sets a variable permanently."""
        os.environ[name] = value

    def delenv(self, name: str, raising: bool = True) -> None:
        """Removes a variable permanently."""
        os.environ.pop(name, None)


@contextmanager
def logged_in(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Points this process' client at a Hub, with a temporary cache."""
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory() as cache:
        hub.point_client(Patches(), Path(cache))
        patch.object(constants, "HF_HOME", cache).start()
        os.environ["HF_TOKEN"] = TOKEN
        try:
            yield hub
        finally:
            patch.stopall()


@contextmanager
def own_hub() -> Iterator[LoopbackHub]:
    """Yields a Hub in this process; the client is logged in as a member of `org`."""
    with LoopbackHub() as hub, logged_in(hub):
        hub.account("owner", orgs={"org"}, token=TOKEN)
        yield hub


def serve(connection: Connection) -> None:
    """Runs a Hub until the other end of the pipe sends something."""
    with LoopbackHub() as hub:
        hub.account("owner", orgs={"org"}, token=TOKEN)
        connection.send(hub.url)
        connection.recv()


@contextmanager
def distant_hub() -> Iterator[None]:
    """Runs a Hub in a separate process, so that the measured process doesn't do its work."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    hub = LoopbackHub()
    hub.url = here.recv()
    with logged_in(hub):
        yield
    here.send("end")
    process.join()


def reading_rows(work: Path) -> list[Figure]:
    """Returns how many bytes a trace by id fetches of an 86 M weight model, among 1,000 recipients."""
    torch.manual_seed(0)
    model = save_timm(timm.create_model("vit_base_patch16_224", num_classes=10), work / "vit")
    vault = Vault.create(work / "vault", PASSPHRASE)
    with unbuilt():
        issuer = Issuer(model, vault, FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE))
    with issuer:
        copy = issuer.issue("the leaker", work / "copy").path
        for i in range(999):
            record, key = vault.begin_copy(issuer.base, f"innocent-{i}", Path("nowhere") / str(i))
            vault.mark_written(record, key, "00" * 32)
    vault.unlock(PASSPHRASE)
    rows = []
    for title, suspect, bound in suspects_of(copy, work):
        with own_hub() as hub:
            hub.add("attacker/leak", suspect, lfs=True)
            result = trace("attacker/leak", vault)
        rows.append(Figure(f"bytes to name the recipient of {title}, 86 M weights", verdict_text(result), bound))
    return rows


def suspects_of(copy: Path, work: Path) -> Iterator[tuple[str, Path, str]]:
    """Yields the verbatim copy, an 8-bit copy and a fine-tuned copy, one folder at a time."""
    yield "a verbatim copy", copy, "<= 2 %, <= 10 requests"
    folder = work / "suspect"
    shutil.copytree(copy, folder)
    save_file(Quantization(bits=8)(load_file(copy / "model.safetensors")), folder / "model.safetensors")
    yield "an 8-bit copy", folder, "reported, <= 20 %"
    images, labels = digits(224)
    fine_tuned = load_model(copy)
    fine_tune(fine_tuned, images, labels, lr=1e-5, steps=10, batch=4, label="an attacker fine-tunes the copy")
    shutil.rmtree(folder)
    yield "a fine-tuned copy (AdamW 1e-5, 10 steps)", save_timm(fine_tuned, folder), "reported, <= 20 %"


def verdict_text(result: TraceResult) -> str:
    """Returns the cost and verdict of a trace."""
    names = sorted({score.recipient for score in result.accused})
    share = result.bytes_fetched / result.bytes_total if result.bytes_total else 1.0
    score = max((score.score for score in result.accused), default=0.0)
    return f"{share:.2%}, {result.requests} requests; accused: {', '.join(names) or 'nobody'} (score {score:.0f})"


def compact_rows(work: Path) -> list[Figure]:
    """Returns how many bytes differ between compact copies of EfficientNet-Lite0, and whether leaks still trace."""
    model = save_timm(lite0(), work / "lite0")
    vault = Vault.create(work / "vault_compact", PASSPHRASE)
    names = ["alice", "bob", "carol"]
    with Issuer(model, vault, FingerprintConfig(carriers="compact")) as issuer:
        copies = {c.recipient: c.path / "model.safetensors" for c in issuer.issue_all(names, work / "copies")}
    one, two = (np.fromfile(copies[name], np.uint8) for name in names[:2])
    differ = np.flatnonzero(one != two)
    span = (differ[-1] + 1 - differ[0]) / len(one)
    vault.unlock(PASSPHRASE)
    leak = work / "leak.safetensors"
    save_file(collude([load_file(path) for path in copies.values()], "average"), leak)
    found = trace(leak, vault)
    accused = sorted({score.recipient for score in found.accused})
    lowest = min((score.score for score in found.accused), default=0.0)
    return [
        Figure("compact: bytes between the first and the last that differ", f"{span:.1%} of the file", "<= 5 %"),
        Figure("compact: average of 3 copies", f"{len(accused)} of 3, lowest score {lowest:.0f}", "all, nobody else"),
    ]


def publishing_rows(work: Path, count: int = 100, at_once: int = 20) -> list[Figure]:
    """Returns the time to issue variants relative to uploading plain copies of the same size, in alternation."""
    model = save_timm(lite0(), work / "model")
    vault = Vault.create(work / "vault_publishing", PASSPHRASE)
    with unbuilt():
        issuer = Issuer(model, vault, FingerprintConfig(amplitude=AMPLITUDE))
    ours, theirs = [], []
    plain = work / "plain"
    state = load_file(model / "model.safetensors")

    def upload(start: int) -> None:
        api = HfApi()
        for i in range(start, start + at_once):
            api.create_repo(f"org/plain-{i}", private=True)
            api.upload_folder(repo_id=f"org/plain-{i}", folder_path=plain / str(i))

    with issuer, distant_hub():
        publisher = Publisher(vault, work=work / "outgoing")
        for start in range(0, count, at_once):
            for i in range(start, start + at_once):  # different bytes, so that the server stores each
                shutil.copytree(model, plain / str(i))
                state["conv_stem.weight"].flatten()[0] = i
                save_file(state, plain / str(i) / "model.safetensors")
            os.sync()
            theirs.append(seconds(lambda start=start: upload(start)))
            shutil.rmtree(plain)
            wanted = [Assignment(f"r{i}", f"org/variant-{i}") for i in range(start, start + at_once)]
            os.sync()
            ours.append(seconds(lambda wanted=wanted: list(publisher.issue_all(issuer, wanted))))
    what = f"issuing {count} variants of a 19 MB model to a Hub / uploading {count} plain copies"
    return [Figure(what, ratio(ours, theirs), "<= 1.2")]


def hub_rows(work: Path) -> list[Figure]:
    """Returns all rows of the Hub."""
    return reading_rows(work) + compact_rows(work) + publishing_rows(work)
