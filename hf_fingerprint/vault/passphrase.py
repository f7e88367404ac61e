"""Finds the passphrase in a file, in the environment, or at a prompt. It is never an argument on the command line."""

import getpass
import os
import sys
from pathlib import Path

from hf_fingerprint.checkpoints.limits import MAX_IDENTITY, read_bounded
from hf_fingerprint.errors import PassphraseError


PASSPHRASE_VARIABLE = "HF_FINGERPRINT_PASSPHRASE"


def is_prompted(file: Path | None = None) -> bool:
    """Whether [`find_passphrase`] prompts for the passphrase."""
    return file is None and not os.environ.get(PASSPHRASE_VARIABLE)


def find_passphrase(file: Path | None = None, confirm: bool = False) -> str:
    """The passphrase of the tracing identity.

    Args:
        file (`Path`, *optional*): a file whose first line is the passphrase.
        confirm (`bool`, *optional*, defaults to `False`): prompt twice.

    Raises:
        [`PassphraseError`]: if there is no passphrase, or the two entries differ.
    """
    if file is not None:
        try:
            first = (
                read_bounded(file, MAX_IDENTITY, "a passphrase file", PassphraseError, allow_pipe=True)
                .decode()
                .split("\n")[0]
                .removesuffix("\r")
            )
        except (OSError, UnicodeDecodeError):
            first = ""
        if not first:
            raise PassphraseError(
                f"The passphrase file {file} can't be read, or its first line is empty: give another file."
            )
        return first
    if not is_prompted():
        return os.environ[PASSPHRASE_VARIABLE]
    if sys.stdin is None or not sys.stdin.isatty():
        raise PassphraseError(
            f"A passphrase is needed: set {PASSPHRASE_VARIABLE}, give --passphrase-file, or run in a terminal."
        )
    try:
        passphrase = getpass.getpass("Passphrase of the tracing identity: ")
        if confirm and getpass.getpass("Once more: ") != passphrase:
            raise PassphraseError("The two passphrases differ: try again; nothing was changed.")
    except EOFError:
        raise PassphraseError("No passphrase was given: try again; nothing was changed.") from None
    return passphrase


def prompt_new_passphrase(current: str) -> str:
    """A new passphrase, prompted for twice, or the current one if the first entry is empty.

    Raises:
        [`PassphraseError`]: if the two entries differ.
    """
    try:
        passphrase = getpass.getpass("New passphrase (empty: the same one): ")
        if passphrase and getpass.getpass("Once more: ") != passphrase:
            raise PassphraseError("The two passphrases differ: try again; nothing was changed.")
    except EOFError:
        raise PassphraseError("No passphrase was given: try again; nothing was changed.") from None
    return passphrase or current
