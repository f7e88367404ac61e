"""Measures how long a quick evaluation takes, registration included: six attacks on EfficientNet-Lite0."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.shared_trials import check_results, make_model, write_pictures
from hf_fingerprint.evaluation.trials import PRIVATE
from hf_fingerprint.sharing import RESULTS


SIZE, LIMIT = 224, 8.0  # pixels, minutes
ATTACKS = ("finetune", "prune", "int-channel", "noise", "low-rank", "average")


def main() -> None:
    """Runs the evaluation and prints how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels")
    parser.add_argument("--fine-tuning-steps", type=int, help="steps of fine-tuning, other than the command's own")
    add_results_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = quick_rows(Path(folder), arguments.images, arguments.size, arguments.fine_tuning_steps)
        report(arguments, [figure_table(rows)])


def quick_rows(out: Path, images: int, size: int, fine_tuning_steps: int | None = None) -> list[Figure]:
    """Returns the minutes that the command takes, registration, copies and report included."""
    model, pictures = make_model(out / "model", size), write_pictures(out / "pictures", images, size)
    command = ["evaluate", model, "--data", pictures, "--max-images", images, "--out", out / "evaluation", "--quick"]
    command += ["--attacks", ",".join(ATTACKS)]
    if fine_tuning_steps:
        command += ["--fine-tuning-steps", fine_tuning_steps]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hf_fingerprint", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    minutes = (time.perf_counter() - started) / 60
    trials = check_results(out / "evaluation" / PRIVATE / RESULTS)
    what = f"evaluate --quick, {len(ATTACKS)} attacks, {trials} trials, Lite0 at {size} px, {images} images"
    return [Figure(what, f"{minutes:.1f} minutes", f"<= {LIMIT:.0f} minutes", minutes <= LIMIT)]


if __name__ == "__main__":
    main()
