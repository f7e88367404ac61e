"""What of a vault can't be used: rows that were tampered with, or that the disk lost.

One such row stops nothing but its own use: it is skipped and named, and where it could have been the leaker's, a trace
doesn't end in "nobody".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_fingerprint.errors import VaultError


TRACED_TABLES = ("bases", "copies")
_REMEDY = "restore a backup of the vault"
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
        problem (`str`): a clause, such as "does not open its commitment".
    """

    table: str
    key: str
    problem: str

    def describe(self) -> str:
        """In a clause that names the row."""
        return " ".join(part for part in (_ROWS.get(self.table, self.table), self.key, self.problem) if part)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"table": self.table, "key": self.key, "what": self.problem}


class RowError(VaultError):
    """A row of the vault can't be used.

    Args:
        fault ([`Fault`]): which, and why.
        remedy (`str`, *optional*): what to do, as a clause.
    """

    def __init__(self, fault: Fault, remedy: str = _REMEDY):
        super().__init__(f"{fault.describe()}: {remedy}.")
        self.fault = fault


def inconclusive_reasons(faults: Iterable[Fault], max_named: int = 3) -> list[str]:
    """Why "nobody" can't be said, in a clause, if among rows that can't be used may be the leaker's; else nothing.

    Args:
        faults (iterable of [`Fault`]): the rows.
        max_named (`int`, *optional*, defaults to 3): how many are named.
    """
    found = [fault.describe() for fault in faults if fault.table in TRACED_TABLES]
    if not found:
        return []
    more = f", and {len(found) - max_named:,} more" if len(found) > max_named else ""
    return [
        f"the copy may be one whose record can't be used: {'; '.join(found[:max_named])}{more} (restore a backup of the "
        f"vault; `hf-fingerprint vault check` lists what is wrong)"
    ]
