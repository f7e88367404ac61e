import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import commitment
from hf_fingerprint.vault import Vault, begin_publication, begin_training, copies_in_training, publications
from hf_fingerprint.vault import migrations as module
from hf_fingerprint.vault.schema import TABLES
from hf_fingerprint.vault.sealing import new_identity, seal
from tests.helpers.error_checks import refused
from tests.helpers.format_1 import FORMAT_1
from tests.helpers.quick_age import lock_quickly
from tests.helpers.two_processes import run_two_and_get_errors


pytestmark = pytest.mark.integration


PASSPHRASE = "correct horse battery staple"
WHOLE = "f0" * 32
BASE = "53e1e7b2c8d4"
HASH = "aa" * 32
OLD_SQL = f"PRAGMA journal_mode = WAL; {FORMAT_1} INSERT INTO verified VALUES ('/models/a', 'state 1', '{HASH}');"
TRAINING_OF_FORMAT_1 = (
    "CREATE TABLE training (copy_id TEXT PRIMARY KEY REFERENCES copies, copy_key BLOB NOT NULL) WITHOUT ROWID"
)
KEYS = {"zoe": bytes(range(100, 132)), "alice": bytes(range(32, 64)), "bob": bytes(range(64, 96))}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A vault of format 1 with a base, three copies (their ids not in the order of issue) and a key cache."""
    folder = tmp_path_factory.mktemp("made")
    identity, public_key = new_identity()
    (folder / "identity.age").write_bytes(lock_quickly(identity, PASSPHRASE))
    connection = sqlite3.connect(folder / "vault.db")
    connection.executescript(OLD_SQL)
    connection.execute("INSERT INTO meta VALUES ('public_key', ?)", (public_key,))
    for copy_id, (name, key) in zip(("c", "a", "b"), KEYS.items(), strict=True):
        row = (copy_id * 16, BASE, name, "issued", f"/copies/{name}", WHOLE, commitment(key, name, WHOLE))
        values = (*row, "2026-08-01T12:00:00+00:00", seal(key, copy_id * 16, BASE, name, public_key))
        connection.execute("INSERT INTO copies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.execute("INSERT INTO bundles VALUES (?, ?)", (BASE, b"a shortcut"))
    connection.commit()
    connection.close()
    return folder


@pytest.fixture
def old(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "old"))


def rows(folder: Path) -> dict[str, list[tuple]]:
    """All rows of all tables, in their order."""
    connection = sqlite3.connect(folder / "vault.db")
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    connection.close()
    return found


def format_of(folder: Path) -> str:
    return dict(rows(folder)["meta"])["format"]


def test_an_old_vault_opens_and_gives_all_its_keys_in_order(old):
    vault = Vault(old)
    vault.unlock(PASSPHRASE)

    assert format_of(old) == "3"
    assert [record.recipient for record in vault.copies()] == list(KEYS)
    assert vault.copy_keys(vault.copies()) == list(KEYS.values())
    (base,) = vault.bases()
    assert (base.base_id, base.secret) == (BASE, bytes(range(32)))
    assert vault.cached_content_hash("/models/a", "state 1") == HASH


def test_no_row_is_lost_or_moved(old):
    before = rows(old)

    Vault(old)

    after = rows(old)
    assert {name: after[name] for name in before if name != "meta"} == {
        name: before[name] for name in before if name != "meta"
    }
    assert dict(after["meta"]) == {**dict(before["meta"]), "format": "3"}
    assert {name: after[name] for name in after.keys() - before.keys()} == {
        "training": [],
        "publications": [],
        "issuers": [],
        "questions": [],
        "bound": [],
    }


def test_an_upgraded_vault_has_the_tables_of_a_new_one(old):
    def spelled(connection: sqlite3.Connection) -> dict[str, str]:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        plain = ((name, " ".join(line.split("--")[0] for line in sql.splitlines())) for name, sql in found)
        return {name: "".join(sql.replace('"', "").split()) for name, sql in plain}

    Vault(old)
    new = sqlite3.connect(":memory:")
    new.executescript(TABLES)
    upgraded = sqlite3.connect(old / "vault.db")

    assert spelled(upgraded) == spelled(new)
    assert upgraded.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert upgraded.execute("PRAGMA foreign_key_check").fetchall() == []
    assert upgraded.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    upgraded.close()


def test_an_upgraded_vault_does_all_that_a_new_one_does(old):
    vault = Vault(old)
    (base,) = vault.bases()

    record, key = vault.begin_copy(base, "dora", "/out")
    begin_publication(vault, vault.copies()[0].copy_id, "org/zoe", {"config.json": "00" * 32})
    begin_training(vault, base, "emil")

    vault.unlock(PASSPHRASE)
    assert vault.copy_key(record) == key
    assert [found.repo for found in publications(vault)] == ["org/zoe"]
    assert len(copies_in_training(vault)) == 1
    assert "FOREIGN KEY" in refused(
        lambda: vault.begin_copy(type(base)(**{**vars(base), "base_id": "none"}), "x", "/out"), error=VaultError
    )


def test_a_training_under_way_is_kept(old):
    connection = sqlite3.connect(old / "vault.db")
    connection.execute(TRAINING_OF_FORMAT_1)
    connection.execute("INSERT INTO training VALUES (?, ?)", ("b" * 16, KEYS["bob"]))
    begun = "UPDATE copies SET state = 'begun', content_hash = NULL, commitment = NULL WHERE copy_id = ?"
    connection.execute(begun, ("b" * 16,))
    connection.commit()
    connection.close()

    vault = Vault(old)

    assert copies_in_training(vault) == {"b" * 16}
    assert rows(old)["training"] == [("b" * 16, KEYS["bob"])]


def test_opening_again_changes_nothing(old):
    Vault(old)
    before = rows(old)
    connection = sqlite3.connect(old / "vault.db", isolation_level=None)
    module.upgrade(connection)
    connection.close()

    Vault(old)

    assert rows(old) == before


STATEMENTS = 15  # from the first to COMMIT


class Stopping:
    """A connection that fails at its nth statement, or kills its process there."""

    def __init__(self, connection: sqlite3.Connection, at: int, kill: bool):
        self.connection, self.left, self.kill = connection, at, kill

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement != "ROLLBACK":
            self.left -= 1
            if self.left < 0 and self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.left < 0:
                raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(statement, *values)


@pytest.mark.parametrize("at", range(1, STATEMENTS + 1))
@pytest.mark.parametrize("kill", [False, True])
def test_an_upgrade_interrupted_anywhere_changes_nothing_and_is_repeated_when_the_vault_is_opened(old, at, kill):
    before = rows(old)
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(old / "vault.db", isolation_level=None)
        try:
            module.upgrade(Stopping(connection, at, kill))
        except sqlite3.OperationalError:
            connection.close()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]

    done = status == 0
    assert done == (at == STATEMENTS)
    assert format_of(old) == ("3" if done else "1")
    assert done or rows(old) == before
    vault = Vault(old)
    vault.unlock(PASSPHRASE)
    assert vault.copy_keys(vault.copies()) == list(KEYS.values())


def test_two_processes_that_open_it_at_the_same_time_both_find_it_upgraded(old):
    script = """
