"""Somebody else's vault is read without being touched, whatever state it is in."""

import os
import shutil
import signal
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hf_fingerprint.errors import FingerprintWarning, VaultError
from hf_fingerprint.keys import commitment
from hf_fingerprint.vault import (
    MergeReport,
    Vault,
    merge,
    open_pack,
    packing,
    read_vault_folder,
    take_snapshot,
    untrusted_database,
)
from hf_fingerprint.vault.schema import base_from_row, base_to_row
from hf_fingerprint.vault.sealing import AgeIdentity, new_identity, seal
from tests.helpers.error_checks import refused
from tests.helpers.format_1 import FORMAT_1
from tests.helpers.small_models import bytes_of, names_in


WHOLE, BASE = "f0" * 32, "53e1e7b2c8d4"
TO_FORMAT_2 = (
    "CREATE TABLE training (copy_id TEXT PRIMARY KEY REFERENCES copies, copy_key BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE publications (copy_id TEXT PRIMARY KEY REFERENCES copies, repo TEXT NOT NULL, state TEXT NOT NULL,"
    " files TEXT NOT NULL, revision TEXT, account TEXT, created TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE issuers (public_key TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;"
    "UPDATE meta SET value = '2' WHERE key = 'format';"
)
refusal = partial(refused, error=VaultError)


@pytest.fixture(scope="module")
def identity() -> tuple[AgeIdentity, str]:
    secret, public_key = new_identity()
    return AgeIdentity(secret), public_key


def made(folder: Path, public_key: str, more: str = "") -> Path:
    """A vault as format 1 had it, with one copy."""
    folder.mkdir()
    connection = sqlite3.connect(folder / "vault.db")
    connection.executescript(f"PRAGMA journal_mode = WAL; {FORMAT_1} {more}")
    (row,) = connection.execute("SELECT * FROM bases").fetchall()
    base = base_from_row(row)
    carriers = tuple(replace(carrier, amplitude=abs(carrier.amplitude)) for carrier in base.carriers)
    columns = base_to_row(
        replace(base, carriers=carriers)
    )  # a negative amplitude, as the frozen one has, is not taken
    connection.execute("UPDATE bases SET document = ?, amplitudes = ?, seal = ?", (*columns[2:4], columns[5]))
    connection.execute("INSERT INTO meta VALUES ('public_key', ?)", (public_key,))
    key, copy_id = bytes(range(32)), "a" * 16
    values = (copy_id, BASE, "zoe", "issued", "/copies/zoe", WHOLE, commitment(key, "zoe", WHOLE))
    values = (*values, "2026-08-01T12:00:00+00:00", seal(key, copy_id, BASE, "zoe", public_key))
    connection.execute("INSERT INTO copies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()
    return folder


def upgraded(folder: Path) -> Vault:
    with pytest.warns(FingerprintWarning, match="is upgraded"):
        return Vault(folder)


@pytest.fixture
def theirs(tmp_path, identity) -> Path:
    folder = made(tmp_path / "theirs", identity[1])
    upgraded(folder)
    (folder / "vault.db.format-1").unlink()
    return folder


@pytest.fixture
def mine(tmp_path, identity) -> Vault:
    return Vault.create(tmp_path / "mine", public_key=identity[1])


@pytest.mark.parametrize("more", ["", TO_FORMAT_2], ids=["format 1", "format 2"])
def test_an_older_vault_is_merged_and_stays_of_its_format(tmp_path, mine, identity, more):
    old = made(tmp_path / "old", identity[1], more)
    before = bytes_of(old)

    report = merge(mine, read_vault_folder(old), identity[0])

    assert report == MergeReport(bases=1, copies=1)
    assert bytes_of(old) == before
    assert merge(mine, read_vault_folder(old), identity[0]) == MergeReport()
    assert take_snapshot(upgraded(old)) == take_snapshot(mine)


def test_a_vault_in_use_is_read_with_what_its_log_holds(theirs, mine):
    writer = sqlite3.connect(theirs / "vault.db", isolation_level=None)
    writer.execute("UPDATE copies SET out = '/elsewhere'")
    before = bytes_of(theirs)
    assert before["vault.db-wal"]

    merge(mine, read_vault_folder(theirs))

    assert mine.copies()[0].out == "/elsewhere"
    assert {name: content for name, content in bytes_of(theirs).items() if name != "vault.db-shm"} == {
        name: content for name, content in before.items() if name != "vault.db-shm"
    }
    writer.close()


def test_a_vault_whose_process_was_killed_is_read_with_what_its_log_holds(theirs, mine):
    child = os.fork()
    if child == 0:
        writer = sqlite3.connect(theirs / "vault.db", isolation_level=None)
        writer.execute("UPDATE copies SET out = '/elsewhere'")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (theirs / "vault.db-shm").unlink()
    before = bytes_of(theirs)

    merge(mine, read_vault_folder(theirs))

    assert mine.copies()[0].out == "/elsewhere"
    after = bytes_of(theirs)
    assert {name: after[name] for name in before} == before
    Vault(theirs)


def test_nothing_appears_next_to_a_vault_at_rest(theirs):
    before = names_in(theirs)

    read_vault_folder(theirs)

    assert names_in(theirs) == before == ["vault.db"]


def test_an_invalid_log_is_ignored_as_sqlite_does(theirs, mine):
    (theirs / "vault.db-wal").write_bytes(bytes(range(256)) * 100)

    assert merge(mine, read_vault_folder(theirs)).copies == 1


def test_what_is_no_vaults_folder_is_refused(tmp_path, theirs):
    (tmp_path / "file").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert str(folder) in refusal(read_vault_folder, folder)
    (theirs / "vault.db").unlink()
    os.mkfifo(theirs / "vault.db")
    refusal(read_vault_folder, theirs)


def test_a_database_that_takes_too_long_is_refused(theirs, monkeypatch):
    monkeypatch.setattr(untrusted_database, "MAX_STEPS", 100)
    monkeypatch.setattr(untrusted_database, "_STEPS_AT_ONCE", 10)

    assert "takes too long" in refusal(read_vault_folder, theirs)


def test_a_vault_beyond_the_limit_is_refused_and_none_is_packed(theirs, identity, monkeypatch):
    content = packing.pack_vault(Vault(theirs))
    monkeypatch.setattr(untrusted_database, "MAX_PACK", 5000)
    monkeypatch.setattr(packing, "MAX_PACK", 5000)

    assert "MB" in refusal(read_vault_folder, theirs)
    assert "MB" in refusal(open_pack, content, identity[0], "org/keys")
    assert "MB" in refusal(packing.pack_vault, Vault(theirs))
    with sqlite3.connect(theirs / "vault.db") as writer:
        writer.execute("UPDATE copies SET out = '/elsewhere'")
        writer.commit()
        assert "MB" in refusal(read_vault_folder, theirs)
    writer.close()


def test_tables_of_a_later_version_in_a_folder_are_ignored(theirs, mine):
    with sqlite3.connect(theirs / "vault.db") as connection:
        connection.execute("CREATE TABLE later (x)")
    connection.close()

    assert merge(mine, read_vault_folder(theirs)).copies == 1


def test_a_folder_reads_as_the_vault_itself_does(theirs, tmp_path):
    assert read_vault_folder(theirs) == take_snapshot(Vault(shutil.copytree(theirs, tmp_path / "again")))
