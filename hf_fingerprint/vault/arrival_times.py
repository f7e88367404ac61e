"""When records of other issuers arrived in this vault.

A record's own date is the word of whoever wrote it. The time of the merge that brought it is kept beside it here, in a
table that is made when it is needed, stays on this machine and is never packed; versions that don't know it pass it
over.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.store import Vault


_TABLE = "CREATE TABLE IF NOT EXISTS arrivals (copy_id TEXT PRIMARY KEY, arrived TEXT NOT NULL) WITHOUT ROWID"
_LAST_MERGE = "merged"  # in `meta`
_LATE_TOLERANCE, _CLOCK_TOLERANCE = (
    timedelta(days=1),
    timedelta(minutes=10),
)  # how far dates may lie apart before it is worth a word


@dataclass(frozen=True)
class Arrival:
    """A record that a merge brought.

    Attributes:
        copy_id, recipient, base_id (`str`): which.
        created (`str`): the date that its issuer gave it, UTC, ISO 8601.
        arrived (`str`): when the merge brought it here, UTC, ISO 8601.
        note (`str` or `None`): what is noteworthy about the two, if anything is.
    """

    copy_id: str
    recipient: str
    base_id: str
    created: str
    arrived: str
    note: str | None = None

    def describe(self) -> str:
        """In a line."""
        note = "" if self.note is None else f"; {self.note}"
        return f"{self.recipient}, copy {self.copy_id}, dated {self.created}, arrived {self.arrived}{note}"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def record_arrivals(connection: sqlite3.Connection, records: Iterable[CopyRecord]) -> tuple[Arrival, ...]:
    """Keeps that these records arrive now, in the caller's transaction, and that there was a merge.

    Returns:
        `tuple[Arrival, ...]`: each with what is noteworthy about its date.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    (last,) = connection.execute("SELECT max(value) FROM meta WHERE key = ?", (_LAST_MERGE,)).fetchone()
    found = [
        Arrival(
            r.copy_id, r.recipient, r.base_id, r.created, now.isoformat(), _note(r.created, _parse_time(last), now)
        )
        for r in records
    ]
    if found:
        connection.execute(_TABLE)
        rows = [(arrival.copy_id, arrival.arrived) for arrival in found]
        connection.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?)", rows)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_LAST_MERGE, now.isoformat()))
    return tuple(found)


def arrivals(vault: Vault) -> dict[str, str]:
    """When records arrived here, UTC, ISO 8601, by their copies' ids; those made here did not."""
    with vault.connect() as connection:
        has_table = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'arrivals'"
        ).fetchone()
        return dict(connection.execute("SELECT copy_id, arrived FROM arrivals")) if has_table else {}


def _note(created: str, last: datetime | None, now: datetime) -> str | None:
    at = _parse_time(created)
    if at is None:
        return None
    if at > now + _CLOCK_TOLERANCE:
        return "its date lies after its arrival, so its issuer's clock or this one is wrong"
    if last is not None and at < last - _LATE_TOLERANCE:
        return f"its date lies before the merge of {last.isoformat()}: ask its issuer, unless a late push was due"
    return None


def _parse_time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
