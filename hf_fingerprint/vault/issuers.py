"""Issuers, such as a CI runner: machines that may open a pushed vault and mark copies, and their keys.

An issuer's key is an age identity without a passphrase, as CI secrets are. An issuer that pulls the vault gets the
bases with their model secrets and the sealed records, which is all that marking needs. It can't read a sealed copy
key, so it can neither trace nor find out the codeword of an earlier recipient.

A removed key stays on record as removed, so that merging with a vault that still has it does not restore it.
"""

import os
from pathlib import Path

import pyrage

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.limits import MAX_IDENTITY, read_bounded
from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.private_files import write_new_private
from hf_fingerprint.vault.sealing import AgeIdentity, check_public_key, new_identity
from hf_fingerprint.vault.store import Vault


ISSUER_KEY_VARIABLE = "HF_FINGERPRINT_ISSUER_KEY"
REMOVED = ""  # the name of a removed issuer; a merge keeps the lesser of two names, and so the removal


def new_issuer_key(file: Path) -> str:
    """Writes a new issuer's key to a file, and returns its public key.

    Raises:
        [`VaultError`]: if the file exists or can't be written.
    """
    identity, public_key = new_identity()
    try:
        write_new_private(file, f"# public key: {public_key}\n{identity}\n".encode())
    except OSError as error:
        if is_disk_full_error(error):
            raise disk_full_error(file.parent) from None
        raise VaultError(f"{file} can't be written ({error.strerror}): give the path of a new file.") from None
    return public_key


def open_issuer_key(file: Path | None = None) -> AgeIdentity | None:
    """An issuer's key from its file, or else from `HF_FINGERPRINT_ISSUER_KEY`; `None` if neither is given.

    Raises:
        [`VaultError`]: if the file or variable holds no issuer's key.
    """
    text, place = os.environ.get(ISSUER_KEY_VARIABLE, ""), ISSUER_KEY_VARIABLE
    if file is not None:
        place = str(file)
        try:
            text = read_bounded(file, MAX_IDENTITY, "an issuer's key", VaultError, allow_pipe=True).decode()
        except (OSError, UnicodeDecodeError):
            text = ""
    elif not text:
        return None
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        (key,) = keys
        return AgeIdentity(key)
    except (ValueError, pyrage.IdentityError):
        raise VaultError(f"{place} holds no issuer's key: make one with `vault issuer new`.") from None


def issuers(vault: Vault) -> dict[str, str]:
    """The names of the vault's issuers by their public keys."""
    with vault.connect() as connection:
        statement = "SELECT public_key, name FROM issuers WHERE name != ? ORDER BY name, public_key"
        return dict(connection.execute(statement, (REMOVED,)).fetchall())


def check_issuer_name(name: str) -> None:
    """Raises an error if a name can't be an issuer's."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise VaultError("An issuer's name must have 1 to 100 printable characters.")


def add_issuer(vault: Vault, public_key: str, name: str) -> None:
    """Lets an issuer open the vault from its next push on.

    Raises:
        [`VaultError`]: if the public key or the name is invalid, or this key was removed before.
    """
    check_public_key(public_key)
    check_issuer_name(name)
    with vault.connect() as connection:
        connection.execute(
            "INSERT INTO issuers VALUES (?, ?) ON CONFLICT DO UPDATE SET name = excluded.name WHERE name != ?",
            (public_key, name, REMOVED),
        )
    if public_key not in issuers(vault):
        raise VaultError(f"The issuer's key {public_key} was removed from {vault.folder}: make a new key.")


def remove_issuer(vault: Vault, name_or_key: str) -> list[str]:
    """Removes issuers by name or public key, and returns their public keys. They keep what they pulled before.

    Raises:
        [`VaultError`]: if there is no such issuer.
    """
    known = issuers(vault)
    removed = [public_key for public_key, name in known.items() if name_or_key in (public_key, name)]
    if not removed:
        hint = did_you_mean(name_or_key, known.values(), "see `hf-fingerprint vault issuer list`")
        raise VaultError(f"{vault.folder} has no issuer {name_or_key}{hint}")
    with vault.connect() as connection:
        connection.executemany("UPDATE issuers SET name = ? WHERE public_key = ?", [(REMOVED, key) for key in removed])
    return removed
