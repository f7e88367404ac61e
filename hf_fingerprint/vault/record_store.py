"""The rows of a vault: bases, the record of who got what, and what is noted of both. No identity is needed.

A row that can't be used is left out with a warning, once.
"""

import secrets
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hf_fingerprint.errors import FingerprintWarning, StorageError, VaultError
from hf_fingerprint.keys import commitment, new_secret
from hf_fingerprint.vault.base_validation import check_base
from hf_fingerprint.vault.database import Database
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Base, CopyRecord, normalize_recipient, recipient_spellings
from hf_fingerprint.vault.rows import (
    VaultRows,
    check_readable,
    is_content_hash,
    read_rows,
    read_usable_bases,
    read_usable_copies,
)
from hf_fingerprint.vault.schema import COPY_COLUMNS, base_to_row, check_trigger_set, seal_trigger_set
from hf_fingerprint.vault.sealing import seal
from hf_fingerprint.vault.secure_delete import clear_journal, wipe_training_keys
from hf_fingerprint.vault.transactions import transaction
from hf_fingerprint.vault.unsealing import SAME_PUBLIC_KEY


class RecordStore(Database):
    """An existing vault's rows, read and written."""

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._warned: set[Fault] = set()
        self.warn(self.meta_faults)

    def warn(self, faults: Iterable[Fault]) -> None:
        """Names rows that can't be used, each once, and goes on without them."""
        for fault in faults:
            if fault not in self._warned:
                self._warned.add(fault)
                warnings.warn(FingerprintWarning(f"{RowError(fault)} It is left out."), stacklevel=3)

    def rows(self) -> VaultRows:
        """All bases and records of copies that can be used, and the rows that can't, without a warning."""
        with self.connect() as connection:
            return read_rows(connection)

    def bases(self) -> list[Base]:
        """All registered bases, in the order of registration.

        Those whose record was changed since, or holds what this package would not record, are left out with a warning.
        """
        with self.connect() as connection:
            bases, faults = read_usable_bases(connection)
        self.warn(faults)
        return bases

    def base(self, base_id: str) -> Base:
        """The base of this id.

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
        raise VaultError(f"{self.folder} has no base {base_id}: see `hf-fingerprint recipients` for those it has.")

    def base_with_hash(self, content_hash: str) -> Base | None:
        """The base with this content, if it is registered: the record for new copies, which no other replaces.

        Raises:
            [`RowError`]: if a record of this content, or one whose content can't be told, can't be used.
        """
        with self.connect() as connection:
            bases, faults = read_usable_bases(connection)
            check_readable(connection, faults, content_hash)
        self.warn(faults)
        return next((base for base in current_bases(bases) if base.content_hash == content_hash), None)

    def add_base(self, base: Base) -> Base:
        """Registers a base, or returns the one that another process registered with the same content first.

        A record that replaces another is added beside it, unless that one is replaced already.

        Raises:
            [`VaultError`]: if it holds what could not be read again.
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
            raise VaultError(
                f"{self.folder}: base {base.base_id} clashes with another one's digits: use another vault."
            )
        return stored

    def trigger_set(self, base: Base) -> bytes | None:
        """What a base's copies are asked, as it was laid down; `None` if there are no questions.

        Raises:
            [`VaultError`]: if it was changed since.
        """
        with self.connect() as connection:
            statement = "SELECT base_id, content, seal FROM questions WHERE base_id = ?"
            row = connection.execute(statement, (base.base_id,)).fetchone()
        return None if row is None else check_trigger_set(base.secret, row)

    def add_trigger_set(self, base: Base, content: bytes) -> None:
        """Lays down what a base's copies are asked, once and for all.

        Raises:
            [`VaultError`]: if other questions are laid down.
        """
        with self.connect() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO questions VALUES (?, ?, ?)",
                (base.base_id, content, seal_trigger_set(base.secret, base.base_id, content)),
            )
        if self.trigger_set(base) != content:
            raise VaultError(f"Base {base.base_id} has other questions already: all its copies share one set.")

    def begin_copy(
        self,
        base: Base,
        recipient: str,
        out: Path | str,
        resumed_record: CopyRecord | None = None,
        copy_key: bytes | None = None,
    ) -> tuple[CopyRecord, bytes]:
        """Records a copy before its first byte is written.

        Args:
            base ([`Base`]): the registered base.
            recipient (`str`): whose copy it will be.
            out (`Path`): where it will be.
            resumed_record ([`CopyRecord`], *optional*): a record in state `"begun"` that was never written; it is used again,
                with a new key, since its old one is forgotten and marked nothing.
            copy_key (`bytes`, *optional*): the key of a mark that is in the weights already; a new one by default.

        Returns:
            `(record, copy_key)`: the key is stored sealed only; forget it when the copy is written.
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
                    f"UPDATE copies SET sealed = ?, created = ? WHERE copy_id = ? AND state = 'begun' AND {SAME_PUBLIC_KEY}",
                    (sealed, created, copy_id, self.public_key),
                ).rowcount
                if changed != 1:
                    raise VaultError(f"The record of copy {copy_id} changed meanwhile: run the command again.")
            else:
                values = (copy_id, base.base_id, recipient, "begun", str(out), None, None, created, sealed)
                added = connection.execute(
                    f"INSERT INTO copies ({COPY_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE {SAME_PUBLIC_KEY}",
                    (*values, self.public_key),
                ).rowcount
                if added != 1:
                    raise VaultError(
                        f"{self.folder} was given another tracing identity meanwhile: run the command again."
                    )
        return record, copy_key

    def mark_written(
        self,
        record: CopyRecord,
        copy_key: bytes,
        content_hash: str,
        out: Path | None = None,
        bound: bool = False,
        is_issued: bool = False,
    ) -> CopyRecord:
        """Records that a copy is complete on the disk, and commits to it. If it was trained, its key in the clear is
        wiped with the same transaction.

        Args:
            record ([`CopyRecord`]): the record that was begun.
            copy_key (`bytes`): the copy's key.
            content_hash (`str`): of its weights.
            out (`Path`, *optional*): where it is, if that wasn't known before.
            bound (`bool`, *optional*, defaults to `False`): whether it was made to answer its base's questions.
            is_issued (`bool`, *optional*, defaults to `False`): whether it is in its place already, and so issued.

        Returns:
            [`CopyRecord`]: the record as it is now.
        """
        new_commitment, place = commitment(copy_key, record.recipient, content_hash), str(out or record.out)
        state = "issued" if is_issued else "written"
        with self.connect() as connection:
            with transaction(connection):
                changed = connection.execute(
                    "UPDATE copies SET state = ?, content_hash = ?, commitment = ?, out = ?"
                    " WHERE copy_id = ? AND sealed = ?",
                    (state, content_hash, new_commitment, place, record.copy_id, record.sealed),
                ).rowcount
                if changed == 1 and bound:
                    connection.execute("INSERT OR IGNORE INTO bound VALUES (?)", (record.copy_id,))
                wiped = changed == 1 and wipe_training_keys(connection, "copy_id = ?", record.copy_id)
            if wiped:
                clear_journal(connection)
        if changed != 1:
            raise VaultError(
                f"The record of copy {record.copy_id} changed while it was written: run the command again."
            )
        return replace(record, state=state, content_hash=content_hash, commitment=new_commitment, out=place)

    def mark_issued(self, copy_id: str) -> None:
        """Records that a copy is in its place, where the next run would find it too."""
        with self.connect(durable=False) as connection:
            changed = connection.execute("UPDATE copies SET state = 'issued' WHERE copy_id = ?", (copy_id,)).rowcount
        if changed != 1:
            raise VaultError(
                f"The record of copy {copy_id} is gone from {self.folder}: restore a backup of the vault."
            )

    def copies(self, base_id: str | None = None, recipient: str | None = None, begun: bool = True) -> list[CopyRecord]:
        """The record of copies, of one base or recipient or of all, in the order of issue; with those that were begun
        and never written, or without; a recipient's name in any spelling. Records that can't be used are left out with
        a warning."""
        names = () if recipient is None else recipient_spellings(recipient)
        where = "base_id = coalesce(?, base_id) AND (? OR state != 'begun')"
        where += f" AND trim(recipient) IN ({', '.join('?' * len(names))})" if names else ""
        with self.connect() as connection:
            copies, faults = read_usable_copies(connection, where, (base_id, begun, *names))
        self.warn(faults)
        return copies

    def bound(self, base_id: str) -> set[str]:
        """The ids of a base's copies that were made to answer its questions."""
        statement = "SELECT copy_id FROM bound WHERE copy_id IN (SELECT copy_id FROM copies WHERE base_id = ?)"
        with self.connect() as connection:
            return {copy_id for (copy_id,) in connection.execute(statement, (base_id,))}

    def cached_content_hash(self, place: str, state: str) -> str | None:
        """The content hash of files hashed before, if their state is what it was; see [`Checkpoint.state`]."""
        with self.connect() as connection:
            row = connection.execute(
                "SELECT content_hash FROM verified WHERE place = ? AND state = ?", (place, state)
            ).fetchone()
        return row[0] if row and is_content_hash(row[0]) else None

    def cache_content_hash(self, place: str, state: str, content_hash: str) -> None:
        """Notes the content hash of files that were hashed in full, if the disk lets it."""
        with suppress(StorageError), self.connect() as connection:
            connection.execute("INSERT OR REPLACE INTO verified VALUES (?, ?, ?)", (place, state, content_hash))


def current_bases(bases: Sequence[Base]) -> list[Base]:
    """Those that new copies are made from: which no other record of the same weights replaces."""
    replaced = {base.replaces for base in bases}
    return [base for base in bases if base.base_id not in replaced]
