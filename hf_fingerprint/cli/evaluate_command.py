"""`evaluate`: measures which attacks a model's fingerprint withstands."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import option
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.launcher import is_first_launched


def _attack_names() -> list[str]:
    from hf_fingerprint.attacks.suite import GROUPS, attack_names

    return [*GROUPS, *attack_names()]


@options.expand_options
def evaluate(
    model: Annotated[str | None, typer.Argument(help="Folder or Hub id of a timm or transformers classifier.")] = None,
    data: Annotated[
        str | None, option("--data", "Folder with a subfolder for each class, or Hub id of a dataset.")
    ] = None,
    out: Annotated[
        Path | None,
        option("--out", "Folder for copies and results. Run the command again with the same folder to resume."),
    ] = None,
    attacks: Annotated[
        str | None,
        option(
            "--attacks",
            "Names or groups of attacks, separated by commas; defaults to all. See --list.",
            autocompletion=options.complete_from(_attack_names),
        ),
    ] = None,
    max_images: Annotated[int, option("--max-images", "Maximum number of test images.", min=2)] = 1000,
    coalitions: Annotated[
        str | None, option("--coalitions", "Numbers of colluders, separated by commas. Defaults to 3,5,10.")
    ] = None,
    runs: Annotated[int, option("--runs", "Number of different coalitions for each number of colluders.", min=1)] = 1,
    expected_recipients: options.ExpectedRecipients = None,
    quick: Annotated[
        bool,
        option(
            "--quick",
            "Run three strengths of each attack and coalitions of three only, and fine-tune for 20 steps.",
        ),
    ] = False,
    fine_tuning_steps: Annotated[
        int | None,
        option("--fine-tuning-steps", "Steps of fine-tuning. Defaults to 100, or 20 with --quick.", min=1),
    ] = None,
    public_base: Annotated[bool, option("--public-base", "Give the attacker the unmarked base, too.")] = False,
    ancestor: Annotated[
        str | None,
        option("--ancestor", "Give the attacker the public model that MODEL was fine-tuned from: a path or Hub id."),
    ] = None,
    all_scores: options.AllScores = False,
    listed: Annotated[bool, option("--list", "List the attacks and exit.")] = False,
    max_kl: options.MaxKl = None,
    coalition: options.Coalition = None,
    alpha: options.Alpha = None,
    config_file: options.ConfigFile = None,
    *,
    files: options.ModelFiles,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Attack copies of a model, and report the remaining accuracy and evidence as JSON, a table and a page.

    Processes that `accelerate launch -m hf_fingerprint evaluate ...` starts share the work; with --device cuda, each
    takes a device of its own.

    The report has the scores of accused recipients only. The --out folder also holds the other scores, the copies and
    their keys: publish the page, the table or results.json, never the folder.
    """
    if listed:
        _print_attacks()
        return
    if model is None or data is None or out is None:
        raise FingerprintError(
            "MODEL, --data or --out is missing: give the model, its images and a folder for the results."
        )
    from hf_fingerprint.cli.kept_memory import keep_freed_memory
    from hf_fingerprint.config import FingerprintConfig
    from hf_fingerprint.evaluation import evaluate as run
    from hf_fingerprint.evaluation import write_report
    from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
    from hf_fingerprint.evaluation.report import summarize

    given = {"max_kl": max_kl, "coalition": coalition, "expected_recipients": expected_recipients, "alpha": alpha}
    config = options.load_config(FingerprintConfig, config_file, files.access, **given)
    keep_freed_memory()
    with output.progress_bars() as progress:
        evaluation = run(
            model,
            data,
            out,
            attacks=None if attacks is None else attacks.split(","),
            coalitions=None if coalitions is None else _parse_integers(coalitions),
            config=config,
            images=max_images,
            quick=quick,
            runs=runs,
            public_base=public_base,
            progress=progress,
            all_scores=all_scores,
            ancestor=ancestor,
            fine_tuning_steps=fine_tuning_steps,
            device=device,
            **files.keywords,
        )
    if not is_first_launched():
        return  # the first process has the same results
    if all_scores:
        output.echo_err(NOT_TO_PUBLISH)
    written = write_report(evaluation, out)
    if as_json:
        output.print_json(summarize(evaluation))
        return
    output.print_result(evaluation)
    output.echo(f"the page: {written.page}")


def _print_attacks() -> None:
    from hf_fingerprint.attacks import SUITE, attack_sweep

    for name, found in SUITE.items():
        strengths = f"  {', '.join(f'{a.strength:g}' for a in attack_sweep(name))}" * (len(found.attacks) > 1)
        output.echo(f"{found.group:10}  {name:32}{strengths}".rstrip())


def _parse_integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        form = "numbers separated by commas, such as 3,5,10"
        raise FingerprintError(f"--coalitions {text} is not a list of numbers: give {form}.") from None
