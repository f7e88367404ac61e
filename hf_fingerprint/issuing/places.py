"""Where a copy is made and put: beside its place first, and cleared away if making it fails."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.errors import CheckpointError, FingerprintError
from hf_fingerprint.vault import CopyRecord, check_recipient


@contextmanager
def cleared_on_failure(partial: Path) -> Iterator[None]:
    """Removes a partial copy when making it fails, and says in a sentence what the disk had against it."""
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
        out.exists()
        return out.parent.resolve()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "impossible name"
        raise CheckpointError(
            f"{out.name[:80]}... can't be written in {out.parent} ({reason}): choose another."
        ) from None


def partial_of(out: Path, record: CopyRecord) -> Path:
    """Where a copy is while it is made."""
    return out.parent / f".{out.name}.{record.copy_id}.partial"


def check_name(recipient: str, as_folder: bool = False) -> None:
    """Refuses a recipient's name that can't be recorded, or that can't be a folder's."""
    check_recipient(recipient)
    if as_folder and (recipient in {".", ".."} or "/" in recipient or "\\" in recipient or recipient.startswith(".")):
        raise FingerprintError(
            f"The recipient {recipient!r} can't name a folder: issue this copy alone, with its own --out."
        )
