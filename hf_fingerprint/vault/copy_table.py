"""Records of copies that stay in the database: a vault of a million recipients never has an object for each.

A [`CopyTable`] holds the row number of each record and reads a record when it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from sqlite3 import Connection
from typing import overload

import numpy as np

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.key_cache import record_digest
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.schema import COPY_COLUMNS


CHUNK = 4096
Connect = Callable[[], AbstractContextManager[Connection]]


class CopyTable(Sequence[CopyRecord]):
    """Records of copies in the order of issue.

    Args:
        connect (callable): opens the vault's database.
        numbers (`np.ndarray` of shape `(n,)`): the row of each record.
        begun (`np.ndarray` of shape `(n,)`): whether each is of an unfinished copy.
        digests (`np.ndarray` of shape `(n, 32)`, *optional*): [`record_digest`] of each. A record that has another by
            now is refused: a name belongs to the key that was opened with it.
    """

    def __init__(self, connect: Connect, numbers: np.ndarray, begun: np.ndarray, digests: np.ndarray | None = None):
        self._connect, self._numbers, self.begun, self._digests = connect, numbers, begun, digests

    def __repr__(self) -> str:
        return f"CopyTable({len(self)} copies)"

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> CopyRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CopyRecord]: ...

    def __getitem__(self, index: int | slice) -> CopyRecord | Sequence[CopyRecord]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        (found,) = self.take(np.array([range(len(self))[index]]))
        return found

    def __iter__(self) -> Iterator[CopyRecord]:
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            yield from self._read(self._numbers[part], None if self._digests is None else self._digests[part])

    def take(self, indices: np.ndarray, digests: np.ndarray | None = None) -> "CopyTable":
        """Some of the records; with `digests`, they must not change any more."""
        if digests is None and self._digests is not None:
            digests = self._digests[indices]
        return CopyTable(self._connect, self._numbers[indices], self.begun[indices], digests)

    def _read(self, numbers: np.ndarray, digests: np.ndarray | None) -> list[CopyRecord]:
        wanted = ", ".join(map(str, numbers.tolist()))
        with self._connect() as connection:
            rows = connection.execute(f"SELECT rowid, {COPY_COLUMNS} FROM copies WHERE rowid IN ({wanted})")
            found = {number: CopyRecord(*row) for number, *row in rows}
        records = [found[number] for number in numbers.tolist() if number in found]
        own = [record_digest(record) for record in records] if digests is not None else None
        if len(records) < len(numbers) or (digests is not None and own != [each.tobytes() for each in digests]):
            raise VaultError("Records of copies were changed by another process meanwhile: run the command again.")
        return records
