"""When records of other issuers arrived in this vault.

An issuer can write any date into its records, so each merge also notes its own time. The note is in a table that the
first merge creates, which stays on this machine and is never packed. Versions that don't know the table ignore it.
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
# the differences between dates above which an arrival gets a note
_LATE_TOLERANCE, _CLOCK_TOLERANCE = timedelta(days=1), timedelta(minutes=10)


@dataclass(frozen=True)
class Arrival:
    """A record that a merge brought.

    Attributes:
        copy_id, recipient, base_id (`str`): the record.
        created (`str`): the date that its issuer gave it, UTC, ISO 8601.
        arrived (`str`): the time of the merge, UTC, ISO 8601.
        note (`str` or `None`): a clause about an implausible date.
    """

    copy_id: str
    recipient: str
    base_id: str
    created: str
    arrived: str
    note: str | None = None

    def describe(self) -> str:
        """One line of text."""
        note = "" if self.note is None else f"; {self.note}"
        return f"{self.recipient}, copy {self.copy_id}, dated {self.created}, arrived {self.arrived}{note}"

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def record_arrivals(connection: sqlite3.Connection, records: Iterable[CopyRecord]) -> tuple[Arrival, ...]:
    """The arrivals of these records, with notes about their dates; stored in the caller's transaction, as is the time
    of this merge."""
    now = datetime.now(UTC).replace(microsecond=0)
    (value,) = connection.execute("SELECT max(value) FROM meta WHERE key = ?", (_LAST_MERGE,)).fetchone()
    last = _parse_time(value)
    found = [
        Arrival(r.copy_id, r.recipient, r.base_id, r.created, now.isoformat(), _note(r.created, last, now))
        for r in records
    ]
    if found:
        connection.execute(_TABLE)
        rows = [(arrival.copy_id, arrival.arrived) for arrival in found]
        connection.executemany("INSERT OR REPLACE INTO arrivals VALUES (?, ?)", rows)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_LAST_MERGE, now.isoformat()))
    return tuple(found)


def arrivals(vault: Vault) -> dict[str, str]:
    """Arrival times of merged records by copy id, UTC, ISO 8601. Records that were made here have none."""
    with vault.connect() as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'arrivals'").fetchone()
        return dict(connection.execute("SELECT copy_id, arrived FROM arrivals")) if found else {}


def _note(created: str, last: datetime | None, now: datetime) -> str | None:
    at = _parse_time(created)
    if at is None:
        return None
    if at > now + _CLOCK_TOLERANCE:
        return "it is dated after its arrival, so its issuer's clock or this machine's is wrong"
    if last is not None and at < last - _LATE_TOLERANCE:
        return f"it is dated before the last merge ({last.isoformat()}): ask its issuer, unless a late push was due"
    return None


def _parse_time(text: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(text or "")
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None