import sys, warnings
from hf_fingerprint.vault import Vault
warnings.simplefilter("ignore")  # one of them says where the original is
print("ready", flush=True)
sys.stdin.readline()
vault = Vault(sys.argv[1])
vault.begin_copy(vault.bases()[0], sys.argv[2], "/out")
"""
    assert run_two_and_get_errors(script, old) == ["", ""]

    names = [record.recipient for record in Vault(old).copies()]
    assert names[:3] == list(KEYS)
    assert sorted(names[3:]) == ["one", "two"]


def test_a_damaged_old_vault_is_refused_and_unchanged(old):
    whole = (old / "vault.db").read_bytes()
    (old / "vault.db").write_bytes(whole[: len(whole) // 2 // 4096 * 4096])
    before = (old / "vault.db").read_bytes()

    assert str(old) in refused(Vault, old, error=VaultError)
    assert (old / "vault.db").read_bytes() == before


def test_a_vault_of_format_2_gets_the_tables_of_trigger_sets_and_loses_nothing(old):
    Vault(old)  # of format 3 now
    connection = sqlite3.connect(old / "vault.db")
    connection.executescript(
        "DROP TABLE questions; DROP TABLE bound; UPDATE meta SET value = '2' WHERE key = 'format';"
    )
    connection.close()
    before = rows(old)

    vault = Vault(old)

    after = rows(old)
    assert after.pop("questions") == after.pop("bound") == []
    assert after.pop("meta") == [(key, "3" if key == "format" else value) for key, value in before.pop("meta")]
    assert after == before
    (base,) = vault.bases()
    vault.add_trigger_set(base, b"which?")
    assert Vault(old).trigger_set(base) == b"which?"
