"""Records that stay in the database are those that were read, or none."""

import numpy as np
import pytest

from hf_fingerprint import FingerprintConfig, Issuer
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault import copy_table, open_copies
from hf_fingerprint.vault.key_table import KeyTable
from tests.helpers.small_models import save_plain, unlocked_vault


@pytest.fixture
def vault(tmp_path):
    """An unlocked vault with seven finished copies and an unfinished one."""
    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(save_plain(tmp_path / "model"), vault, FingerprintConfig(amplitude=0.05)) as issuer:
        for number in range(7):
            record, key = vault.begin_copy(issuer.base, f"recipient {number}", tmp_path / str(number))
            vault.mark_written(record, key, "0" * 64)
        vault.begin_copy(issuer.base, "unfinished", tmp_path / "unfinished")
    return vault


def change(vault, statement, *values):
    with vault.connect() as connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_a_table_is_the_sequence_of_its_records(vault, monkeypatch, chunk):
    monkeypatch.setattr(copy_table, "CHUNK", chunk)
    expected = vault.copies()
    table = vault.rows().copies

    assert list(table) == expected and len(table) == 8
    assert [table[number] for number in range(-8, 8)] == expected * 2
    assert list(table[2:7:2]) == expected[2:7:2]
    assert list(table.take(np.array([5, 1, 6]))) == [expected[5], expected[1], expected[6]]
    assert list(table[::-1]) == expected[::-1]
    assert table.begun.tolist() == [False] * 7 + [True]
    with pytest.raises(IndexError):
        table[8]
    (base,) = vault.bases()
    assert list(vault.rows().copies_of(base.base_id)) == expected
    assert len(vault.rows().copies_of("another")) == 0


def test_the_keys_are_those_of_the_records(vault):
    table = vault.rows().copies
    opened = open_copies(vault, table)

    assert opened.keys == vault.copy_keys(vault.copies())
    assert opened.keys[2:4] == list(opened.keys)[2:4]
    assert opened.keys.take(np.array([6, 0])) == [opened.keys[6], opened.keys[0]]
    assert len(KeyTable(b"")) == 0 and KeyTable(b"") == []
    assert opened.keys[0].hex() not in repr(opened) + repr(opened.keys)


@pytest.mark.parametrize(
    ("column", "value"),
    [("recipient", "mallory"), ("commitment", "1" * 64), ("sealed", b"age"), ("base_id", "0" * 12)],
)
def test_a_name_belongs_to_the_key_that_was_opened_with_it(vault, column, value):
    """A row that changes between its opening and the verdict would give an accusation another name."""
    opened = open_copies(vault, vault.rows().copies)
    with vault.connect() as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(f"UPDATE copies SET {column} = ? WHERE recipient = 'recipient 3'", (value,))

    assert opened.copies[2].recipient == "recipient 2"
    with pytest.raises(VaultError, match="changed by another process"):
        opened.copies[3]


def test_a_record_that_is_gone_is_refused(vault):
    table = vault.rows().copies
    change(vault, "DELETE FROM copies WHERE recipient = 'recipient 3'")

    assert table[4].recipient == "recipient 4"
    with pytest.raises(VaultError, match="changed by another process"):
        list(table)
