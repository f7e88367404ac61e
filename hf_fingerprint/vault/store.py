"""The vault: an SQLite file with the model secrets and the records of copies, and the encrypted tracing identity.

    vault = Vault.create("vault", passphrase)     # on the machine that will trace
    vault = Vault("vault")                        # to issue: no passphrase
    with Vault("vault") as vault:                 # to trace: locked again at the end
        vault.unlock(passphrase)

Issuing needs `vault.db` only; `identity.age` may be kept elsewhere. Several processes may issue at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.tables import one_line_repr
from hf_fingerprint.vault.creation import check_no_vault, make_vault, unfinished_public_key
from hf_fingerprint.vault.database import IDENTITY, identity_name
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.record_store import RecordStore
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.schema import FORMAT
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt_identity, new_identity, open_identity
from hf_fingerprint.vault.unsealing import open_copies, opens_most_records, unseal_copy_key


class Vault(RecordStore):
    """An existing vault, open for issuing; [`unlock`] it to trace.

    The end of a `with` block locks it. No connection to the database stays open between calls.

    Args:
        folder (`str` or `Path`): the vault's folder.

    Raises:
        [`VaultError`]: if there is no vault, it is damaged, or its format is newer than this version reads.
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._age_identity: AgeIdentity | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock()

    def __repr__(self) -> str:
        return one_line_repr(self, folder=str(self.folder), format=FORMAT, unlocked=self.unlocked)

    @classmethod
    def create(cls, folder: str | Path, passphrase: str = "", public_key: str | None = None) -> "Vault":
        """Creates a vault with a new tracing identity, or with one that is kept elsewhere.

        Args:
            folder (`str` or `Path`): a folder without a vault. If an interrupted run left an identity there, the new
                vault uses it.
            passphrase (`str`): the passphrase of the tracing identity; it can't be recovered.
            public_key (`str`, *optional*): the public key (`age1...`) of an identity that is kept elsewhere. The vault
                then marks copies, and traces only where that identity is.
        """
        folder, sealed = Path(folder), None
        check_no_vault(folder)
        if public_key is not None:
            if (folder / IDENTITY).exists():
                raise VaultError(
                    f"{folder / IDENTITY} already exists: give its passphrase instead of a public key, or choose "
                    f"another folder; nothing was changed."
                )
        else:
            public_key = unfinished_public_key(folder, passphrase)
            if public_key is None:
                identity, public_key = new_identity()
                sealed = encrypt_identity(identity, passphrase)
        make_vault(folder, public_key, sealed)
        return cls(folder)

    @classmethod
    def create_empty(cls, folder: str | Path, public_key: str) -> "Vault":
        """Creates an empty vault, to merge a pushed vault into.

        Args:
            folder (`str` or `Path`): a folder without a database; it may hold the identity already.
            public_key (`str`): the public key (`age1...`) of the pushed vault.
        """
        make_vault(Path(folder), public_key, None)
        return cls(folder)

    def unlock(self, passphrase: str, identity: Path | None = None) -> None:
        """Opens the tracing identity, so that copy keys can be read.

        Args:
            passphrase (`str`): the passphrase of the identity.
            identity (`Path`, *optional*): the identity file, if it isn't in the vault's folder.

        Raises:
            [`PassphraseError`]: if the passphrase is wrong, or the identity is not this vault's.
        """
        self.unlock_with(open_identity(identity or self.identity, passphrase))

    def unlock_with(self, age_identity: AgeIdentity) -> None:
        """[`unlock`] with an identity that is open already."""
        if age_identity.public_key != self.public_key:
            self.check_identity_unchanged()
            if not opens_most_records(self, age_identity):
                raise PassphraseError(
                    f"The tracing identity is not that of {self.folder}: give the file that `vault init` made with it."
                )
            self.warn([Fault("meta", "public key", "is not that of the identity that opens its records")])
        self._age_identity = age_identity

    def lock(self) -> None:
        """Drops the tracing identity, so that copy keys can't be read until the next [`unlock`]."""
        self._age_identity = None

    def check_identity_unchanged(self) -> None:
        """Raises a [`PassphraseError`] if the vault was rotated since it was opened."""
        with self.connect() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'public_key'").fetchone()
        if (str(row[0]) if row else "") != self.public_key:
            raise PassphraseError(
                f"{self.folder} has a new tracing identity since you opened it: run the command again with that one."
            )

    @property
    def identity(self) -> Path:
        """The path of the tracing identity, unless it is kept elsewhere. After an interrupted rotation, this is the
        new identity's file."""
        renewed = self.folder / identity_name("new", self.public_key)
        return renewed if renewed.is_file() else self.folder / IDENTITY

    @property
    def unlocked(self) -> bool:
        """Whether copy keys can be read."""
        return self._age_identity is not None

    def copy_keys(self, records: Sequence[CopyRecord]) -> list[bytes]:
        """The copy keys of records of one base, in order; the vault must be unlocked.

        Raises:
            [`RowError`]: for the first record that doesn't open; [`open_copies`] skips such records.
        """
        opened = open_copies(self, records)
        for fault in opened.faults:
            raise RowError(fault)
        return list(opened.keys)

    def age_identity(self) -> AgeIdentity:
        """The open tracing identity; the vault must be unlocked."""
        if self._age_identity is None:
            raise PassphraseError(
                f"{self.folder} is locked: unlock it with the passphrase of the tracing identity to read copy keys."
            )
        return self._age_identity

    def copy_key(self, record: CopyRecord) -> bytes:
        """The copy key of a record; the vault must be unlocked.

        Raises:
            [`VaultError`]: if the record was tampered with.
        """
        return unseal_copy_key(record, self.age_identity())
