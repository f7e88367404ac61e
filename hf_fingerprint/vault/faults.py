"""What of a vault can't be used: rows that were tampered with, or that the disk lost.

One such row stops nothing but its own use: it is skipped and named, and where it could have been the leaker's, a trace
doesn't end in "nobody".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_fingerprint.errors import VaultError


HIDING = ("bases", "copies")
_WAY_OUT = "restore a backup of the vault"
_ROWS = {
    "bases": "The record of base",
    "copies": "The record of copy",
    "questions": "The record of the questions of base",
    "bound": "The note that a copy answers questions, of copy",
    "publications": "The record of the publication of copy",
    "issuers": "The record of issuer",
    "training": "The key in training of copy",
    "verified": "The note of the content of",
    "bundles": "The key cache of base",
    "arrivals": "The note of the arrival of copy",
    "meta": "The vault's own record of its",
    "database": "The database",
    "folder": "In the vault's folder",
}


@dataclass(frozen=True)
class Fault:
    """A row of the vault that can't be used.

    Attributes:
        table (`str`): the table.
        key (`str`): the row's key, and its recipient where it names one; printable and short.
        what (`str`): a clause, such as "does not open its commitment".
    """

    table: str
    key: str
    what: str

    def describe(self) -> str:
        """In a clause that names the row."""
        return " ".join(part for part in (_ROWS.get(self.table, self.table), self.key, self.what) if part)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"table": self.table, "key": self.key, "what": self.what}


class RowError(VaultError):
    """A row of the vault can't be used.

    Args:
        fault ([`Fault`]): which, and why.
        way_out (`str`, *optional*): what to do, as a clause.
    """

    def __init__(self, fault: Fault, way_out: str = _WAY_OUT):
        super().__init__(f"{fault.describe()}: {way_out}.")
        self.fault = fault


def hiding(faults: Iterable[Fault], most: int = 3) -> list[str]:
    """Why "nobody" can't be said, in a clause, if among rows that can't be used may be the leaker's; else nothing.

    Args:
        faults (iterable of [`Fault`]): the rows.
        most (`int`, *optional*, defaults to 3): how many are named.
    """
    found = [fault.describe() for fault in faults if fault.table in HIDING]
    if not found:
        return []
    more = f", and {len(found) - most:,} more" if len(found) > most else ""
    return [
        f"the copy may be one whose record can't be used: {'; '.join(found[:most])}{more} (restore a backup of the "
        f"vault; `hf-fingerprint vault check` lists what is wrong)"
    ]
