"""Where a copy is made, and whom it may be named after."""

import os
from pathlib import Path

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.vault import CopyRecord, canonical_recipient


MAX_NAME_BYTES = 255  # bytes of a file's or folder's name


def partial_path(out: Path, record: CopyRecord) -> Path:
    """Where a copy is while it is made."""
    name = f".{out.name}.{record.copy_id}.partial"
    return out.parent / (name if len(os.fsencode(name)) <= MAX_NAME_BYTES else f".{record.copy_id}.partial")


def checked_name(recipient: str, as_folder: bool = False) -> str:
    """A recipient's name as it is recorded; refuses one that can't be recorded, or that can't be a folder's."""
    recipient = canonical_recipient(recipient)
    if as_folder and (recipient in {".", ".."} or "/" in recipient or "\\" in recipient or recipient.startswith(".")):
        raise FingerprintError(
            f"The recipient {recipient!r} can't name a folder: issue this copy alone, with its own --out."
        )
    return recipient
