"""Tests the bound under each reading of an extraction: simulated innocents against suspects that drifted.

A small vision transformer is fine-tuned from an ancestor on scikit-learn's digits, and copies of it are fine-tuned,
averaged and truncated, and merged. Each suspect is read plainly, whitened and with the ancestor. For each code and
reading, 10^7 innocents are scored: the observed share of scores above a threshold, over the share that was proven.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf

from examples._common.real_inputs import digits, load_model
from examples._common.results import Table, add_results_option, report
from examples._common.training import fine_tune
from examples.benchmarks.codes import LEVELS, observed_over_proven
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.attacks import Attacker, Collusion, FineTuning, LowRank, MagnitudeBand, Merge, OnDelta
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.choices import FAMILIES, Family
from hf_fingerprint.codes import decode_readings
from hf_fingerprint.codes.residual import residual_signal
from hf_fingerprint.extraction import extract
from hf_fingerprint.registration import open_base


INNOCENTS, COPIES, SIZE = 10_000_000, 3, 32
PASSPHRASE = "a passphrase for the benchmark"
VIT = {"img_size": SIZE, "patch_size": 8}
State = dict[str, torch.Tensor]


def save(model: torch.nn.Module, folder: Path) -> Path:
    """Saves a model with its arguments, and returns the folder."""
    save_for_hf(model, folder, safe_serialization=True, model_args=VIT)
    return folder


def make_models(folder: Path, steps: int) -> tuple[Path, Path]:
    """Returns the folders of the base and of the ancestor that it was fine-tuned from."""
    torch.manual_seed(0)
    images, labels = digits(SIZE)
    quarters = torch.arange(len(images)) % 4
    rotated = torch.stack([i.rot90(int(q), (1, 2)) for i, q in zip(images, quarters, strict=True)])
    ancestor = timm.create_model("test_vit", num_classes=4, **VIT)
    fine_tune(ancestor, rotated, quarters, 1e-3, 2 * steps, label="the ancestor trains")
    save(ancestor, folder / "ancestor")
    base = load_model(folder / "ancestor")
    base.reset_classifier(10)
    fine_tune(base, images, labels, 1e-3, steps, label="the owner trains")
    return save(base, folder / "base"), folder / "ancestor"


def make_suspects(copies: list[Path], ancestor: Path, steps: int) -> Iterator[tuple[str, int, State]]:
    """Yields suspects: the description, the number of colluders, and the weights."""
    images, labels = digits(SIZE)
    states = [load_model(copy).state_dict() for copy in copies]
    attacker = Attacker(lambda: load_model(copies[0]), images, labels, ancestor=load_model(ancestor).state_dict())
    average: State = Collusion("average")(states)
    yield "AdamW 1e-3", 1, FineTuning(1e-3, steps=steps)(states[0], attacker)
    yield "rank 10 % of the average of 3", COPIES, OnDelta(LowRank(0.1))(average, attacker)
    yield "TIES of 3 at 20 %", COPIES, Merge("elected signs", MagnitudeBand(0.2))(states, attacker)


def measure(
    family: Family, folder: Path, base: Path, ancestor: Path, innocents: int, steps: int
) -> Iterator[tuple[str, ...]]:
    """Yields a row for each suspect and reading of one code."""
    vault = Vault.create(folder / family, PASSPHRASE)
    config = FingerprintConfig(amplitude=0.01, code=family, coalition=5)
    names = [f"holder-{i}" for i in range(COPIES)]
    with Issuer(base, vault, config, ancestor=ancestor) as issuer:
        copies = [copy.path for copy in issuer.issue_all(names, folder / f"{family}-copies")]
    vault.unlock(PASSPHRASE)
    known = vault.bases()[0]
    codebook = known.codebook()
    by_name = {copy.recipient: copy for copy in vault.copies()}
    keys = vault.copy_keys([by_name[name] for name in names])
    nobody, labels, functions = np.empty((0, known.length)), [], []
    with open_base(known, vault) as original, open_checkpoint(ancestor) as public:
        for what, colluders, state in make_suspects(copies, ancestor, steps):
            with open_checkpoint(state, suspect=True) as suspect:
                readings = extract(known, original, suspect, ancestor=public).readings
            found = decode_readings(codebook, keys, list(readings.values()), known.alpha, recipients=innocents)
            caught = len(set(found.accused) & set(range(colluders)))
            for name, reading in readings.items():
                labels.append((family, what, f"{caught} of {colluders}", name))
                functions.append(codebook.score_functions(residual_signal(codebook, *reading, nobody)))
    shares = observed_over_proven(codebook, codebook.standardize(np.concatenate(functions)), innocents)
    ends = np.cumsum([len(each) for each in functions])[:-1]
    for label, part in zip(labels, np.split(shares, ends), strict=True):
        yield (*label, *(f"{share:.2f}" for share in part.max(axis=0)))


def main() -> None:
    """Measures all codes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--innocents", type=int, default=INNOCENTS, help="innocents for each code and reading")
    parser.add_argument("--steps", type=int, default=100, help="training steps of owner and attacker")
    add_results_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, ancestor = make_models(folder, arguments.steps)
        options = folder, base, ancestor, arguments.innocents, arguments.steps
        rows = tuple(row for family in FAMILIES for row in measure(family, *options))
    columns = ("code", "suspect", "colluders accused", "reading", *(f"{level:.0e}" for level in LEVELS))
    note = f"{arguments.innocents:,} innocents for each row, drawn anew. 1.00 is the proven bound."
    report(arguments, [Table("innocents", "", columns, rows, (note,))])


if __name__ == "__main__":
    main()
