"""`hf-fingerprint vault ...`: changes the passphrase, backs up and checks a vault."""

import re
from pathlib import Path
from typing import Annotated

from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import argument, option
from hf_fingerprint.cli.vault_commands import app
from hf_fingerprint.errors import FingerprintError


@app.command()
def passphrase(
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    new_passphrase_file: Annotated[
        Path | None,
        option(
            "--new-passphrase-file", "File whose first line is the new passphrase. Defaults to the same passphrase."
        ),
    ] = None,
) -> None:
    """Encrypt the tracing identity again, with a new passphrase or the same one, at today's work factor."""
    from hf_fingerprint.vault import Vault, find_passphrase
    from hf_fingerprint.vault.passphrase import is_prompted, prompt_new_passphrase
    from hf_fingerprint.vault.sealing import change_passphrase

    opened = Vault(vault)
    file = identity or opened.identity
    new = current = find_passphrase(passphrase_file)
    if new_passphrase_file is not None:
        new = find_passphrase(new_passphrase_file)
    elif is_prompted(passphrase_file):
        new = prompt_new_passphrase(current)
    age_identity = change_passphrase(file, current, new)
    output.echo(f"{file} is encrypted again with {'the same' if new == current else 'the new'} passphrase.")
    if age_identity.public_key != opened.public_key:
        output.echo_err(f"It is not the identity of {vault}, which is sealed to {opened.public_key}.")
    output.echo_err("Older copies of the file still open with the old passphrase: delete or replace them.")
    output.echo(f"public key: {age_identity.public_key}")


@app.command()
def unlock(
    vault: options.VaultFolder,
    duration: Annotated[
        str, option("--for", "How long: a number of seconds, minutes or hours, such as 90s, 15m or 8h.")
    ] = "15m",
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
) -> None:
    """Keep the tracing identity open for a while, for commands of this user that would ask for the passphrase.

    A process holds it in memory. It ends after the time, or by `vault lock`.
    """
    from hf_fingerprint.vault import find_passphrase
    from hf_fingerprint.vault.agent import keep_identity
    from hf_fingerprint.vault.store import Vault

    seconds, opened = _parse_duration(duration), Vault(vault)
    opened.unlock(find_passphrase(passphrase_file), identity)
    keep_identity(opened.age_identity().export(), opened.public_key, seconds)
    output.echo(f"{vault} is unlocked for {duration}, for this user on this machine. Lock it with `vault lock`.")


@app.command()
def lock(vault: options.VaultFolder) -> None:
    """End what `vault unlock` began."""
    from hf_fingerprint.vault.agent import release_identity
    from hf_fingerprint.vault.store import Vault

    released = release_identity(Vault(vault).public_key)
    output.echo(f"{vault} is locked." if released else f"{vault} was locked already.")


def _parse_duration(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    found = re.fullmatch(r"([0-9]{1,6})([smh])", text)
    if found is None:
        raise FingerprintError(f"--for {text} is no duration: give a number with s, m or h, such as 15m.")
    return float(found[1]) * units[found[2]]


@app.command()
def backup(file: Annotated[Path, argument("New file for the backup.")], vault: options.VaultFolder) -> None:
    """Copy the vault's database to a file, and check the copy. Other processes can use the vault meanwhile.

    The backup does not hold the tracing identity: back that up separately. To restore, move the vault's folder away,
    make a new one, and put the backup there as vault.db and the identity as identity.age.
    """
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.backup import back_up

    back_up(Vault(vault).folder, file)
    output.echo(f"{file} is a backup of the vault's database, including model secrets: protect it like the vault.")
    output.echo("To restore, copy it to vault.db in a new folder. It lacks the tracing identity: back that up, too.")


@app.command()
def check(
    vault: options.VaultFolder,
    identity: options.Identity = None,
    passphrase_file: options.PassphraseFile = None,
    locked: Annotated[
        bool, option("--locked", "Check only what can be checked without the tracing identity.")
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """List the faults of a vault: rows that can't be used, damage, leftover files. Exit code 1 if there are any.

    With the identity, every record of a copy is opened and checked against its commitment.
    """
    from hf_fingerprint.vault import Vault
    from hf_fingerprint.vault.check import check_vault

    opened = Vault(vault)
    if not locked:
        options.unlock(opened, passphrase_file, identity)
    faults = check_vault(opened)
    if as_json:
        output.print_json([fault.to_dict() for fault in faults])
    else:
        for fault in faults:
            output.echo(fault.describe())
        scope = "without the identity" if locked else "every record opened"
        output.echo(f"{vault}: {len(faults)} faults ({scope})")
    return 1 if faults else 0
