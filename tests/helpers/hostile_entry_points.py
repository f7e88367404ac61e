"""Runs each kind of hostile folder through every entry point that builds or loads a model, in one process.

    python -O -m tests.helpers.hostile_entry_points SCRATCH [KIND ...]

Prints one JSON object: for each kind and entry point, the violations and the result.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file, save_file

from hf_fingerprint import FingerprintConfig, Issuer, Vault, issue
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.registration import register
from hf_fingerprint.training import Fingerprint
from hf_fingerprint.training.trigger_labels import embed_trigger_labels
from tests.helpers.evaluation_runs import save_images
from tests.helpers.hostile_folders import KINDS, PAYLOAD, Watch, write_hostile_folder
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, build, new_vault, save_timm, save_vit


CLASSES = ["ant", "bee", "cat", "dog"]
TOKEN = "hf_the-owner-of-org"
QUICK = ("--coalition", 2, "--expected-recipients", 4)
BUDGET = ("--budget", 2)
FITTING = ("--count", 2, "--decoys", 0, "--steps", 1)


class HostileFixture:
    """The files that every kind runs on: a registered base of each form with a trigger set, a copy, a suspect with
    permuted channels, images, and a Hub."""

    def __init__(self, root: Path, hub: LoopbackHub, forms: set[str]):
        self.root, self.hub = root, hub
        self.models = {form: save_model(root / form, form) for form in forms}
        self.issuers: dict[str, Issuer] = {}
        self.images = save_images(root / "images", CLASSES, 6)
        self.labels = root / "labels.txt"
        self.labels.write_text("\n".join(CLASSES) + "\n")
        for form, model in self.models.items():
            base, vault = copytree(model, root / f"base-{form}"), new_vault(root / f"vault-{form}").folder
            register(base, Vault(vault), FingerprintConfig(coalition=2, expected_recipients=4))
            self.run("triggers", base, "--vault", vault, *FITTING, "--images", self.images)
            copy = issue(base, "alice", vault, root / f"copy-{form}").path
            self.issuers[form] = Issuer(base, Vault(vault))
            suspect = root / f"suspect-{form}"
            suspect.mkdir()
            state = load_file(copy / "model.safetensors")
            permuted = {n: t.roll(3, 0).contiguous() if t.ndim == 2 else t for n, t in state.items()}
            save_file(permuted, suspect / "model.safetensors")
            hub.add(f"org/suspect-{form}", suspect)

    def run(self, *arguments: object) -> str:
        """Runs a command, and returns its exit code and error."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        errors = [line for line in err.getvalue().splitlines() if line.startswith("Error: ")]
        return f"{code} {' '.join(errors)}".strip()


def save_model(folder: Path, form: str) -> Path:
    """Saves a small model of timm or transformers."""
    if form == "timm":
        return save_timm(folder, img_size=32, num_classes=4)
    return save_vit(folder, num_labels=4, num_hidden_layers=2)


