"""Where the passphrase comes from: a file, the environment, or the person at the terminal. Never the command line."""

import getpass
import os
import sys
from pathlib import Path

from hf_fingerprint.errors import PassphraseError


VARIABLE = "HF_FINGERPRINT_PASSPHRASE"


def find_passphrase(file: Path | None = None, confirm: bool = False) -> str:
    """The passphrase of the tracing identity.

    Args:
        file (`Path`, *optional*): a file whose first line is the passphrase.
        confirm (`bool`, *optional*, defaults to `False`): when a person types it, ask twice.

    Raises:
        [`PassphraseError`]: if there is none, or the two differ.
    """
    if file is not None:
        try:
            return file.read_text().splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError):
            raise PassphraseError(f"The passphrase file {file} can't be read or is empty: give another.") from None
    if os.environ.get(VARIABLE):
        return os.environ[VARIABLE]
    if not sys.stdin.isatty():
        raise PassphraseError(f"A passphrase is needed: set {VARIABLE}, give --passphrase-file, or run in a terminal.")
    passphrase = getpass.getpass("Passphrase of the tracing identity: ")
    if confirm and getpass.getpass("Once more: ") != passphrase:
        raise PassphraseError("The two passphrases differ: try again; nothing was changed.")
    return passphrase
