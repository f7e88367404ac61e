import errno
import os
import shutil
import sqlite3
import stat
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from hf_fingerprint.errors import FingerprintWarning, StorageError, VaultError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault import backup as module
from hf_fingerprint.vault.backup import back_up
from hf_fingerprint.vault.sealing import new_identity
from tests.helpers.checkpoint_files import bytes_of, open_folder, stranger
from tests.helpers.error_checks import refused
from tests.helpers.format_1 import FORMAT_1
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, save_plain, unlocked_vault


refusal = partial(refused, error=VaultError)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    register(save_plain(root / "model"), unlocked_vault(root / "vault"), PLAIN_SETTINGS)
    return root / "vault"


@pytest.fixture
def vault(made, tmp_path) -> Vault:
    return Vault(shutil.copytree(made, tmp_path / "vault"))


@pytest.fixture
def old(tmp_path) -> Path:
    """A vault of format 1, with its last change in the log alone."""
    folder = tmp_path / "made"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "vault.db")) as connection:
        connection.executescript(f"PRAGMA journal_mode = WAL; {FORMAT_1}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("INSERT INTO meta VALUES ('public_key', ?)", (new_identity()[1],))
        connection.commit()
        return Path(shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns("*-shm")))


def rows(file: Path) -> dict[str, list[tuple]]:
    """All rows of all tables of a database that nobody changes; nothing is made next to it."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}


# Backups


def test_a_backup_restores_the_vault_its_log_included(vault, tmp_path):
    with vault.keep_open():
        record, _ = vault.begin_copy(vault.bases()[0], "alice", "/out")
        assert (vault.folder / "vault.db-wal").stat().st_size
        back_up(vault.folder, tmp_path / "backup.db")

    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(tmp_path / "backup.db", restored / "vault.db")
    shutil.copy(vault.folder / "identity.age", restored)
    again = Vault(restored)
    again.unlock(PASSPHRASE)
    assert [each.copy_id for each in again.copies()] == [record.copy_id]
    assert again.copy_key(again.copies()[0])
    with again.connect() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_backup_is_for_its_owner_alone_and_holds_no_identity(vault, tmp_path):
    mask = os.umask(0)
    try:
        back_up(vault.folder, tmp_path / "backup.db")
    finally:
        os.umask(mask)

    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"vault", "backup.db"}
    assert b"age-encryption.org/v1\n-> scrypt" not in (tmp_path / "backup.db").read_bytes()


def test_a_backup_never_overwrites_a_file(vault, tmp_path):
    for place in (tmp_path / "notes.txt", vault.folder / "vault.db"):
        place.touch()
        before = place.read_bytes()
        assert "already exists" in refusal(back_up, vault.folder, place)
        assert place.read_bytes() == before


def test_no_backup_is_made_in_a_model_folder(vault, tmp_path):
    model = save_plain(tmp_path / "model")

    assert "inside the model folder" in refusal(back_up, vault.folder, model / "backup.db")


def test_a_backup_in_no_folder_is_refused_by_name(vault, tmp_path):
    assert str(tmp_path / "none" / "backup.db") in refusal(back_up, vault.folder, tmp_path / "none" / "backup.db")


def test_no_backup_is_made_of_a_damaged_vault(vault, tmp_path):
    content = bytearray((vault.folder / "vault.db").read_bytes())
    content[4096 * 3 : 4096 * 4] = bytes(4096)
    (vault.folder / "vault.db").write_bytes(content)

    assert "is damaged" in refusal(back_up, vault.folder, tmp_path / "backup.db")
    assert {path.name for path in tmp_path.iterdir()} == {"vault"}


def test_a_backup_that_does_not_fit_leaves_nothing(vault, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "sync", full)

    assert f"The disk of {tmp_path} is full" in refusal(back_up, vault.folder, tmp_path / "backup.db")
    assert {path.name for path in tmp_path.iterdir()} == {"vault"}


# Originals of upgraded vaults


def test_the_original_of_an_upgraded_vault_is_kept_its_log_included(old):
    with pytest.warns(FingerprintWarning, match=r"vault\.db\.format-1 keeps the original"):
        vault = Vault(old)

    kept = rows(old / "vault.db.format-1")
    assert dict(kept["meta"]) == {"format": "1", "public_key": vault.public_key}
    assert [row[0] for row in kept["bases"]] == [base.base_id for base in vault.bases()]
    assert stat.S_IMODE((old / "vault.db.format-1").stat().st_mode) == 0o600
    assert {path.name for path in old.iterdir()} == {"vault.db", "vault.db.format-1"}


def test_it_is_kept_once(old):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Vault(old)
    kept = (old / "vault.db.format-1").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Vault(old)

    assert (old / "vault.db.format-1").read_bytes() == kept


@pytest.mark.filterwarnings("ignore::hf_fingerprint.errors.FingerprintWarning")
def test_an_upgrade_that_fails_leaves_the_original_in_use_and_keeps_it_once(old, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hf_fingerprint.vault.migrations.TABLES", "CREATE TABLE bases (nonsense")
        for _ in range(2):
            refusal(Vault, old)
            with closing(sqlite3.connect(old / "vault.db")) as connection:
                assert dict(connection.execute("SELECT key, value FROM meta"))["format"] == "1"

    assert Vault(old).bases()
    assert {path.name for path in old.iterdir()} == {"vault.db", "vault.db.format-1"}


@pytest.mark.filterwarnings("ignore::hf_fingerprint.errors.FingerprintWarning")
def test_another_file_of_that_name_is_kept(old):
    (old / "vault.db.format-1").write_bytes(b"of another time")

    Vault(old)

    assert (old / "vault.db.format-1").read_bytes() == b"of another time"
    assert dict(rows(old / "vault.db-2.format-1")["meta"])["format"] == "1"


def test_without_space_for_the_original_nothing_is_upgraded(old, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync", full)
        assert f"The disk of {old} is full" in refusal(Vault, old)
    with closing(sqlite3.connect(old / "vault.db")) as connection:
        assert dict(connection.execute("SELECT key, value FROM meta"))["format"] == "1"


def test_a_read_only_vault_of_an_earlier_format_says_what_to_do(old):
    with closing(sqlite3.connect(old / "vault.db")) as connection:
        connection.execute("SELECT * FROM meta").fetchall()  # and so the log is folded in
    with open_folder() as top:
        folder = Path(shutil.copytree(old, top / "old"))
        (folder / "vault.db").chmod(0o444)
        folder.chmod(0o555)
        before = bytes_of(folder)
        with stranger():
            said = refused(Vault, folder, error=StorageError)
        assert "vault format 1" in said and "copy the folder" in said
        assert bytes_of(folder) == before
        folder.chmod(0o755)
