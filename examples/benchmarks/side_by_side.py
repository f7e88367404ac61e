"""Times the public code of TATTOOED and of DeepMarks in the Watermark-Robustness-Toolbox next to ours, by turns.

    git clone https://github.com/pagiux/tattooed                                   # at 1de12cef0842
    git clone https://github.com/dnn-security/Watermark-Robustness-Toolbox toolbox  # at ae38f0baa12c
    python3 -m venv public-env
    public-env/bin/pip install setuptools wheel numpy==2.4.6
    public-env/bin/pip install --no-build-isolation -r examples/schemes/public_code.txt
    python -m examples.benchmarks.side_by_side --tattooed tattooed --toolbox toolbox --python public-env/bin/python

All three mark the same ResNet-18, from a file to a file in memory, with as many threads as this process may use cores:
on a busy machine, run it with `taskset -c 0`. TATTOOED and the toolbox run in a process each
(`examples/schemes/public_code.py`), on a model that is built before.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import save_timm
from examples._common.results import ROOT, Table, add_results_option, report
from examples._common.training import accuracy, fine_tune
from examples.benchmarks.attacks import LabeledImages, real_images
from examples.benchmarks.bulk_vault import add_copies
from examples.benchmarks.side_by_side_report import (
    OURS,
    TATTOOED,
    TOOLBOX,
    Measured,
    among,
    notes,
    ratio_table,
    schemes_table,
)
from examples.benchmarks.speed import AMPLITUDE, MEMORY, PASSPHRASE, seconds, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, Vault, register, trace
from hf_fingerprint.cli.output import echo_err
from hf_fingerprint.threads import cpu_count


SCRIPT = ROOT / "examples" / "schemes" / "public_code.py"
WEIGHTS = "model.safetensors"
SCHEMES = {TATTOOED: "tattooed", TOOLBOX: "toolbox"}  # their names in the script
EXPECTED_FILES = {TATTOOED: "watermark/watermark.py", TOOLBOX: "wrt/defenses/watermark/deepmarks.py"}
SIZE, CLASSES, IMAGES, TEST_IMAGES = 32, 10, 1920, 1000
RECIPIENTS = (1, 1000)


class PublicScheme:
    """The public code of a scheme, in a process of its own.

    Args:
        name (`str`): `TATTOOED` or `TOOLBOX`.
        checkout (`Path`): of its repository.
        setup (mapping): see `examples/schemes/public_code.py`.
        python (`Path`): runs the process.
        work (`Path`): a folder for its files.
    """

    def __init__(self, name: str, checkout: Path, setup: Mapping[str, Any], python: Path, work: Path):
        self.name, folder = name, work / f"process of {name}"
        folder.mkdir()
        own = {"scheme": SCHEMES[name], "checkout": str(checkout.absolute()), "work": str(folder)}
        written = folder / "setup.json"
        written.write_text(json.dumps({**setup, **own, "threads": cpu_count()}))
        environment = {**os.environ, "OMP_NUM_THREADS": f"{cpu_count()}", "PYTHONDONTWRITEBYTECODE": "1"}
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [python, SCRIPT, written],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self.about: dict[str, Any] = {}
        self.measured = Measured(0)

    def open(self) -> None:
        """Waits until the public code is imported."""
        self.about = self._response()
        self.measured = Measured(self.about["bits"])

    def __enter__(self) -> "PublicScheme":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()
        self._errors.close()

    def issue(self, base: Path, copy: Path) -> None:
        """Marks the base and writes a copy."""
        found = self._request(work="issue", source=str(base), copy=str(copy))
        self.measured.issue.append(found["whole"])
        self.measured.embedding.append(found["inner"])
        if found["steps"] is not None:
            self.measured.steps.append(found["steps"])

    def extract(self, suspect: Path) -> None:
        """Extracts from a copy."""
        found = self._request(work="extract", source=str(suspect))
        self.measured.add_extraction(self.name, found["whole"], found["present"] and not found["wrong"])
        if found["wrong"] is not None:
            self.measured.wrong.append(found["wrong"])

    def try_base(self, base: Path) -> None:
        """Extracts from the unmarked base."""
        found = self._request(work="extract", source=str(base))
        wrong = "" if found["wrong"] is None else f", {found['wrong']} of {self.measured.bits} bits wrong"
        self.measured.of_base = ("marked (!)" if found["present"] else "not marked") + wrong

    def _request(self, **request: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._response()

    def _response(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it printed nothing"])[-1]
            sys.exit(f"{self.name}: {last}. Install examples/schemes/public_code.txt for --python.")
        return json.loads(line)


class Ours:
    """The default scheme: copies are issued from one vault, and traced in vaults of 1 and of 1,000 recipients."""

    def __init__(self, base: Path, work: Path):
        self._work, config = work, FingerprintConfig(expected_recipients=max(RECIPIENTS), amplitude=AMPLITUDE)
        created = Vault.create(work / "vault", PASSPHRASE)
        with unbuilt():  # measuring the outputs of copies would take most of the run, and is done once for a base
            register(base, created, config)
        for recipients in RECIPIENTS:
            shutil.copytree(created.folder, work / f"vault-{recipients}")
        self.issuer = Issuer(base, created)
        self._vaults: dict[int, tuple[Vault, Path]] = {}
        self.first: dict[int, float] = {}
        self.alpha = self.issuer.base.alpha
        self.measured = Measured(self.issuer.base.length)
        for recipients in RECIPIENTS:
            vault = Vault(work / f"vault-{recipients}")
            with Issuer(base, vault) as issuer:
                suspect = issuer.issue("leaker", work / f"suspect-{recipients}").path
                add_copies(vault, issuer.base, recipients - 1)
            vault.unlock(PASSPHRASE)
            self._vaults[recipients] = vault, suspect
            self.first[recipients] = seconds(lambda suspect=suspect, vault=vault: trace(suspect, vault))
        results = [trace(base, vault) for vault, _ in self._vaults.values()]
        self.measured.of_base = "accused (!)" if any(each.accused for each in results) else "nobody is accused"

    def __enter__(self) -> "Ours":
        return self

    def __exit__(self, *exception: object) -> None:
        self.issuer.__exit__()

    def issue(self, recipient: str, folder: Path) -> None:
        """Issues one more copy."""
        self.measured.issue.append(seconds(lambda: self.issuer.issue(recipient, folder)))

    def extract(self) -> None:
        """Traces a copy among 1 and among 1,000 recipients."""
        for recipients, (vault, issued) in self._vaults.items():
            suspect = self._work / "suspect"  # new files each time, since a vault remembers the hash of files
            shutil.copytree(issued, suspect)
            found = []
            took = seconds(lambda s=suspect, v=vault, found=found: found.append(trace(s, v)))
            accused = [score.recipient for score in found[0].accused]
            self.measured.add_extraction(among(recipients), took, accused == ["leaker"])
            shutil.rmtree(suspect)


def check_checkout(name: str, checkout: Path) -> str:
    """Returns the commit of a checkout; exits if it is none."""
    if not (checkout / EXPECTED_FILES[name]).is_file():
        sys.exit(f"{checkout} has no {EXPECTED_FILES[name]}: clone the repository of {name}, and give its path.")
    command = ["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found if re.fullmatch("[0-9a-f]{12}", found) and (checkout / ".git").exists() else "unknown"


def make_base(architecture: str, folder: Path, train: LabeledImages, steps: int) -> Path:
    """Returns the folder of the owner's model, trained for some steps."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=CLASSES)
    for lr, share in ((1e-3, 2), (1e-4, 1)):  # the second rate settles the batch normalizations' statistics
        fine_tune(model, *train, lr=lr, steps=max(1, share * steps // 3))
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIZE, SIZE), "mean": half, "std": half}
    return save_timm(model, folder)


