"""What of a vault can't be used: rows that were tampered with, or that the disk lost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A row of the vault that can't be used.

    Attributes:
        table (`str`): the table.
        key (`str`): the row's key, printable and short.
        what (`str`): a clause, such as "does not open its commitment".
    """

    table: str
    key: str
    what: str

    def describe(self) -> str:
        """In a clause that names the row."""
        return f"{self.table} {self.key} {self.what}"
