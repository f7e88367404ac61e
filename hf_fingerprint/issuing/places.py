"""Where a copy is made, and whom it may be named after."""

from pathlib import Path

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.vault import CopyRecord, check_recipient


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
