"""The vault: one SQLite file with the model secrets and the record of who got what, beside its locked identity.

    vault = Vault.create("vault", passphrase)     # on the machine that will trace
    vault = Vault("vault")                        # to issue: no passphrase
    vault.unlock(passphrase)                      # to trace

Issuing needs `vault.db` only; `identity.age` may live elsewhere. Several processes may issue at once.
"""

from collections.abc import Sequence
from pathlib import Path

from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.vault.creation import check_no_vault, make_vault, unfinished_public_key
from hf_fingerprint.vault.database import IDENTITY, identity_name
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.record_store import RecordStore
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt_identity, new_identity, open_identity
from hf_fingerprint.vault.unsealing import open_copies, opens_most_records, unseal_copy_key


class Vault(RecordStore):
    """An existing vault, open for issuing; [`unlock`] it to trace.

    Args:
        folder (`str` or `Path`): the vault's folder.

    Raises:
        [`VaultError`]: if there is no vault, it is damaged, or its format is newer than this version reads.
    """

    def __init__(self, folder: str | Path):
        super().__init__(folder)
        self._opener: AgeIdentity | None = None

    @classmethod
    def create(cls, folder: str | Path, passphrase: str = "", public_key: str | None = None) -> "Vault":
        """Makes a vault with a new tracing identity, or one sealed to an identity that is kept elsewhere.

        Args:
            folder (`str` or `Path`): a folder that holds no vault yet. If an identity lies there, since an earlier
                run was cut off, the vault is completed with that one.
            passphrase (`str`): guards the new tracing identity; it can't be recovered.
            public_key (`str`, *optional*): the public key (`age1...`) of an identity kept elsewhere; this vault then
                marks copies, in a build or a training, and traces only where that identity is.
        """
        folder, sealed = Path(folder), None
        check_no_vault(folder)
        if public_key is not None:
            if (folder / IDENTITY).exists():
                raise VaultError(
                    f"{folder / IDENTITY} is there already: give its passphrase instead of a public key, or choose "
                    f"another folder; it is left as it is."
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
        """Makes an empty vault where there is no database, though its identity may be there already: to fill it with
        what was pushed.

        Args:
            folder (`str` or `Path`): a folder without a database.
            public_key (`str`): the public key (`age1...`) of the vault that was pushed.
        """
        make_vault(Path(folder), public_key, None)
        return cls(folder)

    def unlock(self, passphrase: str, identity: Path | None = None) -> None:
        """Opens the tracing identity, which reading copy keys needs.

        Args:
            passphrase (`str`): the passphrase it was made with.
            identity (`Path`, *optional*): the identity file, if it isn't in the vault's folder.
        """
        age_identity = open_identity(identity or self.identity, passphrase)
        if age_identity.public_key != self.public_key:
            self.check_identity_unchanged()
            if not opens_most_records(self, age_identity):
                raise PassphraseError(
                    f"The identity opened is not the one of {self.folder}: give the one it was made with."
                )
            self.warn([Fault("meta", "public key", "is not that of the identity that opens its records")])
        self._opener = age_identity

    def check_identity_unchanged(self) -> None:
        """Refuses to go on once the vault has another tracing identity than when it was opened.

        Raises:
            [`PassphraseError`]: if a rotation came between.
        """
        with self.connect() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'public_key'").fetchone()
        if (str(row[0]) if row else "") != self.public_key:
            raise PassphraseError(
                f"{self.folder} was given another tracing identity meanwhile: run the command again, with that one."
            )

    @property
    def identity(self) -> Path:
        """Where this vault's tracing identity lies, if it lies in its folder: beside the old one's file when a
        rotation was cut off before it put the new one into its place."""
        renewed = self.folder / identity_name("new", self.public_key)
        return renewed if renewed.is_file() else self.folder / IDENTITY

    @property
    def unlocked(self) -> bool:
        """Whether copy keys can be read."""
        return self._opener is not None

    def copy_keys(self, records: Sequence[CopyRecord]) -> list[bytes]:
        """The copy keys of records of one base, in their order; the vault must be unlocked.

        Raises:
            [`RowError`]: with the first that doesn't open; [`open_copies`] goes on without it.
        """
        opened = open_copies(self, records)
        for fault in opened.faults:
            raise RowError(fault)
        return opened.keys

    def age_identity(self) -> AgeIdentity:
        """The tracing identity, which must be open."""
        if self._opener is None:
            raise PassphraseError(
                f"{self.folder} is locked: reading copy keys needs the tracing identity's passphrase."
            )
        return self._opener

    def copy_key(self, record: CopyRecord) -> bytes:
        """The copy key of a record; the vault must be unlocked.

        Raises:
            [`VaultError`]: if the record was tampered with.
        """
        return unseal_copy_key(record, self.age_identity())
