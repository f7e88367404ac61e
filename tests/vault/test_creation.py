import os
import shutil
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.private_files import exclusive_lock
from hf_fingerprint.vault.sealing import encrypt_identity, new_identity
from tests.helpers.checkpoint_files import bytes_of
from tests.helpers.error_checks import refused
from tests.helpers.two_processes import run_two_and_get_errors


PASSPHRASE = "correct horse battery staple"
refusal = partial(refused, error=VaultError)


@pytest.fixture
def begun(tmp_path) -> Path:
    """A folder that holds an identity and no database, as a run leaves that is cut off between the two."""
    folder = Vault.create(tmp_path / "vault", PASSPHRASE).folder
    (folder / "vault.db").unlink()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_interrupted_vault_is_completed_with_its_identity(begun):
    identity = (begun / "identity.age").read_bytes()

    vault = Vault.create(begun, PASSPHRASE)

    vault.unlock(PASSPHRASE)
    assert (begun / "identity.age").read_bytes() == identity
    assert names(begun) == {"vault.db", "identity.age"}


def test_another_passphrase_does_not_complete_it_and_the_error_names_the_identity(begun):
    before = bytes_of(begun)

    said = refusal(Vault.create, begun, "another passphrase", error=PassphraseError)

    assert f"{begun / 'identity.age'} already exists" in said
    assert "another passphrase" not in said
    assert bytes_of(begun) == before


def test_a_public_key_does_not_complete_a_vault_that_has_an_identity(begun):
    before = bytes_of(begun)

    assert "give its passphrase" in refusal(Vault.create, begun, "", new_identity()[1])
    assert bytes_of(begun) == before


def test_leftovers_of_a_killed_run_are_deleted(begun):
    for name in (
        ".vault.db.0123abcd",
        ".vault.db.0123abcd-journal",
        ".vault.db.0123abcd-wal",
        ".identity.age.89abcdef",
    ):
        (begun / name).write_bytes(b"half")

    Vault.create(begun, PASSPHRASE)

    assert names(begun) == {"vault.db", "identity.age"}


def test_an_empty_identity_of_an_earlier_version_is_replaced(tmp_path):
    (tmp_path / "identity.age").write_bytes(b"")

    Vault.create(tmp_path, PASSPHRASE).unlock(PASSPHRASE)


def test_other_files_in_the_folder_are_kept(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".vault.db.notours").write_text("mine")
    (tmp_path / ".vault.db.0123abcd").mkdir()

    Vault.create(tmp_path, PASSPHRASE)

    assert names(tmp_path) == {"lost+found", ".vault.db.notours", ".vault.db.0123abcd", "vault.db", "identity.age"}


@pytest.mark.parametrize("log", ["vault.db-wal", "vault.db-journal"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_log_of_a_lost_database_is_never_read_into_a_new_one(tmp_path, log, empty):
    (tmp_path / log).write_bytes(b"somebody's last changes")
    before = bytes_of(tmp_path)

    if empty:
        said = refusal(Vault.create_empty, tmp_path, new_identity()[1])
    else:
        said = refusal(Vault.create, tmp_path, PASSPHRASE)
    assert log in said
    assert bytes_of(tmp_path) == before


def test_a_complete_vault_is_never_changed(begun):
    vault = Vault.create(begun, PASSPHRASE)
    before = bytes_of(begun)

    for action in (
        partial(Vault.create, begun, PASSPHRASE),
        partial(Vault.create, begun, "", new_identity()[1]),
        partial(Vault.create_empty, begun, vault.public_key),
    ):
        assert "already holds a vault" in refusal(action)
    assert bytes_of(begun) == before


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "vault.db").symlink_to(tmp_path / "elsewhere.db")

    assert "already holds a vault" in refusal(Vault.create, tmp_path / "folder", PASSPHRASE)
    assert not (tmp_path / "elsewhere.db").exists()


def test_an_empty_vault_for_a_pull_can_be_created_next_to_its_identity(begun, tmp_path):
    public_key = Vault.create(tmp_path / "another", PASSPHRASE).public_key

    assert Vault.create_empty(begun, public_key).public_key == public_key


def test_a_second_process_is_refused_meanwhile(tmp_path):
    with exclusive_lock(tmp_path):
        assert "Another process" in refusal(Vault.create, tmp_path, PASSPHRASE)
    assert names(tmp_path) == set()


def test_a_disk_without_locks_or_links_takes_a_vault(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    monkeypatch.setattr("os.link", unsupported)

    Vault.create(tmp_path, PASSPHRASE).unlock(PASSPHRASE)
    assert names(tmp_path) == {"vault.db", "identity.age"}


def test_two_processes_make_one_vault(tmp_path):
    script = """
import sys
from hf_fingerprint.vault import Vault, passphrase_age
from hf_fingerprint.errors import VaultError
passphrase_age.LOG_WORK = 2
print("ready", flush=True)
sys.stdin.readline()
try:
    Vault.create(sys.argv[1], "correct horse battery staple")
except VaultError as error:
    print(error, file=sys.stderr)
"""
    said = run_two_and_get_errors(script, tmp_path / "vault")

    assert sum(not each for each in said) == 1, said
    Vault(tmp_path / "vault").unlock(PASSPHRASE)
    assert names(tmp_path / "vault") == {"vault.db", "identity.age"}


def test_the_database_is_complete_before_it_is_renamed(tmp_path, monkeypatch):
    seen = []

    def copied(source, target):
        shutil.copy(source, tmp_path / "copy.db")
        seen.append([path.name for path in source.parent.glob(".vault.db.*")])
        source.rename(target)

    monkeypatch.setattr("hf_fingerprint.vault.creation.rename_into_place", copied)
    Vault.create(tmp_path / "vault", PASSPHRASE)

    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert len(seen[0]) == 1, "no log next to it"


def test_a_folder_without_write_access_is_refused_by_name(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "mkdir", denied)

    said = refusal(Vault.create, tmp_path / "vault", PASSPHRASE)
    assert str(tmp_path / "vault") in said and "read-only" in said


def test_another_kind_of_age_file_is_not_used_as_the_identity(tmp_path):
    (tmp_path / "identity.age").write_bytes(encrypt_identity("AGE-SECRET-KEY-1NOTREALLY", PASSPHRASE))
    before = bytes_of(tmp_path)

    assert "holds no tracing identity" in refusal(Vault.create, tmp_path, PASSPHRASE)
    assert bytes_of(tmp_path) == before
