"""Publications: which copy goes to which Hub repo, recorded before the push and confirmed with the commit after it.

So an interrupted push can be resumed: no copy is marked twice, and a commit that was made is found by the hashes of
its files.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.rows import FoundRows, read_keyed_table, read_usable_copies
from hf_fingerprint.vault.storage import suppress_damage
from hf_fingerprint.vault.store import Vault


_COLUMNS = "p.repo, p.state, p.files, p.revision, p.account, p.created"
_PARSE_ERRORS = (ValueError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Publication:
    """The push of a copy to a Hub repo.

    Attributes:
        copy_id, base_id, recipient (`str`): the record of the copy.
        repo (`str`): `org/name`.
        state (`str`): `"begun"`, or `"confirmed"` once the commit is known.
        files (`dict[str, str]`): the SHA-256 of each file, hexadecimal, by its path in the repo.
        revision (`str` or `None`): the commit.
        account (`str` or `None`): the Hub account that gets access.
        created (`str`): UTC, ISO 8601.
    """

    copy_id: str
    base_id: str
    recipient: str
    repo: str
    state: str
    files: dict[str, str]
    revision: str | None
    account: str | None
    created: str

    @property
    def place(self) -> str:
        """The repo and commit, as text."""
        return f"{self.repo}@{self.revision}" if self.revision else f"{self.repo} (not confirmed)"

    def describe(self) -> dict[str, Any]:
        """The fields to show next to its copy's."""
        return {"repo": self.repo, "revision": self.revision, "published": self.state, "account": self.account}


def begin_publication(
    vault: Vault, copy_id: str, repo: str, files: Mapping[str, str], account: str | None = None
) -> Publication:
    """Records that a copy will be pushed, and returns its publication.

    Raises:
        [`VaultError`]: if the copy is recorded for another repo.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with vault.connect() as connection:
        connection.execute(
            "INSERT INTO publications VALUES (?, ?, 'begun', ?, NULL, ?, ?) ON CONFLICT (copy_id) "
            "DO UPDATE SET files = excluded.files, account = coalesce(excluded.account, account) "
            "WHERE repo = excluded.repo AND state = 'begun'",
            (copy_id, repo, json.dumps(dict(files), sort_keys=True), account, created),
        )
    kept = find_publication(vault, copy_id)
    if kept is None or kept.repo != repo:
        known = kept.repo if kept else "another repo"
        raise VaultError(f"Copy {copy_id} is recorded for {known}: publish it there, or issue another copy.")
    return kept


def confirm_publication(vault: Vault, copy_id: str, revision: str) -> Publication:
    """Records the commit of a push, and returns the copy's publication."""
    with vault.connect(durable=False) as connection:  # the next run can find the commit again
        statement = "UPDATE publications SET state = 'confirmed', revision = ? WHERE copy_id = ?"
        connection.execute(statement, (revision, copy_id))
    kept = find_publication(vault, copy_id)
    if kept is None:
        raise VaultError(f"The publication of copy {copy_id} is missing in {vault.folder}: restore a backup.")
    return kept


def find_publication(vault: Vault, copy_id: str) -> Publication | None:
    """The publication of a copy, or `None`."""
    return next(iter(publications(vault, copy_id=copy_id)), None)


def publications(vault: Vault, repo: str | None = None, copy_id: str | None = None) -> list[Publication]:
    """The recorded publications, of one repo, one copy or all, in the order of their copies' records.

    Unusable rows are left out with a warning.
    """
    found = []
    with vault.connect() as connection:
        rows, faults = _read_rows(connection, repo, copy_id)
    for row in rows:
        try:
            found.append(_parse_publication(row))
        except _PARSE_ERRORS:
            faults.append(Fault("publications", f"{short_repr(row[0])} ({short_repr(row[2])})", "was damaged"))
    vault.warn(faults)
    return found


def publication_faults(connection: sqlite3.Connection) -> list[Fault]:
    """The unusable rows of table `publications`."""
    rows, faults = read_keyed_table(connection, "publications", "copy_id", f"p.copy_id, {_COLUMNS}".replace("p.", ""))
    for row in rows:
        try:
            _parse_publication((row[0], "", "", *row[1:]))
        except _PARSE_ERRORS:
            faults.append(Fault("publications", short_repr(row[0]), "was damaged"))
    return faults


def _parse_publication(row: Any) -> Publication:
    """The publication in a row; raises any of `_PARSE_ERRORS` if the row is invalid."""
    copy, base, recipient, repo, state, files, *others = row
    hashes = json.loads(files)
    texts = (copy, base, recipient, repo, others[2], *hashes.keys(), *hashes.values())
    if not all(isinstance(text, str) for text in texts) or state not in ("begun", "confirmed"):
        raise ValueError(copy)
    if not all(text is None or isinstance(text, str) for text in others[:2]):
        raise ValueError(copy)
    return Publication(copy, base, recipient, repo, state, hashes, *others)


def _read_rows(connection: sqlite3.Connection, repo: str | None, copy_id: str | None) -> FoundRows:
    """The rows that [`publications`] selects, as far as a damaged database has them."""
    statement = (
        f"SELECT p.copy_id, c.base_id, c.recipient, {_COLUMNS} FROM publications p JOIN copies c "
        "ON c.copy_id = p.copy_id WHERE p.repo = coalesce(?, p.repo) AND p.copy_id = coalesce(?, p.copy_id) "
        "ORDER BY c.rowid"
    )
    with suppress_damage():
        return connection.execute(statement, (repo, copy_id)).fetchall(), []
    copies, _ = read_usable_copies(connection)
    rows, faults = read_keyed_table(connection, "publications", "copy_id", f"p.copy_id, {_COLUMNS}".replace("p.", ""))
    by_id = {row[0]: row for row in rows if repo in (None, row[1]) and copy_id in (None, row[0])}
    joined = [(c.copy_id, c.base_id, c.recipient, *by_id[c.copy_id][1:]) for c in copies if c.copy_id in by_id]
    return joined, faults
