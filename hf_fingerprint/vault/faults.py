"""Rows of a vault that can't be used, because they were tampered with or the disk lost them.

An unusable row is skipped and named in a warning; all others stay usable. If it could be the record of the leaked
copy, a trace never concludes "nobody".
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hf_fingerprint.errors import VaultError


TRACED_TABLES = ("bases", "copies")
_REMEDY = "restore a backup of the vault"
_ROWS = {
    "bases": "The record of base",
    "ancestors": "The ancestor of base",
    "copies": "The record of copy",
    "questions": "The trigger set of base",
    "bound": "The note that its triggers are answered by copy",
    "publications": "The record of the publication of copy",
    "issuers": "The record of issuer",
    "training": "The training key of copy",
    "verified": "The cached content hash of",
    "bundles": "The key cache of base",
    "arrivals": "The arrival time of copy",
    "meta": "The vault's record of its",
    "database": "The database",
    "folder": "In the vault's folder",
}


@dataclass(frozen=True)
class Fault:
    """A row of the vault that can't be used.

    Attributes:
        table (`str`): the table.
        key (`str`): the row's key, with its recipient if it has one; printable and short.
        problem (`str`): a clause, such as "does not open its commitment".
    """

    table: str
    key: str
    problem: str

    def describe(self) -> str:
        """A clause that names the row and its problem."""
        return " ".join(part for part in (_ROWS.get(self.table, self.table), self.key, self.problem) if part)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


class RowError(VaultError):
    """A row of the vault can't be used.

    Args:
        fault ([`Fault`]): the row and its problem.
        remedy (`str`, *optional*): what to do, as a clause.
    """

    def __init__(self, fault: Fault, remedy: str = _REMEDY):
        super().__init__(f"{fault.describe()}: {remedy}.")
        self.fault = fault


def inconclusive_reasons(faults: Iterable[Fault], max_named: int = 3) -> list[str]:
    """Why a trace can't conclude "nobody", as a list of at most one clause: unusable rows may be the leaked copy's.

    Args:
        faults (iterable of [`Fault`]): the unusable rows.
        max_named (`int`, *optional*, defaults to 3): the number of rows to name.
    """
    found = [fault.describe() for fault in faults if fault.table in TRACED_TABLES]
    if not found:
        return []
    more = f", and {len(found) - max_named:,} more" if len(found) > max_named else ""
    return [
        f"the copy may be one whose record can't be used: {'; '.join(found[:max_named])}{more} (restore a backup of "
        f"the vault; `hf-fingerprint vault check` lists all faults)"
    ]
