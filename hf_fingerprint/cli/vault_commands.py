"""`hf-fingerprint vault ...`"""

from pathlib import Path
from typing import Annotated

import typer

from hf_fingerprint.cli import options, output


app = typer.Typer(help="Make a vault; register bases in it.", no_args_is_help=True)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder for the vault.", show_default=False)],
    passphrase_file: options.PassphraseFile = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", help="Of a tracing identity kept elsewhere; this vault then only marks copies."),
    ] = None,
) -> None:
    """Make a vault and its tracing identity, guarded by a passphrase (prompt, file or HF_FINGERPRINT_PASSPHRASE)."""
    from hf_fingerprint.vault import Vault, find_passphrase

    if public_key is not None:
        Vault.create(folder, public_key=public_key)
        output.say(f"{folder} is a vault that marks copies; tracing them needs the identity of that public key.")
        return
    vault = Vault.create(folder, find_passphrase(passphrase_file, confirm=True))
    output.say(
        f"{folder} is a vault. Tracing needs {folder / 'identity.age'} and its passphrase: back both up, apart."
    )
    output.say(f"public key: {vault.public_key}")


@app.command()
def add(
    model: Annotated[str, typer.Argument(help="A folder, a weight file or a Hub id.", show_default=False)],
    vault: options.VaultFolder,
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    recipients_planned: options.Planned = None,
    alpha: options.Alpha = None,
    eps: options.Eps = None,
    as_json: options.AsJson = False,
) -> None:
    """Register a base: measure it, choose its carriers and code, once for all its copies."""
    from hf_fingerprint.registration import Settings, register
    from hf_fingerprint.vault import Vault

    settings = Settings(max_kl, calibration, coalition, recipients_planned, alpha, eps)
    with output.steps() as report:
        base = register(model, Vault(vault), settings, report)
    if as_json:
        output.print_json(base.describe())
    else:
        for line in output.describe_base(base):
            output.say(line)
