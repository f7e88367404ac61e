"""`hf-fingerprint vault ...`: makes vaults, registers bases and shares vaults."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option, required
from hf_fingerprint.config import FingerprintConfig


if TYPE_CHECKING:
    from hf_fingerprint.vault.sealing import AgeIdentity


app = typer.Typer(help="Make a vault, register bases, and share the vault with other machines.", no_args_is_help=True)
issuer_app = typer.Typer(
    help="Manage issuers: machines that can open the pushed vault and mark copies, but can't trace."
)
app.add_typer(issuer_app, name="issuer", no_args_is_help=True)

Repo = Annotated[str, argument("Private dataset repo, org/name, that holds only the vault.")]
IssuerKey = Annotated[
    Path | None,
    option("--issuer-key", "File of an issuer's key, instead of the identity (or set HF_FINGERPRINT_ISSUER_KEY)."),
]


@app.command()
def init(
    folder: options.VaultArgument,
    passphrase_file: options.PassphraseFile = None,
    public_key: Annotated[
        str | None,
        option(
            "--public-key",
            "Public key of a tracing identity that is kept elsewhere. The vault then only marks copies.",
        ),
    ] = None,
) -> None:
    """Make a vault and its tracing identity, which is encrypted with a passphrase (from a prompt, a file or
    HF_FINGERPRINT_PASSPHRASE)."""
    from hf_fingerprint.vault import Vault, find_passphrase

    if public_key is not None:
        Vault.create(folder, public_key=public_key)
        tracing = "To trace them, use the identity of this public key."
        output.echo(f"Created the vault {folder}, which marks copies. {tracing}")
        return
    identity = folder / "identity.age"
    begun = identity.exists()
    vault = Vault.create(folder, find_passphrase(passphrase_file, confirm=not begun))
    if begun:
        output.echo(f"Using the existing identity {identity}.")
    tracing = f"Tracing needs {identity} and its passphrase: back up both, separately."
    output.echo(f"Created the vault {folder}. {tracing}")
    output.echo(f"public key: {vault.public_key}")


@app.command()
@options.expand_options
def add(
    model: options.Model,
    vault: options.VaultFolder,
    file: options.File = None,
    *,
    config: FingerprintConfig,
    files: options.ModelFiles,
    device: options.Device = None,
    remeasure: Annotated[
        bool, option("--remeasure", "Register a known base again, with these settings, for new copies.")
    ] = False,
    as_base: options.AsBase = False,
    ancestor: options.Ancestor = None,
    as_json: options.AsJson = False,
) -> None:
    """Register a base: measure it, and choose its carriers and code, once for all copies. A registered base can get an
    ancestor with the same command."""
    from hf_fingerprint.registration import predictions, register
    from hf_fingerprint.vault import Vault

    with output.progress_bars() as progress:
        place = options.model_reference(model, file)
        chosen = {"remeasure": remeasure, "as_base": as_base, "device": device} | files.keywords
        chosen["ancestor"] = options.ancestor_input(ancestor)
        base = register(place, Vault(vault), config, progress, **chosen)
    output.warn_unmeasured(base)
    if as_json:
        output.print_json({**base.describe(), **predictions(base)})
    else:
        output.print_blocks(output.describe_base(base))


@app.command()
def push(
    repo: Repo,
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    issuer_key: IssuerKey = None,
    as_json: options.AsJson = False,
) -> int:
    """Merge the vault with the one in the repo, and push it, encrypted to the identity and the issuers.

    Exit code 0: done, 1: done, except for the listed rows, which were refused or can't be used, 2: an error.
    """
    from hf_fingerprint.cli.merge_output import print_merge
    from hf_fingerprint.hub.vault_repo import push_vault
    from hf_fingerprint.vault import Vault

    opened = Vault(vault)
    age_identity = _unlock_identity(opened.identity, identity, passphrase_file, issuer_key)
    pushed = push_vault(opened, repo, age_identity)
    if as_json:
        output.print_json(pushed.to_dict())
        return 0 if pushed.merged.complete else 1
    code = print_merge(f"from {repo}", pushed.merged)
    done = "is now in" if pushed.new else "was already in"
    output.echo(f"{vault} {done} {repo} at {pushed.revision}")
    return code


@app.command()
def pull(
    repo: Repo,
    folder: options.VaultArgument,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    issuer_key: IssuerKey = None,
    public_key: Annotated[
        str | None,
        option(
            "--public-key",
            "Public key of the expected tracing identity, to refuse a vault of any other. For new folders.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Merge the vault in the repo into the vault in a folder, which is created if it is missing.

    Exit code 0: done, 1: done, except for the listed rows, which were refused or can't be used, 2: an error.
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
    return print_merge(f"merged {repo} into {folder}", report, as_json)


@app.command()
def merge(
    other: Annotated[Path, argument("Folder of the other vault.")],
    vault: options.VaultFolder,
    identity: Annotated[
        Path | None,
        option(
            "--identity",
            "File of the tracing identity, to check new records. Required if the other vault has another identity.",
        ),
    ] = None,
    passphrase_file: options.PassphraseFile = None,
    as_json: options.AsJson = False,
) -> int:
    """Merge the vault in another folder into this one. The other vault is not changed.

    Exit code 0: done, 1: done, except for the listed rows, which were refused or can't be used, 2: an error.
    """
    from hf_fingerprint.cli.merge_output import print_merge
    from hf_fingerprint.vault import Vault, read_vault_folder
    from hf_fingerprint.vault.merging import merge as merge_vaults

    age_identity = None if identity is None else _unlock_identity(identity, identity, passphrase_file, None)
    report = merge_vaults(Vault(vault), read_vault_folder(other), age_identity, str(other))
    return print_merge(f"merged {other} into {vault}", report, as_json)


@app.command()
def forget(
    record: Annotated[str, argument("Id of the record, as `recipients --json` shows it.")], vault: options.VaultFolder
) -> None:
    """Delete the record of an unfinished copy, such as that of an abandoned training."""
    from hf_fingerprint.vault import Vault, forget_copy

    gone = forget_copy(Vault(vault), record)
    output.echo(f"{gone.copy_id} ({gone.recipient}): the record and its key are deleted; no trace tests it any more")


@app.command()
def rotate(
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None, option("--new-passphrase-file", "File whose first line is the passphrase of the new identity.")
    ] = None,
    public_key: Annotated[
        str | None, option("--public-key", "Public key of a new tracing identity that is kept elsewhere.")
    ] = None,
) -> None:
    """Give the vault a new tracing identity, after the old one may have leaked, and seal all records to it."""
    from hf_fingerprint.vault.agent import release_identity
    from hf_fingerprint.vault.rotation import rotate as rotate_vault

    opened = options.unlocked_vault(vault, passphrase_file, identity)
    old_public_key = opened.public_key
    passphrase = "" if public_key is not None else _new_passphrase(new_passphrase_file)
    rotation = rotate_vault(opened, passphrase, public_key)
    release_identity(old_public_key)
    output.echo(f"{vault}: {rotation.records} records are sealed to the new identity.")
    for fault in rotation.faults:
        output.echo_err(f"Warning: {fault.describe()}: it is not changed.")
    if rotation.identity is not None:
        output.echo(f"Tracing needs {rotation.identity} and its new passphrase: back up both, separately.")
    if rotation.old_identity_file is not None:
        output.echo(f"{rotation.old_identity_file} opens only older backups and pushed vaults.")
    if not rotation.old_seals_erased:
        cause = "another process reads them, the disk is full or the database is damaged"
        output.echo_err(f"Old seals remain in the database's files, since {cause}: solve that, then rotate again.")
    risk = "Anybody with the old identity and an old copy of the vault can still read the codewords in it"
    output.echo_err(f"{risk}: delete old copies, and push to a new repo.")
    output.echo(f"public key: {rotation.vault.public_key}")


@issuer_app.command()
def new(file: Annotated[Path, argument("New file for the key.")]) -> None:
    """Make an issuer's key, without a passphrase. Keep it as a secret of the machine that marks copies."""
    from hf_fingerprint.vault.issuers import new_issuer_key

    public_key = new_issuer_key(file)
    output.echo(f"To let {file} open pushed vaults, run `hf-fingerprint vault issuer add {public_key}`.")
    output.echo(f"public key: {public_key}")