def measure(others: Sequence[PublicScheme], ours: Ours, base: Path, pairs: int, work: Path) -> None:
    """Issues and extracts by turns, each into `work/SCHEME/TURN`. What compiles or opens keys is warm before."""
    for scheme in others:
        if scheme.name == TATTOOED:  # its decoder is compiled when it first runs
            scheme.issue(base / WEIGHTS, work / "warm" / WEIGHTS)
            scheme.extract(work / "warm" / WEIGHTS)
            scheme.measured = Measured(scheme.measured.bits)
    for turn in range(pairs):
        ours.issue(f"recipient {turn}", work / OURS / f"{turn}")
        ours.extract()
        for scheme in others:
            copy = work / scheme.name / f"{turn}" / WEIGHTS
            scheme.issue(base / WEIGHTS, copy)
            scheme.extract(copy)
        echo_err(f"turn {turn + 1} of {pairs}")
        if turn:
            for name in (*(scheme.name for scheme in others), OURS):
                shutil.rmtree(work / name / f"{turn}")
    for scheme in others:
        scheme.try_base(base / WEIGHTS)


def accuracy_of(weights: Path, architecture: str, test: LabeledImages) -> float:
    """Returns the accuracy of a weight file on test images."""
    model = timm.create_model(architecture, num_classes=CLASSES)
    model.load_state_dict(load_file(weights))
    return accuracy(model.eval(), *test)


