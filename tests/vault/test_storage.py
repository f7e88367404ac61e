import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from hf_fingerprint import Vault, issue, trace
from hf_fingerprint.errors import StorageError, VaultError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import begin_training, rotate
from hf_fingerprint.vault import storage as module
from hf_fingerprint.vault.issuers import add_issuer
from hf_fingerprint.vault.sealing import change_passphrase, new_identity
from hf_fingerprint.vault.transactions import transaction
from tests.helpers.checkpoint_files import bytes_of, open_folder, stranger
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, save_plain, unlocked_vault


RECIPIENTS = 70  # enough for a trace to want to keep what it unsealed
refusal = partial(refused, error=StorageError)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A vault with a base and its copies, and a leak."""
    root = tmp_path_factory.mktemp("made")
    vault = unlocked_vault(root / "vault")
    base = register(save_plain(root / "model"), vault, PLAIN_SETTINGS)
    issue(str(root / "model"), "alice", vault, root / "leak")
    for number in range(RECIPIENTS):
        record, key = vault.begin_copy(base, f"recipient {number}", f"/copies/{number}")
        vault.mark_written(record, key, f"{number:064x}", is_issued=True)
    return root


@pytest.fixture
def closed(made) -> Iterator[Path]:
    """A vault that may be read and not written: for a user for whom modes mean something, and for root."""
    with open_folder() as top:
        folder = Path(shutil.copytree(made / "vault", top / "vault"))
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
        for name in ("leak", "model"):
            shutil.copytree(made / name, top / name)
            for path in [top / name, *(top / name).iterdir()]:
                path.chmod(0o755)
        yield folder
        folder.chmod(0o755)


# A read-only vault


def test_a_read_only_vault_lists_and_traces_and_nothing_is_made_in_it(closed):
    before = bytes_of(closed)
    with stranger():
        vault = Vault(closed)
        vault.unlock(PASSPHRASE)
        assert len(vault.copies()) == RECIPIENTS + 1
        result = trace(closed.parent / "leak", vault, base=closed.parent / "model")
    assert [score.recipient for score in result.accused] == ["alice"]
    assert bytes_of(closed) == before


@pytest.mark.parametrize("what", ["folder", "database"])
def test_it_does_so_where_the_folder_or_the_database_alone_is_read_only(closed, what):
    closed.chmod(0o777 if what == "database" else 0o555)
    (closed / "vault.db").chmod(0o444 if what == "database" else 0o666)
    with stranger():
        assert len(Vault(closed).copies()) == RECIPIENTS + 1
        assert "is read-only" in refusal(add_issuer, Vault(closed), new_identity()[1], "ci")
    assert {path.name for path in closed.iterdir()} == {"vault.db", "identity.age", "locks"}


def test_what_would_write_to_it_says_that_it_is_read_only(closed):
    before = bytes_of(closed)
    with stranger():
        vault = Vault(closed)
        vault.unlock(PASSPHRASE)
        base = vault.bases()[0]
        for action in (
            partial(vault.begin_copy, base, "zoe", "/out"),
            partial(begin_training, vault, base, "emil"),
            partial(add_issuer, vault, new_identity()[1], "ci"),
            partial(rotate, vault, "another passphrase"),
            partial(change_passphrase, closed / "identity.age", PASSPHRASE, "another passphrase"),
            partial(issue, closed.parent / "model", "zoe", vault, closed.parent / "out"),
            partial(Vault.create, closed / "within", PASSPHRASE),
        ):
            said = refused(action)
            assert "read-only" in said and "backup" not in said
    assert bytes_of(closed) == before


def test_a_log_that_is_not_checkpointed_is_read_too_or_refused(closed):
    """Where somebody else is writing, the log's index is there and serves; without it, old content is not shown."""
    closed.chmod(0o755)
    (closed / "vault.db").chmod(0o644)
    with closing(sqlite3.connect(closed / "vault.db")) as writer:
        writer.execute("INSERT INTO issuers VALUES ('a', 'b')")
        writer.commit()
        copied = shutil.copytree(closed, closed.parent / "copied", ignore=shutil.ignore_patterns("*-shm"))
        for folder in (closed, copied):
            for path in folder.iterdir():
                path.chmod(0o444)
            folder.chmod(0o555)
        with stranger():
            with Vault(closed).connect() as connection:
                assert connection.execute("SELECT name FROM issuers").fetchall() == [("b",)]
            said = refusal(Vault, copied)
        assert "read-only" in said and "including vault.db-wal" in said
    copied.chmod(0o755)


