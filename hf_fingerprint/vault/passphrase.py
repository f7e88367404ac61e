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
            content = read_bounded(file, MAX_IDENTITY, "a passphrase file", PassphraseError, allow_pipe=True)
            first = content.decode().split("\n")[0].removesuffix("\r")
        except (OSError, UnicodeDecodeError):
            first = ""
        if not first:
            raise PassphraseError(f"The passphrase file {file} can't be read, or has no first line: give another.")
        return first
    if not is_prompted():
        return os.environ[PASSPHRASE_VARIABLE]
    if sys.stdin is None or not sys.stdin.isatty():
        raise PassphraseError(
            f"A passphrase is needed: set {PASSPHRASE_VARIABLE}, give --passphrase-file, or run in a terminal."
        )
    return _prompt("Passphrase of the tracing identity: ", confirm)


def prompt_new_passphrase(current: str) -> str:
    """A new passphrase, prompted for twice, or the current one if the first entry is empty.

    Raises:
        [`PassphraseError`]: if the two entries differ.
    """
    return _prompt("New passphrase (empty: the same one): ", confirm=True, allow_empty=True) or current


def _prompt(text: str, confirm: bool, allow_empty: bool = False) -> str:
    try:
        passphrase = getpass.getpass(text)
        is_final = not confirm or (allow_empty and not passphrase)
        if not is_final and getpass.getpass("Once more: ") != passphrase:
            raise PassphraseError("The two passphrases differ: try again; nothing was changed.")
    except EOFError:
        raise PassphraseError("No passphrase was given: try again; nothing was changed.") from None
    return passphrase