def listed(versions: Mapping[str, str]) -> str:
    """Returns names with their versions."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def run(arguments: argparse.Namespace, work: Path) -> list[Table]:
    """Measures all three in a folder, and returns the tables."""
    checkouts = {TATTOOED: arguments.tattooed, TOOLBOX: arguments.toolbox}
    commits = {name: check_checkout(name, checkout) for name, checkout in checkouts.items()}
    torch.set_num_threads(cpu_count())
    architecture = arguments.architecture
    data, train, test = real_images(SIZE, arguments.images, TEST_IMAGES)
    base = make_base(architecture, work / "base", train, arguments.training_steps)
    images = work / "images.safetensors"
    save_file({"images": train[0], "labels": train[1]}, images)
    setup = {"architecture": architecture, "classes": CLASSES, "images": str(images), "epochs": arguments.epochs}
    with ExitStack() as stack:
        others = [
            stack.enter_context(PublicScheme(name, checkout, setup, arguments.python.absolute(), work))
            for name, checkout in checkouts.items()
        ]
        for scheme in others:
            scheme.open()
        ours = stack.enter_context(Ours(base, work))
        measure(others, ours, base, arguments.pairs, work)
    theirs = {scheme.name: scheme.measured for scheme in others}
    for name, each in {**theirs, OURS: ours.measured}.items():
        each.accuracy = accuracy_of(work / name / "0" / WEIGHTS, architecture, test)
    about = {scheme.name: scheme.about for scheme in others}
    libraries = {name: number for each in about.values() for name, number in each["versions"].items()}
    threads = f"{cpu_count()} thread{'s' if cpu_count() > 1 else ''}"
    setting = (
        f"{architecture} with {CLASSES} classes at {SIZE} pixels, trained on {len(train[0]):,} images of {data}, has "
        f"an accuracy of {accuracy_of(base / WEIGHTS, architecture, test):.1%} on {len(test[0]):,} others. Each "
        f"scheme has {threads}. Commits: {listed(commits)}. Theirs run with {listed(libraries)}."
    )
    below = notes(setting, arguments.pairs, ours.first, about, theirs[TOOLBOX])
    return [ratio_table(theirs, ours.measured), schemes_table({**theirs, OURS: ours.measured}, ours.alpha, below)]


def main() -> None:
    """Measures all three and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tattooed", type=Path, required=True, help="a checkout of TATTOOED")
    parser.add_argument("--toolbox", type=Path, required=True, help="a checkout of the Watermark-Robustness-Toolbox")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the Python that runs these two")
    parser.add_argument("--architecture", default="resnet18", help="a timm architecture")
    parser.add_argument("--pairs", type=int, default=5, help="number of turns")
    parser.add_argument("--epochs", type=int, default=8, help="of the toolbox's embedding")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images that owner and toolbox train on")
    parser.add_argument("--training-steps", type=int, default=240, help="of the owner's model")
    add_results_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as work:
        tables = run(arguments, Path(work))
    report(arguments, tables)


if __name__ == "__main__":
    main()
