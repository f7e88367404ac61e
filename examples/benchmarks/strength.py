"""Measures the default strength of the mark on four models: what it may change, what it changes, and what it yields.

Each base is registered with a KL of 1e-4 as the only budget, the default up to version 0.2.0, with the default, and
with the default on 1,000 of the owner's images instead of synthetic ones. Copies are then compared with the base on
test images that neither training nor calibration saw.

    python -m examples.benchmarks.strength lite0 resnet vit --out bench_output/strength
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from examples._common.owner import PASSPHRASE
from examples._common.real_inputs import load_model
from examples._common.results import Table, add_results_option, report
from examples.benchmarks.attacks import (
    CALIBRATION_IMAGES,
    OWNER_IMAGES,
    RECIPIENTS,
    SIZES,
    LabeledImages,
    make_base,
    real_images,
    save_images,
)
from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.config import SMALL_MAX_KL
from hf_fingerprint.registration import predictions
from hf_fingerprint.registration.outputs import divergence, output_values, same_decisions


COPIES, TEST_IMAGES = 8, 1000
COLUMNS = (
    "model",
    "budget",
    "limited by",
    "amplitude",
    "KL on record",
    "agreement on record",
    "KL on test images",
    "agreement on test images",
    "accuracy, base / copies",
    "score as issued",
    "predicted after a drift of 20 %",
)


def settings(calibration: Path) -> dict[str, FingerprintConfig]:
    """Returns the configurations to compare, by name."""
    return {
        "KL 1e-4": FingerprintConfig(max_kl=SMALL_MAX_KL, expected_recipients=RECIPIENTS),
        "default": FingerprintConfig(expected_recipients=RECIPIENTS),
        "default, the owner's images": FingerprintConfig(calibration=calibration, expected_recipients=RECIPIENTS),
    }


def measure(folder: Path, base: Path, config: FingerprintConfig, test: LabeledImages, copies: int) -> tuple[str, ...]:
    """Returns what is on record, and what copies do to the test images."""
    made = Vault(folder / "vault") if (folder / "vault").exists() else Vault.create(folder / "vault", PASSPHRASE)
    with Issuer(base, made, config) as issuer:
        issued = [issuer.issue(f"recipient {i}", folder / "copies" / str(i)).path for i in range(copies)]
    record, images, labels = issuer.base, *test
    before, kind = outputs(base, images), str(record.calibration.output)
    after = [outputs(path, images) for path in issued]
    kls = torch.stack([divergence(before, each, kind) for each in after])
    same = [same_decisions(before, each, kind) for each in after]
    agreement = float(torch.stack([each for each in same if each is not None]).double().mean())
    accuracies = [float((each[:, 0].argmax(-1) == labels).double().mean()) for each in (before, *after)]
    made.unlock(PASSPHRASE)
    scores = [trace(path, made).accused[0].score for path in issued]
    found, predicted = record.calibration, predictions(record)
    eps = np.array([carrier.eps for carrier in record.carriers])
    low = 0.0 if found.predicted_agreement_low is None else found.predicted_agreement_low
    return (
        str(predicted["limited_by"]),
        f"{eps.min():.2%} - {eps.max():.2%}",
        f"{found.kl:.1e} of {found.max_kl:.0e}",
        f"{found.agreement:.2%}, {low:.2%} or more",
        f"{float(kls.mean()):.1e}",
        f"{agreement:.2%}",
        f"{accuracies[0]:.2%} / {np.mean(accuracies[1:]):.2%}",
        f"{np.mean(scores):.0f}",
        f"{predicted['predicted_score_large_drift']:.0f}",
    )


def outputs(model: Path, images: torch.Tensor) -> torch.Tensor:
    """Returns a model's outputs, shape `(n, 1, classes)`."""
    module = load_model(model)
    with torch.no_grad():
        return torch.cat([output_values(module(part), "single_label") for part in images.split(100)])


def main() -> None:
    """Measures the models and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=SIZES)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the owner's training steps and images")
    parser.add_argument("--copies", type=int, default=COPIES)
    parser.add_argument("--out", type=Path, default=Path("bench_output/strength"))
    add_results_option(parser)
    arguments = parser.parse_args()
    owner, rows = round(arguments.scale * OWNER_IMAGES), []
    for name in arguments.models:
        kind, train, test = real_images(SIZES[name], owner + CALIBRATION_IMAGES, TEST_IMAGES)
        folder = arguments.out / f"{name}_base"
        base = make_base(name, folder, train[0][:owner], train[1][:owner], arguments.scale)
        calibration = save_images(train[0][owner:], arguments.out / f"{name}_calibration")
        for number, (budget, config) in enumerate(settings(calibration).items()):
            where = arguments.out / f"{name}_{number}"
            rows.append((f"{name}, {kind}", budget, *measure(where, base, config, test, arguments.copies)))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    report(arguments, [Table("strength", "", COLUMNS, tuple(rows))])


if __name__ == "__main__":
    main()
