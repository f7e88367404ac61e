"""The rows of a vault: bases, records of copies, and what belongs to them. No identity is needed.

Unusable rows are left out with a warning, once per row.
"""

import hashlib
import secrets
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path

from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.errors import FingerprintWarning, StorageError, VaultError
from hf_fingerprint.keys import commitment, new_secret
from hf_fingerprint.vault.base_validation import check_base, is_content_hash
from hf_fingerprint.vault.database import Database
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Ancestor, Base, CopyRecord, normalize_recipient, recipient_spellings
from hf_fingerprint.vault.rows import (
    VaultRows,
    check_readable,
    read_rows,
    read_usable_bases,
    read_usable_copies,
)
from hf_fingerprint.vault.schema import (
    BASE_COLUMNS,
    COPY_COLUMNS,
    base_to_row,
    check_trigger_set,
    read_base,
    row_with_ancestor,
    seal_trigger_set,
)
from hf_fingerprint.vault.sealing import seal
from hf_fingerprint.vault.secure_delete import clear_journal, wipe_training_keys
from hf_fingerprint.vault.storage import suppress_damage
from hf_fingerprint.vault.transactions import transaction
from hf_fingerprint.vault.unsealing import SAME_PUBLIC_KEY


_DIGESTED_ROWS = 10_000
_DIGESTED = (
    "SELECT base_id, seal FROM bases ORDER BY rowid",
    "SELECT copy_id, base_id, recipient, state, content_hash, commitment FROM copies ORDER BY rowid",
    "SELECT copy_id, repo, state FROM publications ORDER BY copy_id",
    "SELECT copy_id FROM training ORDER BY copy_id",
)


