"""Merges copies with mergekit itself and with our attacks, and traces both.

    python3 -m venv merge-env
    merge-env/bin/pip install -r examples/merges/mergekit_merges.txt
    python -m examples.benchmarks.mergekit lite0 --python merge-env/bin/python

mergekit has an environment of its own, as it needs other versions. Both sides merge the same copies with the same
parameters; where a merge is random, each side draws on its own. Batch normalizations get new statistics on both sides.
"""

import argparse
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from examples._common.results import ROOT, Figure, Table, add_results_option, figure_table, report
from examples._common.training import accuracy
from examples.benchmarks.attacks import (
    OWNER_IMAGES,
    RECIPIENTS,
    SIZES,
    TEST_IMAGES,
    make_ancestor,
    make_base,
    real_images,
)
from hf_fingerprint import FingerprintConfig
from hf_fingerprint.attacks import Attacker, Compose, LowRank, MagnitudeBand, Merge, OnDelta, RandomDropping
from hf_fingerprint.attacks.ancestor.on_delta import reestimate_norms
from hf_fingerprint.attacks.attack import AttackStep, State
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.cli.output import echo_err, progress_bars
from hf_fingerprint.evaluation import Testbed, Verdict
from hf_fingerprint.evaluation.ancestor_model import read_ancestor


SCRIPT = ROOT / "examples" / "merges" / "mergekit_merges.py"
COPIES, INNOCENTS = 5, 10_000
MAX_GAP = 0.1  # of two scores, relative to the higher one
OURS: dict[str, AttackStep] = {
    "task_arithmetic": Merge(),
    "ties": Merge("elected signs", MagnitudeBand(0.2)),
    "dare_linear": Merge("mean", RandomDropping(0.9)),
    "dare_ties": Merge("elected signs", RandomDropping(0.9)),
    "della": Merge("elected signs", RandomDropping(0.5, 0.15)),
    "breadcrumbs": Merge("mean", MagnitudeBand(0.9, 0.01)),
    "model_stock": Merge("model stock"),
    "karcher": Merge("Karcher mean"),
    "rank-0.1": OnDelta(LowRank(0.1)),
    "rank-0.03": OnDelta(LowRank(0.03)),
}
HEADINGS = ("merge", "copies", "mergekit: accuracy", "scores", "named", "ours: accuracy", "scores", "named")


@dataclass(frozen=True)
class Side:
    """One suspect: its accuracy, and its trace."""

    accuracy: float
    verdict: Verdict

    @property
    def mean_score(self) -> float:
        """The mean score of those who merged."""
        return sum(self.verdict.scores) / len(self.verdict.scores)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Accuracy, the lowest and the highest score, and how many are accused."""
        scores, caught = self.verdict.scores, self.verdict.caught
        shown = f"{min(scores):.0f} - {max(scores):.0f}" if len(scores) > 1 else f"{scores[0]:.0f}"
        return f"{self.accuracy:.1%}", shown, f"{sum(caught)} of {len(caught)}"


def run_mergekit(python: Path, folder: Path, ancestor: State, copies: list[State]) -> dict[str, State]:
    """Returns what mergekit makes of the copies, by the name of the merge."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "ancestor.safetensors", *(folder / f"copy-{i}.safetensors" for i in range(len(copies)))]
    for file, state in zip(files, [ancestor, *copies], strict=True):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    subprocess.run([python, SCRIPT, files[0], folder / "made", *files[1:]], check=True)
    return {name: load_file(folder / "made" / f"{name}.safetensors") for name in OURS}


def compare(sides: Mapping[str, tuple[Side, Side]]) -> list[Table]:
    """Returns the table of both sides and the figures."""
    rows = [
        (name, str(len(theirs.verdict.scores)), *theirs.cells, *ours.cells) for name, (theirs, ours) in sides.items()
    ]
    gaps = {
        name: abs(theirs.mean_score - ours.mean_score) / max(theirs.mean_score, ours.mean_score, 1.0)
        for name, (theirs, ours) in sides.items()
    }
    worst = max(gaps, key=lambda name: gaps[name])
    accused = sum(side.verdict.innocents_accused for both in sides.values() for side in both)
    scored = sum(side.verdict.innocents for both in sides.values() for side in both)
    figures = [
        Figure(
            f"largest gap of mean scores ({worst})", f"{gaps[worst]:.1%}", f"<= {MAX_GAP:.0%}", gaps[worst] <= MAX_GAP
        ),
        Figure("innocents accused", f"{accused} of {scored:,}", "0", accused == 0),
    ]
    return [Table("merges", "", HEADINGS, tuple(rows)), figure_table(figures)]


def main() -> None:
    """Merges, traces and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=[name for name in SIZES if name not in ("resnet", "vit")])
    parser.add_argument("--python", type=Path, required=True, help="the Python of an environment with mergekit")
    parser.add_argument("--copies", type=int, default=COPIES, help="number of copies to merge")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the owner's training steps and images")
    parser.add_argument(
        "--bases-folder", type=Path, default=Path("bench_output/attacks"), help="the output folder of attacks.py"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_output/mergekit"))
    add_results_option(parser)
    arguments = parser.parse_args()
    name, scale, out = arguments.model, arguments.scale, arguments.out / arguments.model
    owner_count = round(scale * OWNER_IMAGES)
    known = owner_count + owner_count // 10
    _, train, test = real_images(SIZES[name], known + owner_count // 2, max(50, round(scale * TEST_IMAGES)))
    ancestor = make_ancestor(name, arguments.bases_folder / f"{name}_ancestor", train[0][known:], scale)
    assert ancestor is not None
    owners = train[0][:owner_count], train[1][:owner_count]
    base = make_base(name, arguments.bases_folder / f"{name}_base", *owners, scale, ancestor)
    config = FingerprintConfig(expected_recipients=RECIPIENTS)
    with (
        progress_bars() as progress,
        open_checkpoint(ancestor) as opened,
        Testbed(base, out, arguments.copies, config, INNOCENTS, progress) as testbed,
    ):
        origin, copies = read_ancestor(testbed, opened).state, [testbed.copy(i) for i in range(arguments.copies)]
        images = (part[owner_count:known] for part in train)
        attacker = Attacker(testbed.build, *images, ancestor=origin)

        def measure(state: State, colluders: int) -> Side:
            model = testbed.model_of(state)
            assert model is not None
            return Side(accuracy(model, *test), testbed.trace_suspect(state, range(colluders)))

        theirs, sides = run_mergekit(arguments.python.absolute(), out / "files", origin, copies), {}
        for merge, step in OURS.items():
            given, colluders = (copies, len(copies)) if step.takes_copies else (copies[0], 1)
            made = Compose(step)(given, attacker)
            sides[merge] = measure(reestimate_norms(theirs[merge], attacker), colluders), measure(made, colluders)
            echo_err(f"{merge}: {sides[merge][0].cells} {sides[merge][1].cells}")
    report(arguments, compare(sides))


if __name__ == "__main__":
    main()
