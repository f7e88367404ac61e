"""Locks between processes that work on one vault; a lock goes with its process."""

from filelock import FileLock, Timeout

from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import derive
from hf_fingerprint.vault.records import Base
from hf_fingerprint.vault.storage import file_error
from hf_fingerprint.vault.store import Vault


def acquire_lock(vault: Vault, base: Base, task: str, message: str) -> FileLock:
    """Takes a lock, or refuses with a sentence if another process has it. Call its `release()` when done.

    Args:
        vault ([`Vault`]): the vault.
        base ([`Base`]): the base that the work is for; the lock's file name is derived from its secret.
        task (`str`): what only one may do at a time.
        message (`str`): the sentence.

    Raises:
        [`VaultError`]: if another process has it, or the vault's disk is full or read-only.
    """
    locks = vault.folder / "locks"
    lock = FileLock(locks / f"{derive(base.secret, 'lock', task).hex()[:16]}.lock", thread_local=False)
    try:
        locks.mkdir(exist_ok=True, mode=0o700)
        lock.acquire(timeout=0)
    except Timeout:
        raise VaultError(message) from None
    except OSError as error:
        raise file_error(f"{locks} can't be written", vault.folder, error) from None
    return lock
