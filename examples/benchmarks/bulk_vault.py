"""Records many copies at once, which an owner records one by one as they are issued."""

import secrets
from collections.abc import Iterator

from hf_fingerprint.keys import commitment, new_secret
from hf_fingerprint.vault import Base, Vault
from hf_fingerprint.vault.schema import COPY_COLUMNS
from hf_fingerprint.vault.sealing import seal
from hf_fingerprint.vault.transactions import transaction


CONTENT, CREATED = "11" * 32, "2026-11-01T00:00:00+00:00"


def add_copies(vault: Vault, base: Base, count: int) -> None:
    """Adds records of issued copies with keys and seals of their own, but without files."""
    with vault.connect() as connection, transaction(connection):
        statement = f"INSERT INTO copies ({COPY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        connection.executemany(statement, _rows(base, count, vault.public_key))


def _rows(base: Base, count: int, public_key: str) -> Iterator[tuple[str | bytes, ...]]:
    for number in range(count):
        copy_key, copy_id, recipient = new_secret(), secrets.token_hex(8), f"innocent {number}"
        sealed = seal(copy_key, copy_id, base.base_id, recipient, public_key)
        opened = commitment(copy_key, recipient, CONTENT)
        yield copy_id, base.base_id, recipient, "issued", f"/nowhere/{number}", CONTENT, opened, CREATED, sealed
