"""`evaluate`: what a model's fingerprint withstands."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output
from hf_fingerprint.errors import FingerprintError


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a Hub id of a timm or transformers classifier.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A folder with a sub-folder for each class, or the id of a dataset.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for copies and results; the same again goes on.")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option("--attacks", help="Names or groups, by commas; all if not given. See --list.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=2, help="Images to test on, at most.")] = 1000,
    coalitions: Annotated[
        str | None, typer.Option("--coalitions", help="How many copies are mixed, by commas. [3,5,10]")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="How often each coalition is formed.")] = 1,
    recipients: Annotated[
        int | None, typer.Option("--recipients", help="Recipients that the bound is for. [1000]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three strengths of each attack, and three colluders alone.")
    ] = False,
    public_base: Annotated[bool, typer.Option("--public-base", help="The thief has the unmarked base too.")] = False,
    all_scores: options.AllScores = False,
    listed: Annotated[bool, typer.Option("--list", help="List the attacks and stop.")] = False,
    max_kl: options.MaxKl = None,
    coalition: options.Coalition = None,
    alpha: options.Alpha = None,
    as_json: options.AsJson = False,
) -> None:
    """Attack copies of a model and report what is left of it and of the evidence, as JSON, a table and a page.

    The report has scores of the accused alone. The --out folder keeps all of them, the copies and their keys: publish
    the page, the table or results.json, never the folder.
    """
    if listed:
        _print_attacks()
        return
    if model is None or data is None or out is None:
        raise FingerprintError("Say what to evaluate: MODEL, --data for its images and --out for the results.")
    from hf_fingerprint.config import FingerprintConfig
    from hf_fingerprint.evaluation import evaluate as run
    from hf_fingerprint.evaluation import write_report
    from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
    from hf_fingerprint.evaluation.report import rich_tables, summarize

    config = FingerprintConfig(max_kl, None, coalition, recipients, alpha)
    with output.progress_bars() as progress:
        evaluation = run(
            model,
            data,
            out,
            attacks=None if attacks is None else attacks.split(","),
            coalitions=None if coalitions is None else _parse_integers(coalitions),
            config=config,
            images=images,
            quick=quick,
            runs=runs,
            public_base=public_base,
            progress=progress,
            all_scores=all_scores,
        )
    if all_scores:
        output.echo_err(NOT_TO_PUBLISH)
    written = write_report(evaluation, out)
    if as_json:
        output.print_json(summarize(evaluation))
        return
    screen = output.console()
    for table in rich_tables(evaluation):
        screen.print(table)
    for name, why in evaluation.skipped.items():
        output.echo_err(f"{name} was left out: {why}")
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
        raise FingerprintError(f"--coalitions {text} are no numbers: give some like 3,5,10.") from None
