"""`hf-fingerprint vault ...`"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_fingerprint.cli import options, output


if TYPE_CHECKING:
    from hf_fingerprint.vault.sealing import AgeIdentity


app = typer.Typer(help="Make a vault; register bases; share it with other machines.", no_args_is_help=True)
issuer_app = typer.Typer(help="Machines that may open the pushed vault, mark copies and never trace.")
app.add_typer(issuer_app, name="issuer", no_args_is_help=True)

Repo = Annotated[str, typer.Argument(help="A private dataset repo of its own: org/name.", show_default=False)]
IssuerKey = Annotated[
    Path | None,
    typer.Option("--issuer-key", help="An issuer's key instead of the identity (or set HF_FINGERPRINT_ISSUER_KEY)."),
]


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
        output.echo(f"{folder} is a vault that marks copies; tracing them needs the identity of that public key.")
        return
    begun = (folder / "identity.age").exists()
    vault = Vault.create(folder, find_passphrase(passphrase_file, confirm=not begun))
    if begun:
        output.echo(f"{folder / 'identity.age'} was there already: it is the vault's identity.")
    output.echo(
        f"{folder} is a vault. Tracing needs {folder / 'identity.age'} and its passphrase: back both up, apart."
    )
    output.echo(f"public key: {vault.public_key}")


@app.command()
def add(
    model: options.Model,
    vault: options.VaultFolder,
    file: options.File = None,
    max_kl: options.MaxKl = None,
    calibration: options.Calibration = None,
    coalition: options.Coalition = None,
    expected_recipients: options.ExpectedRecipients = None,
    alpha: options.Alpha = None,
    amplitude: options.Amplitude = None,
    carriers: options.Carriers = None,
    code: options.Code = None,
    output_kind: options.OutputKind = None,
    calibration_images: options.CalibrationImages = None,
    remeasure: Annotated[
        bool,
        typer.Option("--remeasure", help="Register a known base once more, with these settings, for new copies."),
    ] = False,
    as_base: options.AsBase = False,
    as_json: options.AsJson = False,
) -> None:
    """Register a base: measure it, choose its carriers and code, once for all its copies."""
    from hf_fingerprint.config import FingerprintConfig
    from hf_fingerprint.registration import register
    from hf_fingerprint.vault import Vault

    config = FingerprintConfig(
        max_kl,
        calibration,
        coalition,
        expected_recipients,
        alpha,
        amplitude,
        carriers,
        code,
        output_kind,
        calibration_images,
    )
    with output.progress_bars() as progress:
        place = options.model_reference(model, file)
        base = register(place, Vault(vault), config, progress, remeasure=remeasure, as_base=as_base)
    output.warn_unmeasured(base)
    if as_json:
        output.print_json(base.describe())
    else:
        for line in output.describe_base(base):
            output.echo(line)


@app.command()
def push(
    repo: Repo,
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    issuer_key: IssuerKey = None,
) -> int:
    """Merge the vault with the one in the repo and push it there, encrypted to the identity and the issuers.

    Exit code 0: done, 1: done but for rows that were refused or can't be used, which are named, 2: an error.
    """
    from hf_fingerprint.cli.merge_output import print_merge
    from hf_fingerprint.hub.vault_repo import push_vault
    from hf_fingerprint.vault import Vault

    opened = Vault(vault)
    age_identity = _unlock_identity(opened.identity, identity, passphrase_file, issuer_key)
    pushed = push_vault(opened, repo, age_identity)
    code = print_merge(f"from {repo}", pushed.merged)
    done = "is in" if pushed.new else "was already in"
    output.echo(f"{vault} {done} {repo} at {pushed.revision}")
    return code


@app.command()
def pull(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="The vault's folder, new or not.", show_default=False)],
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    issuer_key: IssuerKey = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", help="Refuse a vault of any tracing identity but this one's: for new folders."),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Bring the vault in the repo into a folder: a new vault, or what the one there lacks.

    Exit code 0: done, 1: done but for rows that were refused or can't be used, which are named, 2: an error.
    """
    from hf_fingerprint.cli.merge_output import print_merge
    from hf_fingerprint.errors import VaultError
    from hf_fingerprint.hub.vault_repo import pull_vault
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.database import DATABASE, IDENTITY

    own = Vault(folder).identity if (folder / DATABASE).is_file() else folder / IDENTITY
    age_identity = _unlock_identity(own, identity, passphrase_file, issuer_key)
    if age_identity is None:
        raise VaultError(f"{repo} can't be opened without a key: give --identity FILE or --issuer-key FILE.")
    _, report = pull_vault(repo, folder, age_identity, public_key)
    return print_merge(f"{folder} has the vault of {repo}", report, as_json)


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(help="The folder of the other vault.", show_default=False)],
    vault: options.VaultFolder,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", help="Check new records with it; needed if the other vault has another one."),
    ] = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> int:
    """Bring what the vault in another folder has into this one; the other is only read.

    Exit code 0: done, 1: done but for rows that were refused or can't be used, which are named, 2: an error.
    """
    from hf_fingerprint.cli.merge_output import print_merge
    from hf_fingerprint.vault import Vault, read_vault_folder
    from hf_fingerprint.vault.merging import merge as merge_vaults

    age_identity = None if identity is None else _unlock_identity(identity, identity, passphrase_file, None)
    report = merge_vaults(Vault(vault), read_vault_folder(other), age_identity, str(other))
    return print_merge(f"{vault} has what {other} has", report, as_json)