def test_a_read_only_vault_that_changes_under_a_reader_is_read_again(closed):
    with stranger():
        vault = Vault(closed)
        with pytest.raises(StorageError, match="changed while it was read"), vault.connect() as connection:
            connection.execute("SELECT * FROM meta").fetchall()
            os.seteuid(0) if not os.getuid() else closed.chmod(0o755)
            (closed / "vault.db-wal").write_bytes(b"a log begins")


def test_a_long_look_at_a_read_only_vault_is_not_spoilt_by_others_changes(closed):
    with stranger():
        vault = Vault(closed)
        with vault.keep_open():
            os.seteuid(0) if not os.getuid() else (closed / "vault.db").chmod(0o644)
            os.utime(closed / "vault.db")
            assert len(vault.copies()) == RECIPIENTS + 1


# What SQLite says, and what that means


def failing(name: str, text: str = "whatever") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode, error.sqlite_errorname = getattr(sqlite3, name), name
    return error


@pytest.fixture
def database(tmp_path) -> Path:
    (tmp_path / "vault.db").write_bytes(b"")
    return tmp_path / "vault.db"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "is full"),
        ("SQLITE_IOERR_WRITE", "is full or failing"),
        ("SQLITE_IOERR_SHMSIZE", "is full or failing"),
        ("SQLITE_CANTOPEN", "is full or failing"),
        ("SQLITE_READONLY", "is read-only"),
        ("SQLITE_READONLY_DIRECTORY", "is read-only"),
        ("SQLITE_BUSY", "in use by another process"),
        ("SQLITE_BUSY_RECOVERY", "in use by another process"),
        ("SQLITE_LOCKED", "in use by another process"),
        ("SQLITE_PROTOCOL", "in use by another process"),
    ],
)
def test_errors_of_the_disk_are_named_and_ask_for_no_backup(database, name, said):
    found = module.database_error(database, failing(name))

    assert isinstance(found, StorageError)
    assert said in str(found) and str(database.parent) in str(found)
    assert "backup" not in str(found)


@pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CORRUPT_INDEX", "SQLITE_ERROR"])
def test_damage_asks_for_one(database, name):
    found = module.database_error(database, failing(name))

    assert not isinstance(found, StorageError)
    assert str(found).endswith("restore a backup.") and str(database) in str(found)


def test_an_error_of_a_full_disk_is_known_by_the_disk(database, monkeypatch):
    monkeypatch.setattr(module, "is_disk_full", lambda folder: True)

    for name in ("SQLITE_IOERR_SHMSIZE", "SQLITE_CANTOPEN"):
        assert "is full: make room" in str(module.database_error(database, failing(name)))


def test_an_error_of_the_module_itself_has_no_code(database):
    assert "restore a backup" in str(module.database_error(database, sqlite3.ProgrammingError("closed")))


def test_a_full_disk_is_named_and_leaves_the_database_unchanged(made, tmp_path, monkeypatch):
    vault = Vault(shutil.copytree(made / "vault", tmp_path / "vault"))
    connect = sqlite3.connect

    def small(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute(f"PRAGMA max_page_count = {(tmp_path / 'vault' / 'vault.db').stat().st_size // 4096}")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        said = refusal(vault.add_trigger_set, vault.bases()[0], bytes(100_000))
    assert f"The disk of {tmp_path / 'vault'} is full" in said
    assert vault.trigger_set(vault.bases()[0]) is None
    vault.add_trigger_set(vault.bases()[0], bytes(100_000))


def test_a_transaction_that_a_full_disk_ended_shows_the_disk_as_the_reason(made, tmp_path):
    vault = Vault(shutil.copytree(made / "vault", tmp_path / "vault"))
    vault.unlock(PASSPHRASE)

    with pytest.raises(VaultError, match="is full"), vault.connect() as connection, transaction(connection):
        connection.execute("ROLLBACK")  # as SQLite does by itself
        raise failing("SQLITE_FULL")
