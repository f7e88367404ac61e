"""Write a partial folder safely: remove it on failure, and report a full disk in one sentence."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.errors import CheckpointError, StorageError


_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])


def is_disk_full_error(error: OSError) -> bool:
    """Whether a full disk raised this error."""
    return error.errno in _FULL


def disk_full_error(folder: Path) -> StorageError:
    """The error for a full disk."""
    return StorageError(f"The disk of {folder.absolute()} is full: make room there and run the command again.")


@contextmanager
def remove_on_failure(partial: Path) -> Iterator[None]:
    """Removes a partial folder if the block fails, and turns disk errors into one sentence."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_full_error(error):
            raise disk_full_error(partial.parent) from None
        raise CheckpointError(
            f"{partial.parent} can't be written ({error.strerror or error}): choose another folder."
        ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def resolve_parent(out: Path) -> Path:
    """The parent folder of an output path; follows links.

    Raises:
        [`CheckpointError`]: if the path's name is invalid.
    """
    try:
        out.exists()  # fails for a name that is too long,
        out.resolve()  # and this for one with a zero byte
        return out.parent.resolve()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "impossible name"
        raise CheckpointError(
            f"{out.name[:80]}... can't be written in {out.parent} ({reason}): choose another name."
        ) from None