@issuer_app.command("add")
def add_issuer(
    public_key: Annotated[str, argument("Public key of the issuer, age1...")],
    vault: options.VaultFolder,
    name: Annotated[str, required("--name", "Name of the issuer, such as ci.")],
) -> None:
    """Let an issuer open the vault that is pushed from now on: the bases, but no copy's key."""
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.issuers import add_issuer as allow

    allow(Vault(vault), public_key, name)
    output.echo(f"{name} can open {vault} after the next push.")


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
def remove(which: Annotated[str, argument("Name or public key of the issuer.")], vault: options.VaultFolder) -> None:
    """Remove an issuer permanently. It keeps what it has pulled before."""
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.issuers import remove_issuer

    remove_issuer(Vault(vault), which)
    output.echo(f"{which} can't open {vault} after the next push: push it now.")


def _unlock_identity(
    own: Path, identity: Path | None, passphrase_file: Path | None, issuer_key: Path | None
) -> "AgeIdentity | None":
    """The identity or issuer's key that the options give, or `None`."""
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
        needed = "give the new one's passphrase with --new-passphrase-file"
        raise PassphraseError(f"{PASSPHRASE_VARIABLE} opens the old identity: {needed}.")
    if file is None:
        output.echo_err("The new identity needs a passphrase of its own.")
    return find_passphrase(file, confirm=True)
