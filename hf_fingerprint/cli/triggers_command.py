"""`triggers`: makes the trigger set of a base, once, before its copies are issued."""

from pathlib import Path
from typing import Annotated, Any

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import option


@options.expand_options
def triggers(
    model: options.Model,
    vault: options.VaultFolder,
    images: Annotated[
        Path | None, option("--images", "Folder of ordinary images, without labels. Defaults to synthetic images.")
    ] = None,
    cover_images: Annotated[
        Path | None,
        option(
            "--cover-images", "Folder of photographs to make the trigger images from. Defaults to synthetic images."
        ),
    ] = None,
    count: Annotated[int | None, option("--count", "Number of trigger images. Defaults to 160.", min=1)] = None,
    decoys: Annotated[
        int | None, option("--decoys", "Number of similar images that are assigned to nobody. Defaults to 20.", min=0)
    ] = None,
    assigned_share: Annotated[
        float | None,
        option("--assigned-share", "Share of the trigger images that is assigned to each recipient. Defaults to 0.5."),
    ] = None,
    steps: Annotated[int | None, option("--steps", "Optimization steps. Defaults to 120.", min=1)] = None,
    as_base: options.AsBase = False,
    ancestor: options.Ancestor = None,
    *,
    files: options.ModelFiles,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Make the trigger set by which copies are traced behind an API. It is built into copies that are issued later."""
    from hf_fingerprint.blackbox.trigger_set.build import make_trigger_set
    from hf_fingerprint.registration import register
    from hf_fingerprint.vault import Vault

    opened = Vault(vault)
    with output.progress_bars() as progress:
        keywords = {"ancestor": options.ancestor_input(ancestor), "device": device} | files.keywords
        base = register(model, opened, progress=progress, as_base=as_base, **keywords)
    chosen = {"count": count, "decoys": decoys, "assigned_share": assigned_share, "steps": steps}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    given |= files.access
    with output.progress_bars() as progress:
        made = make_trigger_set(base.base_id, opened, images, progress=progress, cover_images=cover_images, **given)
    share = made.assigned_share
    if as_json:
        summary = {"base": base.base_id, "triggers": made.count, "decoys": made.decoys, "assigned_share": share}
        output.print_json(summary)
        return
    output.echo(
        f"base {base.base_id} has {made.count} trigger images and {made.decoys} decoys; {share:.0%} of "
        "the trigger images are assigned to each recipient"
    )
    output.echo("copies issued from now on can be traced behind an API, with `hf-fingerprint query`")