class RecordStore(Database):
    """An existing vault's rows, read and written."""

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._warned: set[Fault] = set()
        self.warn(self.meta_faults)

    def warn(self, faults: Iterable[Fault]) -> None:
        """Warns of unusable rows, once per row."""
        for fault in faults:
            if fault not in self._warned:
                self._warned.add(fault)
                warnings.warn(FingerprintWarning(f"{RowError(fault)} It is left out."), stacklevel=3)

    def rows(self) -> VaultRows:
        """All usable bases and records of copies, and the unusable rows, without a warning."""
        return read_rows(self.connect)

    def records_digest(self) -> str:
        """SHA-256 of what a trace depends on: bases, copies, copies in training and publications; of a damaged
        database, of what can be read."""
        digest = hashlib.sha256()
        with self.connect() as connection:
            for query in _DIGESTED:
                with suppress_damage():
                    rows = connection.execute(query)
                    while part := rows.fetchmany(_DIGESTED_ROWS):
                        digest.update(repr(part).encode())
        return digest.hexdigest()

    def bases(self) -> list[Base]:
        """All registered bases, in the order of registration; unusable ones are left out with a warning."""
        with self.connect() as connection:
            bases, faults = read_usable_bases(connection)
        self.warn(faults)
        return bases

    def base(self, base_id: str) -> Base:
        """The base with this id.

        Raises:
            [`VaultError`]: if there is none, or its record can't be used.
        """
        with self.connect() as connection:
            bases, faults = read_usable_bases(connection)
        for base in bases:
            if base.base_id == base_id:
                return base
        for fault in faults:
            raise RowError(fault)
        hint = did_you_mean(
            base_id, (base.base_id for base in bases), "see `hf-fingerprint recipients` for those it has"
        )
        raise VaultError(f"{self.folder} has no base {base_id}{hint}")

    def base_with_hash(self, content_hash: str) -> Base | None:
        """The current base with this content, for new copies; `None` if it is not registered.

        Raises:
            [`RowError`]: if an unusable record has this content, or may have it.
        """
        with self.connect() as connection:
            bases, faults = read_usable_bases(connection)
            check_readable(connection, faults, content_hash)
        self.warn(faults)
        return next((base for base in current_bases(bases) if base.content_hash == content_hash), None)

    def add_base(self, base: Base) -> Base:
        """Registers a base, and returns it or the one that another process registered with the same content first.

        A record that replaces another is added next to it, unless that one is replaced already.

        Raises:
            [`VaultError`]: if the base has invalid values, or its id is taken.
        """
        check_base(base, is_new=True)
        with self.connect() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO bases SELECT ?, ?, ?, ?, ?, ? "
                "WHERE NOT EXISTS (SELECT 1 FROM bases WHERE content_hash = ? "
                "AND json_extract(document, '$.replaces') IS ?)",
                (*base_to_row(base), base.content_hash, base.replaces),
            )
        stored = self.base_with_hash(base.content_hash)
        if stored is None:
            raise VaultError(f"{self.folder} has another base {base.base_id}: register this one in another vault.")
        return stored

    def set_ancestor(self, base: Base, ancestor: Ancestor | None) -> Base:
        """Records the public model that a base was fine-tuned from, or none, and returns the changed record. No copy
        depends on it.

        Raises:
            [`VaultError`]: if the ancestor has invalid values, or the record has another one than `base` has.
        """
        check_base(replace(base, ancestor=ancestor))
        with self.connect() as connection, transaction(connection):
            statement = f"SELECT {BASE_COLUMNS} FROM bases WHERE base_id = ?"
            row = connection.execute(statement, (base.base_id,)).fetchone()
            if row is None or read_base(row) != base:
                raise VaultError(f"The record of base {base.base_id} was changed by another process: run again.")
            changed = row_with_ancestor(row, ancestor)
            connection.execute(
                "UPDATE bases SET document = ?, seal = ? WHERE base_id = ?", (changed[2], changed[5], base.base_id)
            )
        return read_base(changed)

    def trigger_set(self, base: Base) -> bytes | None:
        """The stored trigger set of a base; `None` if it has none.

        Raises:
            [`VaultError`]: if it was tampered with.
        """
        with self.connect() as connection:
            statement = "SELECT base_id, content, seal FROM questions WHERE base_id = ?"
            row = connection.execute(statement, (base.base_id,)).fetchone()
        return None if row is None else check_trigger_set(base.secret, row)

    def add_trigger_set(self, base: Base, content: bytes) -> None:
        """Stores the trigger set of a base, which can't be changed afterwards.

        Raises:
            [`VaultError`]: if the base has another trigger set.
        """
        row = (base.base_id, content, seal_trigger_set(base.secret, base.base_id, content))
        with self.connect() as connection:
            connection.execute("INSERT OR IGNORE INTO questions VALUES (?, ?, ?)", row)
        if self.trigger_set(base) != content:
            raise VaultError(f"Base {base.base_id} has another trigger set: use that one, which all copies share.")

    def begin_copy(
        self,
        base: Base,
        recipient: str,
        out: Path | str,
        resumed_record: CopyRecord | None = None,
        copy_key: bytes | None = None,
    ) -> tuple[CopyRecord, bytes]:
        """Records a new copy before its first byte is written, and returns its record and key.

        Args:
            base ([`Base`]): the registered base.
            recipient (`str`): the recipient.
            out (`Path`): where the copy will be.
            resumed_record ([`CopyRecord`], *optional*): a record in state `"begun"` to use again. It gets a new key,
                since nothing is marked with its old one.
            copy_key (`bytes`, *optional*): the key of a mark that the weights already hold; a new key by default.

        Returns:
            `(record, copy_key)`: the vault stores the key sealed only.
        """
        copy_id = resumed_record.copy_id if resumed_record else secrets.token_hex(8)
        recipient = resumed_record.recipient if resumed_record else normalize_recipient(recipient)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        copy_key = copy_key or new_secret()
        sealed = seal(copy_key, copy_id, base.base_id, recipient, self.public_key)
        record = CopyRecord(copy_id, base.base_id, recipient, "begun", str(out), None, None, created, sealed)
        with self.connect() as connection:
            if resumed_record:
                changed = connection.execute(
                    "UPDATE copies SET sealed = ?, created = ? "
                    f"WHERE copy_id = ? AND state = 'begun' AND {SAME_PUBLIC_KEY}",
                    (sealed, created, copy_id, self.public_key),
                ).rowcount
            else:
                changed = connection.execute(
                    f"INSERT INTO copies ({COPY_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE {SAME_PUBLIC_KEY}",
                    (*astuple(record), self.public_key),
                ).rowcount
        if changed != 1:
            what = f"The record of copy {copy_id}" if resumed_record else f"The tracing identity of {self.folder}"
            raise VaultError(f"{what} was changed by another process: run the command again.")
        return record, copy_key

    def mark_written(
        self,
        record: CopyRecord,
        copy_key: bytes,
        content_hash: str,
        out: Path | None = None,
        is_answering: bool = False,
        is_issued: bool = False,
    ) -> CopyRecord:
        """Records that a copy is complete on the disk, with its commitment, and returns the updated record.

        The same transaction wipes the copy's training key, which is not encrypted.

        Args:
            record ([`CopyRecord`]): the record in state `"begun"`.
            copy_key (`bytes`): the copy's key.
            content_hash (`str`): the content hash of its weights.
            out (`Path`, *optional*): where the copy is, if that wasn't known before.
            is_answering (`bool`, *optional*, defaults to `False`): whether it answers its base's triggers.
            is_issued (`bool`, *optional*, defaults to `False`): whether it is at its final path, and so issued.
        """
        new_commitment, place = commitment(copy_key, record.recipient, content_hash), str(out or record.out)
        state = "issued" if is_issued else "written"
        with self.connect() as connection:
            with transaction(connection):
                changed = connection.execute(
                    "UPDATE copies SET state = ?, content_hash = ?, commitment = ?, out = ? "
                    "WHERE copy_id = ? AND sealed = ?",
                    (state, content_hash, new_commitment, place, record.copy_id, record.sealed),
                ).rowcount
                if changed == 1 and is_answering:
                    connection.execute("INSERT OR IGNORE INTO bound VALUES (?)", (record.copy_id,))
                wiped = changed == 1 and wipe_training_keys(connection, "copy_id = ?", record.copy_id)
            if wiped:
                clear_journal(connection)
        if changed != 1:
            raise VaultError(f"The record of copy {record.copy_id} was changed by another process: try again.")
        return replace(record, state=state, content_hash=content_hash, commitment=new_commitment, out=place)

    def mark_issued(self, copy_id: str) -> None:
        """Records that a copy is at its final path."""
        with self.connect(durable=False) as connection:  # the next run can find the copy there
            changed = connection.execute("UPDATE copies SET state = 'issued' WHERE copy_id = ?", (copy_id,)).rowcount
        if changed != 1:
            raise VaultError(f"The record of copy {copy_id} is missing in {self.folder}: restore a backup.")

    def copies(self, base_id: str | None = None, recipient: str | None = None, begun: bool = True) -> list[CopyRecord]:
        """The records of copies in the order of issue; unusable ones are left out with a warning.

        Args:
            base_id (`str`, *optional*): only copies of this base.
            recipient (`str`, *optional*): only copies of this recipient, in any spelling of the name.
            begun (`bool`, *optional*, defaults to `True`): include unfinished copies.
        """
        names = () if recipient is None else recipient_spellings(recipient)
        where = "base_id = coalesce(?, base_id) AND (? OR state != 'begun')"
        where += f" AND trim(recipient) IN ({_places(names)})" if names else ""
        with self.connect() as connection:
            copies, faults = read_usable_copies(connection, where, (base_id, begun, *names))
        self.warn(faults)
        return copies

    def has_copy(self, recipient: str, base_ids: Sequence[str]) -> bool:
        """Whether there is a usable record of a recipient's copy of one of these bases."""
        names = recipient_spellings(recipient)
        where = f"trim(recipient) IN ({_places(names)}) AND base_id IN ({_places(base_ids)})"
        with self.connect() as connection:
            return bool(read_usable_copies(connection, where, (*names, *base_ids))[0])

    def copy_with_id(self, copy_id: str) -> CopyRecord | None:
        """The record of a copy; `None` if there is none, or it is unusable."""
        with self.connect() as connection:
            return next(iter(read_usable_copies(connection, "copy_id = ?", (copy_id,))[0]), None)

    def copies_with_hash(self, content_hashes: Iterable[str]) -> list[CopyRecord]:
        """The records of copies with one of these content hashes; unusable ones are left out."""
        wanted = sorted(set(content_hashes))
        with self.connect() as connection:
            where = f"content_hash IN ({_places(wanted)})"
            return read_usable_copies(connection, where, tuple(wanted))[0]

    def answering_ids(self, base_id: str) -> set[str]:
        """The ids of a base's copies that answer its triggers."""
        statement = "SELECT copy_id FROM bound WHERE copy_id IN (SELECT copy_id FROM copies WHERE base_id = ?)"
        with self.connect() as connection:
            return {copy_id for (copy_id,) in connection.execute(statement, (base_id,))}

    def cached_content_hash(self, place: str, state: str) -> str | None:
        """The cached content hash of files whose state is unchanged, or `None`; see [`Checkpoint.state`]."""
        with self.connect() as connection:
            statement = "SELECT content_hash FROM verified WHERE place = ? AND state = ?"
            row = connection.execute(statement, (place, state)).fetchone()
        return row[0] if row and is_content_hash(row[0]) else None

    def cache_content_hash(self, place: str, state: str, content_hash: str) -> None:
        """Caches the content hash of files, if the vault can be written."""
        with suppress(StorageError), self.connect() as connection:
            connection.execute("INSERT OR REPLACE INTO verified VALUES (?, ?, ?)", (place, state, content_hash))


def _places(values: Sequence[str]) -> str:
    """Placeholders for values in an SQL list."""
    return ", ".join("?" * len(values))


def current_bases(bases: Sequence[Base]) -> list[Base]:
    """The bases for new copies: those that no other record of the same weights replaces."""
    replaced = {base.replaces for base in bases}
    return [base for base in bases if base.base_id not in replaced]
