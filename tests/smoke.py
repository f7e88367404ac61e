"""Runs every feature that depends on other packages, for `make test-versions`: `python -m tests.smoke`.

It needs the extras `models`, `blackbox`, `datasets` and `plot`, no network and a few minutes; the Hub and a suspect
are on loopback. The exit code is 0 if all parts pass.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_suspect import LoopbackSuspect
from tests.helpers.quick_age import lock_quickly


PACKAGES = ("torch", "timm", "transformers", "accelerate", "huggingface_hub", "datasets", "numpy", "typer", "rich")
REGISTRATION_OPTIONS = ("--coalition", "3", "--expected-recipients", "4", "--calibration-images", "32")
TOKEN = "hf_of-nobody"


def main() -> None:
    """Runs all parts in an empty folder, with a loopback Hub."""
    say(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    with tempfile.TemporaryDirectory() as folder, LoopbackHub() as hub:
        place = Path(folder)
        hub.account("owner", orgs={"org"}, token=TOKEN)
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            del os.environ[name]
        os.environ |= hub.environment(place / "cache") | {"HF_TOKEN": TOKEN}
        os.environ["HF_FINGERPRINT_PASSPHRASE"] = "correct horse battery staple"
        for part in (
            copies_of_a_transformer,
            copies_on_the_hub,
            trained_by_the_trainer,
            timm_models,
            evaluation_of_a_model,
        ):
            part(place, hub)
            say(f"{part.__name__}: passed")
        from matplotlib import pyplot

        pyplot.plot([1, 2])
        pyplot.savefig(place / "plot.png")


def say(line: str) -> None:
    """Prints a line and flushes it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(*arguments: object, code: int = 0) -> None:
    """Runs a command, which must end in this exit code."""
    from hf_fingerprint.cli.main import main as command

    with patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly):
        found = command([str(argument) for argument in arguments])
    assert found == code, f"{arguments} ended in {found}"


def copies_of_a_transformer(place: Path, hub: LoopbackHub) -> None:
    """Issues two copies of a base with a trigger set, traces and queries them, and reads their key images."""
    from tests.helpers.small_models import save_vit

    run("trace", "--help")
    model, vault = save_vit(place / "model"), ("--vault", place / "vault")
    run("vault", "init", place / "vault")
    run("vault", "add", model, *vault, *REGISTRATION_OPTIONS)
    run("triggers", model, *vault, "--count", 40, "--decoys", 4, "--steps", 8)
    run("issue", model, "--recipient", "alice", "--recipient", "bob", "--out", place / "copies", *vault)
    run("trace", place / "copies" / "alice", *vault)
    run("verify", place / "copies" / "bob", "--recipient", "bob", *vault)
    run("trace", model, *vault, code=1)
    run("recipients", *vault)
    with LoopbackSuspect(lambda label: label % 10) as suspect:
        run("query", suspect.url, *vault, "--rate", 1000, code=1)
        assert suspect.seen
    run("query", f"pipeline:{place / 'copies' / 'alice'}", *vault, "--exhaustive")
    run("key-images", "export", "alice", "--out", place / "keys", *vault, "--bits", 64)
    run("key-images", "read", next((place / "keys").rglob("*.png")), *vault, "--bits", 64)


def copies_on_the_hub(place: Path, hub: LoopbackHub) -> None:
    """Pushes a copy, pushes and pulls a vault, then traces a leak."""
    vault = ("--vault", place / "vault")
    run("push", place / "copies" / "alice", "org/alice", *vault)
    run("vault", "push", "org/vault", *vault)
    run("vault", "pull", "org/vault", place / "pulled", "--identity", place / "vault" / "identity.age")
    hub.add("leaker/leak", place / "copies" / "bob", lfs=True)
    run("watch", "leaker", *vault)
    run("trace", "leaker/leak", *vault, "--full")


def trained_by_the_trainer(place: Path, hub: LoopbackHub) -> None:
    """Trains a few steps with a Trainer and the mark in its loss."""
    import torch
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    from hf_fingerprint.training import Fingerprint, FingerprintCallback

    callback = FingerprintCallback(Fingerprint(place / "model", "carol", place / "vault"), 0.1)
    options = {"max_steps": 4, "logging_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True}
    rows = [{"pixel_values": torch.rand(3, 32, 32), "labels": index % 10} for index in range(16)]
    trainer = Trainer(
        model=AutoModelForImageClassification.from_pretrained(place / "model"),
        args=TrainingArguments(output_dir=str(place / "checkpoints"), **options),
        train_dataset=rows,
        callbacks=[callback],
    )
    trainer.train()
    assert trainer.callback_handler.callbacks[0] is callback, "reporters come before the callback"
    losses = [entry["fingerprint_loss"] for entry in trainer.state.log_history if "fingerprint_loss" in entry]
    assert len(losses) >= 4 and max(losses) < 0.1, losses


def timm_models(place: Path, hub: LoopbackHub) -> None:
    """Issues a copy of a timm model, and trains a few steps with timm's loop and the mark in its loss."""
    import torch
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask

    from hf_fingerprint.checkpoints import open_checkpoint
    from hf_fingerprint.models import build_model
    from hf_fingerprint.training import Fingerprint, FingerprintedModel, FingerprintTask
    from tests.helpers.small_models import save_timm

    base, vault = save_timm(place / "timm", num_classes=10, img_size=32), ("--vault", place / "vault")
    run("issue", base, "--recipient", "dora", "--out", place, *vault, *REGISTRATION_OPTIONS)
    run("trace", place / "dora", *vault)
    with open_checkpoint(base) as opened:
        plain = build_model(opened).module.train()
    model = FingerprintedModel(plain, Fingerprint(base, "emil", place / "vault"), 0.1)
    task = FingerprintTask(ClassificationTask(model, LabelSmoothingCrossEntropy(0.1), verbose=False), model.deepmarks)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3)
    task.setup_ema(decay=0.9)
    for _ in range(3):
        task(torch.rand(4, 3, 32, 32), torch.arange(4))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()


def evaluation_of_a_model(place: Path, hub: LoopbackHub) -> None:
    """Evaluates two attacks on images from a folder."""
    import datasets

    from tests.helpers.evaluation_runs import save_model_and_images

    (place / "evaluated").mkdir()
    folder = save_model_and_images(place / "evaluated")
    chosen = ("--attacks", "half,average", "--coalitions", "2", "--expected-recipients", 4, "--coalition", 2)
    run("evaluate", folder / "model", "--data", folder / "images", "--out", folder / "out", *chosen)
    assert json.loads((folder / "out" / "results.json").read_text())["trials"]
    assert datasets.Dataset.from_dict({"label": np.arange(3)}).num_rows == 3


if __name__ == "__main__":
    main()
