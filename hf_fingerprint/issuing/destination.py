"""The path of a copy while it is written, and the names of recipients."""

import os
from pathlib import Path

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.vault import CopyRecord, canonical_recipient


MAX_NAME_BYTES = 255  # of a file or folder


def partial_path(out: Path, record: CopyRecord) -> Path:
    """The path of a copy while it is written."""
    name = f".{out.name}.{record.copy_id}.partial"
    return out.parent / (name if len(os.fsencode(name)) <= MAX_NAME_BYTES else f".{record.copy_id}.partial")


def checked_name(recipient: str, as_folder: bool = False) -> str:
    """The canonical form of a recipient's name, which names the copy's folder too if `as_folder`.

    Raises:
        [`FingerprintError`]: if the name is not valid.
    """
    recipient = canonical_recipient(recipient)
    if as_folder and (recipient in {".", ".."} or "/" in recipient or "\\" in recipient or recipient.startswith(".")):
        remedy = "use a name without slashes and leading dots, or issue this copy in Python, with a folder of its own"
        raise FingerprintError(f"The recipient {recipient!r} can't name a folder: {remedy}.")
    return recipient
