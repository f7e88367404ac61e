"""A vault that is needed for an evaluation alone."""

import secrets
import shutil
from pathlib import Path

from hf_fingerprint.vault import Vault, find_passphrase
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.private_files import write_private
from hf_fingerprint.vault.storage import translate_disk_errors


_PASSPHRASE = "passphrase"


def throwaway_vault(folder: Path) -> Vault:
    """A throwaway vault, created if missing, unlocked. Its passphrase is stored inside: it protects nothing else."""
    file = folder / _PASSPHRASE
    if not (folder / DATABASE).exists():
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
        passphrase = secrets.token_hex(32)
        with translate_disk_errors(f"{file} can't be written", folder.parent):
            folder.mkdir(parents=True, mode=0o700)
            write_private(file, passphrase.encode() + b"\n")
        Vault.create(folder, passphrase)
    vault = Vault(folder)
    vault.unlock(find_passphrase(file))
    return vault
