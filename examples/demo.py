"""Issues five copies of EfficientNet-Lite0, attacks them in three ways, and traces each leak.

The base has its ImageNet weights. The leaks are a copy that was pruned and quantized, a copy that was fine-tuned on
handwritten digits, and the average of three copies. The control is the base itself, fine-tuned.
The demo takes about three minutes on two cores.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from examples._common.plots import plot_traces
from examples._common.real_inputs import digits, lite0, load_model, save_timm
from examples._common.training import fine_tune
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace
from hf_fingerprint.attacks import MagnitudePruning, Quantization, collude
from hf_fingerprint.cli.output import describe_base, echo_err


RECIPIENTS = ["alice", "bob", "carol", "dave", "erin"]


def main() -> None:
    """Runs the demo; exits with 1 unless each trace accuses the right recipients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--steps", type=int, default=60, help="steps of fine-tuning")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and any(out.iterdir()) and not (out / "vault").is_dir():
        sys.exit(f"{out} is not the folder of an earlier demo: choose another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    print("1. The base: EfficientNet-Lite0, ImageNet weights, as a timm folder\n")
    model = save_timm(lite0(), out / "model")
    vault = Vault.create(out / "vault", "a passphrase for the demo")
    issuer = Issuer(model, vault, FingerprintConfig(expected_recipients=len(RECIPIENTS)))
    print("\n".join(describe_base(issuer.base)))

    print("\n2. One marked copy for each of five recipients\n")
    with issuer:
        for copy in issuer.issue_all(RECIPIENTS, out / "copies"):
            print(f"  {copy.recipient}: {copy.path}, commitment {copy.commitment[:16]}...")

    print("\n3. Three leaks and a control are traced")
    vault.unlock("a passphrase for the demo")
    suspects = make_suspects(out, arguments.steps)
    results: dict[str, TraceResult] = {}
    for title, suspect in suspects.items():
        print(f"\n--- {title}\n")
        results[title] = trace(
            suspect, vault, all_scores=True
        )  # for the plot; in practice keep the scores of the innocent private
        print(results[title])
    picture = plot_traces(results, out / "scores.png")
    print(f"\nAll scores against the bound: {picture}")

    expected = [{"alice"}, {"bob"}, {"carol", "dave", "erin"}, set()]
    found = [{score.recipient for score in result.accused} for result in results.values()]
    if found != expected:
        echo_err(f"The demo expected {expected} and found {found}.")
        sys.exit(1)


def make_suspects(out: Path, training_steps: int) -> dict[str, Path]:
    """Returns the leaks and the control: title to file or folder."""
    states = {name: load_file(out / "copies" / name / "model.safetensors") for name in RECIPIENTS}
    compressed = Quantization(bits=8)(MagnitudePruning(0.5)(states["alice"]))
    save_file(compressed, out / "leak_compressed.safetensors")

    torch.manual_seed(0)
    images, labels = digits(64)
    fine_tuned = load_model(out / "copies" / "bob")
    fine_tuned.reset_classifier(10)
    fine_tune(
        fine_tuned, images, labels, lr=1e-3, steps=training_steps, batch=32, label="an attacker fine-tunes bob's copy"
    )
    save_timm(fine_tuned, out / "leak_fine_tuned")

    control = load_model(out / "model")
    control.reset_classifier(10)
    fine_tune(control, images, labels, lr=1e-3, steps=training_steps // 2, batch=32, label="an honest user's model")
    save_timm(control, out / "control")

    average = collude([states[name] for name in ("carol", "dave", "erin")], "average")
    save_file(average, out / "leak_average.safetensors")

    return {
        "alice's copy, pruned to 50 % and quantized to 8 bits": out / "leak_compressed.safetensors",
        "bob's copy with a new head, fine-tuned on handwritten digits": out / "leak_fine_tuned",
        "the average of carol's, dave's and erin's copies": out / "leak_average.safetensors",
        "control: the base, fine-tuned in the same way": out / "control",
    }


if __name__ == "__main__":
    main()
