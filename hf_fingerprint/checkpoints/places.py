"""Where a folder is made and put: beside its place first, and cleared away if making it fails."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.errors import CheckpointError


@contextmanager
def cleared_on_failure(partial: Path) -> Iterator[None]:
    """Removes a partial folder when making it fails, and says in a sentence what the disk had against it."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{partial.parent} can't be written to ({error.strerror or error}): make room or choose another place."
        ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def folder_of(out: Path) -> Path:
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
