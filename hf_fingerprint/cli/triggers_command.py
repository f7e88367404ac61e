"""`triggers`: what all copies of a base will be asked, made once before they are issued."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output


def triggers(
    model: options.Model,
    vault: options.VaultFolder,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="A folder of ordinary images, without labels; synthetic ones if not given."),
    ] = None,
    cover_images: Annotated[
        Path | None,
        typer.Option("--cover-images", help="A folder of your own photographs to make them of; clouds if not given."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="How many questions. [160]")] = None,
    decoys: Annotated[
        int | None, typer.Option("--decoys", min=0, help="Images like them that prove nothing. [20]")
    ] = None,
    assigned_share: Annotated[
        float | None, typer.Option("--assigned-share", help="The share that each recipient owns. [0.5]")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of fitting them to the base. [120]")] = None,
    as_base: options.AsBase = False,
    as_json: options.AsJson = False,
) -> None:
    """Make the questions by which copies are traced behind an API. Copies that are issued afterwards answer them."""
    from hf_fingerprint.blackbox.trigger_set.build import COUNT, DECOYS, SHARE, STEPS, make_trigger_set
    from hf_fingerprint.registration import register
    from hf_fingerprint.vault import Vault

    opened = Vault(vault)
    with output.progress_bars() as progress:
        base = register(model, opened, progress=progress, as_base=as_base)
    parameters = (
        COUNT if count is None else count,
        DECOYS if decoys is None else decoys,
        SHARE if assigned_share is None else assigned_share,
        STEPS if steps is None else steps,
    )
    with output.progress_bars() as progress:
        trigger_set = make_trigger_set(base.base_id, opened, images, *parameters, progress, cover_images)
    summary = {
        "base": base.base_id,
        "triggers": trigger_set.count,
        "decoys": trigger_set.decoys,
        "assigned_share": trigger_set.assigned_share,
    }
    if as_json:
        output.print_json(summary)
        return
    output.echo(
        f"base {base.base_id} has {trigger_set.count} questions and {trigger_set.decoys} decoys; each recipient owns "
        f"{trigger_set.assigned_share:.0%} of the questions"
    )
    output.echo("copies issued from now on answer for their recipients; ask a suspect with `hf-fingerprint query`")
