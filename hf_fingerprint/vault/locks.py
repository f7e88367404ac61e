"""Locks between processes that work on one vault. A lock is released when its process ends."""

from filelock import FileLock, Timeout

from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import derive
from hf_fingerprint.vault.records import Base
from hf_fingerprint.vault.storage import file_error
from hf_fingerprint.vault.store import Vault


def acquire_lock(vault: Vault, base: Base, task: str, message: str) -> FileLock:
    """Acquires a lock on a task, and returns it. Call its `release()` when done.

    Args:
        vault ([`Vault`]): the vault.
        base ([`Base`]): the base of the task; the lock's file name is derived from its secret.
        task (`str`): the task that only one process may work on at a time.
        message (`str`): the message of the error.

    Raises:
        [`VaultError`]: if another process has the lock, or the vault's disk is full or read-only.
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
