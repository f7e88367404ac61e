"""Runs the suite of attacks on three schemes: `spread`, the `deepmarks` preset, the public toolbox's variant.

    python -m examples.benchmarks.schemes resnet           # three strengths of each attack, coalitions of 3, 5
    python -m examples.benchmarks.schemes vit --attacks prune symmetries --exclude rotate-stream

The base, the images and the attacker are those of `attacks.py`. `spread` marks copies in closed form; the marks of the
other two are trained in on the owner's images until they decode without a mistake. Each suspect becomes a line of JSON
when it is measured. Run the command again to resume.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hf_fingerprint
from examples._common.results import Table, add_results_option, write_results
from examples.benchmarks.attacks import OWNER_IMAGES, RECIPIENTS, SIZES, TEST_IMAGES, make_base, real_images
from examples.benchmarks.schemes_report import SPREAD, TOOLBOX, Row, Rows, Trained, from_trial, write_table
from examples.benchmarks.schemes_trial import SEED, Arm, SchemeRunner
from examples.reproduction.arms import DesignArm, ToolboxArm
from hf_fingerprint import FingerprintConfig
from hf_fingerprint.attacks import (
    AdversarialRemoval,
    Compose,
    Distillation,
    FineTuning,
    ModelExtraction,
    TransferLearning,
    attack_names,
)
from hf_fingerprint.attacks.suite_entry import ANCESTOR
from hf_fingerprint.cli.output import echo_err, print_json, progress_bars
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation import EvaluationData, Testbed, evaluate, select_attacks
from hf_fingerprint.evaluation.planning import Job, plan_jobs
from hf_fingerprint.evaluation.trials import COLLUSION, SINGLE
from hf_fingerprint.progress import Progress
from hf_fingerprint.sharing import job_key


COALITIONS = (3, 5)
INNOCENTS, FEWEST_INNOCENTS = 10_000, 300
ROUND = 50
FINE_TUNING_STEPS = FineTuning.steps  # not the fewer of a quick evaluation
TRAINING = (FineTuning, TransferLearning, AdversarialRemoval, Distillation, ModelExtraction)
LEAST_SCALE = 0.1  # below, training is too short to embed DeepMarks by gradient: it is embedded in closed form


def trains_model(step: Any) -> bool:
    """Returns whether an attack trains a model, which takes minutes and not seconds."""
    return any(map(trains_model, step.steps)) if isinstance(step, Compose) else isinstance(step, TRAINING)


def select_jobs(arm: Arm, jobs: Sequence[Job], skip_mild_training: bool) -> list[Job]:
    """Returns the suspects of a scheme, the slowest last. The toolbox has one owner, so it has no coalitions."""
    found = [job for job in jobs if job.kind != COLLUSION or arm.name != TOOLBOX]
    if skip_mild_training:
        mildest = {job.attack: job.step for job in reversed(found) if job.kind == SINGLE}
        slow = {
            job.attack
            for job in found
            if job.step != mildest.get(job.attack, job.step) and trains_model(job.attack_step)
        }
        slow -= set(attack_names("symmetries"))  # these start with the same training, which runs once
        found = [job for job in found if job.attack not in slow or job.step != mildest[job.attack]]
    return sorted(found, key=lambda job: trains_model(job.attack_step))


def compare(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], Table]:
    """Attacks copies of all three schemes, writes the table and returns the summary and the table."""
    scale, model, out = arguments.scale, arguments.model, arguments.out / arguments.model
    owner_count, test_count = round(scale * OWNER_IMAGES), max(50, round(scale * TEST_IMAGES))
    name, train, test = real_images(SIZES[model], owner_count + owner_count // 10, test_count)
    owners = (train[0][:owner_count], train[1][:owner_count])
    base = make_base(model, arguments.bases_folder / f"{model}_base", *owners, scale)
    data = EvaluationData(name, (train[0][owner_count:], train[1][owner_count:]), test)
    excluded = select_attacks(arguments.exclude) if arguments.exclude else []
    excluded += attack_names(ANCESTOR)  # the other schemes have no answer to these
    chosen = [attack for attack in select_attacks(arguments.attacks) if attack not in excluded]
    jobs, config = (
        plan_jobs(chosen, arguments.coalitions, quick=True, fine_tuning_steps=FINE_TUNING_STEPS),
        FingerprintConfig(expected_recipients=RECIPIENTS),
    )
    digest = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    found: list[Row] = []
    trained: dict[str, Trained] = {}
    with Testbed(base, out / SPREAD, 1, config, innocents=0) as testbed:
        start, steps = testbed.build(), max(2, round(scale * ROUND))
        key_parts = {"base": digest, "data": data.digest, "steps": steps, "version": hf_fingerprint.__version__}
        rows = Rows(out / "rows.jsonl")
        for arm in (DesignArm(start, SEED, embed=scale < LEAST_SCALE), ToolboxArm(start, SEED)):
            runner = SchemeRunner(arm, testbed, data, owners, out / f"copies-{job_key(**key_parts)}", steps)
            selected = select_jobs(arm, jobs, arguments.skip_mild_training)
            made = [runner.copy(user) for user in range(max(job.colluders for job in selected))]
            steps_taken, right = tuple(each.steps for each in made), tuple(each.right for each in made)
            trained[arm.name] = Trained(runner.carriers, steps_taken, right)
            found += runner.rows(selected, rows, key_parts, progress)
    evaluation = evaluate(
        base,
        data,
        out / SPREAD,
        chosen,
        arguments.coalitions,
        config,
        innocents=max(FEWEST_INNOCENTS, round(min(1, scale) * INNOCENTS)),
        quick=True,
        public_base=True,
        progress=progress,
        fine_tuning_steps=FINE_TUNING_STEPS,
    )
    found += [from_trial(trial) for trial in evaluation.trials]
    return write_table(found, evaluation, trained, out)


def main() -> None:
    """Runs the comparison and prints the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SIZES)
    parser.add_argument("--attacks", nargs="+", help="names or groups of the suite; all by default")
    parser.add_argument("--exclude", nargs="+", help="names or groups to exclude")
    parser.add_argument("--coalitions", nargs="+", type=int, default=COALITIONS)
    parser.add_argument(
        "--skip-mild-training", action="store_true", help="skip the mildest strength of attacks that train"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the owner's training steps and images")
    parser.add_argument(
        "--bases-folder", type=Path, default=Path("bench_output/attacks"), help="the output folder of attacks.py"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_output/schemes"))
    add_results_option(parser)
    arguments = parser.parse_args()
    try:
        with progress_bars() as progress:
            summary, table = compare(arguments, progress)
    except FingerprintError as error:
        sys.exit(str(error))
    print_json(summary)
    write_results(arguments, [table])
    echo_err(f"Wrote {arguments.out / arguments.model / 'table.md'}.")


if __name__ == "__main__":
    main()