def entry_points(ground: HostileFixture, form: str, folder: Path, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Returns every entry point for a hostile folder; later ones may use the results of earlier ones."""
    run, vault, vault_path = ground.run, scratch / "vault", ground.root / f"vault-{form}"
    base, copy, suspect = ground.root / f"base-{form}", scratch / "copy", ground.root / f"suspect-{form}"
    new_vault(vault)

    def evaluate_folder() -> str:
        choice = ("--attacks", "half", "--coalitions", "2", "--quick", *QUICK[:2], "--expected-recipients", 4)
        return run("evaluate", folder, "--data", ground.images, "--out", scratch / "evaluation", *choice)

    def training() -> None:
        fingerprint = Fingerprint(folder, "carol", vault, FingerprintConfig(coalition=2, expected_recipients=4))
        fingerprint.bind(build(ground.models[form]).module)
        fingerprint.record(folder)

    def embed_labels() -> None:
        opened = Vault(vault_path)
        embed_trigger_labels(folder, opened.bases()[0], opened, bytes(32), ground.images)

    return {
        "build": lambda: build(folder),
        "hash": lambda: run("hash", folder),
        "inspect": lambda: run("inspect", folder, *QUICK),
        "vault add": lambda: run("vault", "add", folder, "--vault", vault, *QUICK),
        "issue": lambda: run("issue", folder, "--vault", vault, "--recipient", "b", "--out", scratch, *QUICK),
        "push_to_hub": lambda: run(
            "issue", folder, "--vault", vault, "--recipient", "eve", "--push-to", f"org/{scratch.name}", *QUICK
        ),
        "push": lambda: run("push", copy, f"org/{scratch.name}-copy", "--vault", vault_path),
        "triggers": lambda: run("triggers", folder, "--vault", vault, *FITTING, "--images", ground.images),
        "query": lambda: run("query", f"pipeline:{folder}", "--vault", vault_path, "--labels", ground.labels, *BUDGET),
        "evaluate": evaluate_folder,
        "trace": lambda: run("trace", suspect, "--vault", vault_path),
        "trace a hostile suspect": lambda: run("trace", folder, "--vault", vault_path, "--base", base),
        "hash its payload": lambda: run("hash", folder, "--file", f"inner/{PAYLOAD}"),
        "add its payload": lambda: run("vault", "add", folder / PAYLOAD, "--vault", vault, "--amplitude", 0.01),
        "trace its payload": lambda: run("trace", folder / "inner" / PAYLOAD, "--vault", vault_path, "--base", base),
        "verify": lambda: run("verify", suspect, "--vault", vault_path, "--recipient", "alice"),
        "watch": lambda: run("watch", f"org/suspect-{form}", "--vault", vault_path),
        "Fingerprint": training,
        "embed_trigger_labels": embed_labels,
    }


def try_kind(ground: HostileFixture, watch: Watch, name: str, number: int) -> dict[str, Any]:
    """Runs a kind through every entry point. The folders of base and copy become hostile too, with their weights."""
    kind, scratch = KINDS[name], ground.root / f"kind-{number}"
    scratch.mkdir()
    folder = write_hostile_folder(kind, ground.models[kind.form], scratch / "model")
    plain = ground.issuers[kind.form].issue(f"recipient {number}", scratch / "plain").path
    write_hostile_folder(kind, plain, scratch / "copy")
    base, kept = ground.root / f"base-{kind.form}", ground.root / "kept"
    base.rename(kept)
    write_hostile_folder(kind, kept, base)
    found = {}
    with ExitStack() as restored:
        restored.callback(kept.rename, base)
        restored.callback(rmtree, base)
        for entry_point, go in entry_points(ground, kind.form, folder, scratch).items():
            before = len(ground.hub.calls)
            with watch.over(scratch) as violations:
                try:
                    ended = str(go())
                except FingerprintError as error:
                    ended = f"refused: {error}"
                except Exception as error:
                    ended = f"An unexpected {type(error).__name__}: {error}"
            violations += [call.path for call in ground.hub.calls[before:] if "evil" in call.path]
            found[entry_point] = {"seen": violations, "ended": ended}
    rmtree(scratch)
    return found


def run_all_kinds(root: Path, names: list[str]) -> dict[str, Any]:
    """Runs all kinds."""
    tempfile.tempdir = str(root)
    patches = pytest.MonkeyPatch()
    with (
        LoopbackHub() as hub,
        patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly),
        patches.context() as m,
    ):
        hub.point_client(m, root / "cache")
        hub.account("owner", orgs={"org"}, token=TOKEN)
        m.setenv("HF_TOKEN", TOKEN)
        m.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
        m.setattr("huggingface_hub.constants.HF_HOME", str(root / "cache"))
        ground = HostileFixture(root, hub, {KINDS[name].form for name in names})
        ports = tuple(int(url.rpartition(":")[2]) for url in (hub.url, hub.store_url))
        watch = Watch(root, ports=ports)
        return {name: try_kind(ground, watch, name, number) for number, name in enumerate(names)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_all_kinds(Path(sys.argv[1]), sys.argv[2:] or list(KINDS))))