@app.command()
def forget(
    record: Annotated[
        str, typer.Argument(help="The record's id, as `recipients --json` shows it.", show_default=False)
    ],
    vault: options.VaultFolder,
) -> None:
    """End a record that was begun and will never be finished, such as a training's that was given up."""
    from hf_fingerprint.vault import Vault, forget_copy

    gone = forget_copy(Vault(vault), record)
    output.echo(f"{gone.copy_id} ({gone.recipient}): the record and its key are gone; no trace tests it any more")


@app.command()
def rotate(
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option("--new-passphrase-file", help="A file whose first line is the new identity's passphrase."),
    ] = None,
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="Of a new tracing identity that is kept elsewhere.")
    ] = None,
) -> None:
    """Give the vault a new tracing identity, when the old one may have leaked, and seal all records to it."""
    from hf_fingerprint.vault import Vault, find_passphrase
    from hf_fingerprint.vault.rotation import rotate as rotate_vault

    opened = Vault(vault)
    opened.unlock(find_passphrase(passphrase_file), identity)
    passphrase = "" if public_key is not None else _new_passphrase(new_passphrase_file)
    rotation = rotate_vault(opened, passphrase, public_key)
    output.echo(f"{vault}: {rotation.records} records are sealed to a new identity.")
    for fault in rotation.faults:
        output.echo_err(f"Warning: {fault.describe()}: it stays as it is.")
    if rotation.identity is not None:
        output.echo(f"Tracing needs {rotation.identity} and its new passphrase: back both up, apart.")
    if rotation.old_identity_file is not None:
        output.echo(f"{rotation.old_identity_file} opens backups and pushed vaults from before, and nothing here.")
    if not rotation.old_seals_erased:
        output.echo_err(
            "Old seals are still in the database's files, since another process reads them, the disk is full or the "
            "database is damaged: rotate again once that is over."
        )
    output.echo_err(
        "Who has the old identity and an old copy of the vault still reads the codewords in it: delete old copies, "
        "and push to a new repo."
    )
    output.echo(f"public key: {rotation.vault.public_key}")


@issuer_app.command()
def new(file: Annotated[Path, typer.Argument(help="A new file for the key.", show_default=False)]) -> None:
    """Make an issuer's key, without a passphrase: keep it as a secret of the machine that marks copies."""
    from hf_fingerprint.vault.issuers import new_issuer_key

    public_key = new_issuer_key(file)
    output.echo(f"{file} opens pushed vaults once `hf-fingerprint vault issuer add {public_key}` is done.")
    output.echo(f"public key: {public_key}")


@issuer_app.command("add")
def add_issuer(
    public_key: Annotated[str, typer.Argument(help="The public key, age1...", show_default=False)],
    vault: options.VaultFolder,
    name: Annotated[str, typer.Option("--name", help="What to call it, such as ci.", show_default=False)],
) -> None:
    """Let an issuer open the vault as it is pushed from now on: the bases, never a copy's key."""
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.issuers import add_issuer as allow

    allow(Vault(vault), public_key, name)
    output.echo(f"{name} can open {vault} as it is pushed from now on.")


@issuer_app.command("list")
def list_issuers(vault: options.VaultFolder, as_json: options.AsJson = False) -> None:
    """List the issuers."""
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.issuers import issuers

    found = issuers(Vault(vault))
    if as_json:
        output.print_json([{"name": name, "public_key": public_key} for public_key, name in found.items()])
        return
    for public_key, name in found.items():
        output.echo(f"{name}  {public_key}")
    output.echo(f"{len(found)} issuers")


@issuer_app.command("remove")
def remove(
    which: Annotated[str, typer.Argument(help="The issuer's name or public key.", show_default=False)],
    vault: options.VaultFolder,
) -> None:
    """Remove an issuer for good; what it has pulled before stays with it."""
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.issuers import remove_issuer

    remove_issuer(Vault(vault), which)
    output.echo(f"{which} can't open {vault} as it is pushed from now on; push it to make that so.")


def _unlock_identity(
    own: Path, identity: Path | None, passphrase_file: Path | None, issuer_key: Path | None
) -> "AgeIdentity | None":
    """The key that the command line gives; `None` if there is none to be found."""
    from hf_fingerprint.vault import find_passphrase
    from hf_fingerprint.vault.issuers import open_issuer_key
    from hf_fingerprint.vault.sealing import open_identity

    if identity is None:
        key = open_issuer_key(issuer_key)
        if key is not None or not own.is_file():
            return key
    return open_identity(identity or own, find_passphrase(passphrase_file))


def _new_passphrase(file: Path | None) -> str:
    """The new identity's passphrase, from a file or typed: what the environment holds is the old one's."""
    from hf_fingerprint.errors import PassphraseError
    from hf_fingerprint.vault import find_passphrase
    from hf_fingerprint.vault.passphrase import PASSPHRASE_VARIABLE

    if file is None and os.environ.get(PASSPHRASE_VARIABLE):
        raise PassphraseError(
            f"{PASSPHRASE_VARIABLE} opens the old identity: give the new one's passphrase with --new-passphrase-file."
        )
    if file is None:
        output.echo_err("The new identity needs a passphrase of its own.")
    return find_passphrase(file, confirm=True)
