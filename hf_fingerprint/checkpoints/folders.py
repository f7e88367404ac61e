"""Where a folder is made and put: beside its place first, and cleared away if making it fails; what a full disk is
called."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.errors import CheckpointError, StorageError


_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])


def is_disk_full_error(error: OSError) -> bool:
    """Whether this is what a full disk raises."""
    return error.errno in _FULL


def disk_full_error(folder: Path) -> StorageError:
    """The sentence for a full disk."""
    return StorageError(f"The disk of {folder.absolute()} is full: make room there, and run the same command again.")


@contextmanager
def remove_on_failure(partial: Path) -> Iterator[None]:
    """Removes a partial folder when making it fails, and says in a sentence what the disk had against it."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_full_error(error):
            raise disk_full_error(partial.parent) from None
        raise CheckpointError(
            f"{partial.parent} can't be written to ({error.strerror or error}): make room or choose another place."
        ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def resolve_parent(out: Path) -> Path:
    """The folder that a place is in, links followed.

    Raises:
        [`CheckpointError`]: if no place can have this name.
    """
    try:
        out.exists()  # fails for a name that is too long,
        out.resolve()  # and this for one with a zero byte
        return out.parent.resolve()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "impossible name"
        raise CheckpointError(
            f"{out.name[:80]}... can't be written in {out.parent} ({reason}): choose another."
        ) from None
