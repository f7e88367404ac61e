"""`hf-fingerprint key-images ...`: exports and reads images that carry a recipient's fingerprint."""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option, required


app = typer.Typer(
    help="Export a recipient's key images, and identify the recipient of an image.", no_args_is_help=True
)

Bits = Annotated[int | None, option("--bits", "Bits of the fingerprint, a multiple of 8. Defaults to 304.")]


@app.command()
def export(
    recipient: Annotated[str, argument("Recipient name, or the id of a copy if the recipient has several.")],
    out: Annotated[Path, required("--out", "New folder for the images.")],
    vault: options.VaultFolder,
    base: options.KnownBase = None,
    bits: Bits = None,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Export the trigger images that are assigned to a recipient, each with the recipient's fingerprint embedded."""
    from hf_fingerprint.blackbox.key_images.export import export_key_images
    from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS

    opened = options.unlocked_vault(vault, passphrase_file, identity)
    with output.progress_bars() as progress:
        made = export_key_images(base, recipient, opened, out, DEFAULT_BITS if bits is None else bits, progress)
    if as_json:
        output.print_json(made.to_dict())
        return
    for line in made.blocks():
        output.echo(line)


@app.command()
def read(
    images: Annotated[list[Path], argument("Images to identify.")],
    vault: options.VaultFolder,
    base: options.KnownBase = None,
    bits: Bits = None,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> int:
    """Identify the recipients of key images.

    Exit code 0: an image has a recipient's fingerprint, 1: none has, 2: an error, 3: none has, and an image is not
    readable.
    """
    from hf_fingerprint.blackbox.key_images.identify import KeyImageIdentifier
    from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS
    from hf_fingerprint.outcomes import combine_outcomes

    opened = options.unlocked_vault(vault, passphrase_file, identity)
    reader = KeyImageIdentifier(opened, base, DEFAULT_BITS if bits is None else bits)
    found = [reader.read(image) for image in images]
    if as_json:
        output.print_json([each.to_dict() for each in found])
    else:
        *others, last = found
        for line in (*(each.line for each in others), *last.blocks()):
            output.echo(line)
    return combine_outcomes(each.outcome for each in found).exit_code
