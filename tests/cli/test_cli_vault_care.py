import getpass
import shutil
import sqlite3
from pathlib import Path

import pytest

from hf_fingerprint import Vault
from hf_fingerprint.vault.passphrase_age import read_log_work
from hf_fingerprint.vault.sealing import new_identity, open_identity
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, bytes_of, new_vault


NEW = "a new passphrase"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("HF_FINGERPRINT_PASSPHRASE", raising=False)
    (tmp_path / "now").write_text(PASSPHRASE + "\n")
    (tmp_path / "new").write_text(NEW + "\n")
    return new_vault(tmp_path / "vault").folder


def done(outcome: tuple[int, str, str]) -> tuple[str, str]:
    code, out, err = outcome
    assert code == 0, err
    assert not any(secret in out + err for secret in ("SECRET-KEY", PASSPHRASE, NEW))
    return out, err


def opened(folder: Path, passphrase: str) -> bool:
    vault = Vault(folder)
    vault.unlock(passphrase)
    return vault.unlocked


def test_a_passphrase_is_changed_by_files(run, folder, tmp_path):
    files = ["--passphrase-file", tmp_path / "now", "--new-passphrase-file", tmp_path / "new"]

    out, err = done(run("vault", "passphrase", "--vault", folder, *files))

    assert "with the new passphrase" in out and Vault(folder).public_key in out
    assert "still open with the old passphrase" in err
    assert opened(folder, NEW)
    assert {path.name for path in folder.iterdir()} == {"vault.db", "identity.age"}


def test_a_weak_seal_is_warned_of_and_mended_with_the_same_passphrase(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 7)
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
    rotated = ["vault", "rotate", "--vault", folder, "--new-passphrase-file", tmp_path / "new"]
    assert read_log_work((folder / "identity.age").read_bytes()) == 2

    out, err = done(run("vault", "passphrase", "--vault", folder))
    assert "with the same passphrase" in out and "Warning" not in err
    assert read_log_work((folder / "identity.age").read_bytes()) == 7
    _, err = done(run(*rotated))
    assert "Warning" not in err


def test_an_unlock_of_a_weak_seal_warns_in_a_line(run, folder, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 7)
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)

    code, _, err = run("trace", folder, "--vault", folder)

    assert code == 2
    assert err.count("is quicker to guess") == 1 and "vault passphrase" in err


@pytest.mark.parametrize(("typed", "passphrase"), [([PASSPHRASE, NEW, NEW], NEW), ([PASSPHRASE, ""], PASSPHRASE)])
def test_at_a_terminal_the_new_passphrase_is_typed_or_stays(run, folder, monkeypatch, typed, passphrase):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: typed.pop(0))

    done(run("vault", "passphrase", "--vault", folder))

    assert typed == [] and opened(folder, passphrase)


def test_two_that_differ_and_a_wrong_one_change_nothing(run, folder, tmp_path, monkeypatch):
    before = bytes_of(folder)
    (tmp_path / "wrong").write_text("a guess\n")
    code, _, err = run("vault", "passphrase", "--vault", folder, "--passphrase-file", tmp_path / "wrong")
    assert code == 2 and "does not open with this passphrase" in err

    typed = [PASSPHRASE, NEW, "something else"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: typed.pop(0))
    code, _, err = run("vault", "passphrase", "--vault", folder)

    assert code == 2 and "differ" in err
    assert bytes_of(folder) == before


def test_an_identity_that_is_kept_elsewhere_is_sealed_again_where_it_is(run, folder, tmp_path):
    secret, public_key = new_identity()
    (tmp_path / "old.age").write_bytes(lock_quickly(secret, PASSPHRASE))
    before = bytes_of(folder)
    files = ["--passphrase-file", tmp_path / "now", "--new-passphrase-file", tmp_path / "new"]

    out, err = done(run("vault", "passphrase", "--vault", folder, "--identity", tmp_path / "old.age", *files))

    assert public_key in out and "not the identity of" in err
    assert open_identity(tmp_path / "old.age", NEW).public_key == public_key
    assert bytes_of(folder) == before


def test_a_backup_is_made_and_restored(run, folder, tmp_path):
    out, _ = done(run("vault", "backup", tmp_path / "backup.db", "--vault", folder))

    assert "To restore" in out and "lacks the tracing identity" in out
    (tmp_path / "restored").mkdir()
    shutil.copy(tmp_path / "backup.db", tmp_path / "restored" / "vault.db")
    assert Vault(tmp_path / "restored").public_key == Vault(folder).public_key
    code, _, err = run("vault", "backup", tmp_path / "backup.db", "--vault", folder)
    assert code == 2 and "already exists" in err


def test_init_completes_what_was_cut_off_and_says_so(run, folder, tmp_path):
    public_key = Vault(folder).public_key
    (folder / "vault.db").unlink()

    out, _ = done(run("vault", "init", folder, "--passphrase-file", tmp_path / "now"))

    assert public_key in out and "Using the existing identity" in out
    with sqlite3.connect(folder / "vault.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
