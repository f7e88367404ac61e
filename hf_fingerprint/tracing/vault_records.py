"""The vault's records, opened once for all suspects that are traced against them."""

from hf_fingerprint.vault import Fault, OpenedCopies, Vault, VaultRows, open_copies


class VaultRecords:
    """A vault's bases and records of copies, read when they are first needed.

    Args:
        vault ([`Vault`]): the vault, unlocked.
    """

    def __init__(self, vault: Vault):
        self.vault = vault
        self._digest: str | None = None
        self._rows: VaultRows | None = None
        self._opened: dict[str, OpenedCopies] = {}

    @property
    def rows(self) -> VaultRows:
        """The vault's bases and records of copies, and its rows that can't be used."""
        if self._rows is None:
            self._rows = self.vault.rows()
        return self._rows

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The rows that can't be used, as far as records were opened."""
        return (*self.rows.faults, *(fault for each in self._opened.values() for fault in each.faults))

    def open(self, base_id: str) -> OpenedCopies:
        """The records of a base's copies with their keys."""
        if base_id not in self._opened:
            self._opened[base_id] = open_copies(self.vault, self.rows.copies_of(base_id))
        return self._opened[base_id]

    def refresh(self) -> str:
        """Forgets everything if any record has changed: call it between two suspects. Returns a digest of the
        records."""
        digest = self.vault.records_digest()
        if digest != self._digest:
            self._digest, self._rows, self._opened = digest, None, {}
        return digest
