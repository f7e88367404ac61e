import base64
import hashlib
import os
import shutil
import sqlite3
import stat
import traceback
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_fingerprint.errors import FingerprintWarning, PassphraseError, VaultError
from hf_fingerprint.keys import commitment
from hf_fingerprint.vault import Ancestor, Base, Calibration, Carrier, CopyRecord, TensorRecord, Vault
from hf_fingerprint.vault.key_cache import pack_keys, record_digest
from hf_fingerprint.vault.key_table import KeyTable
from hf_fingerprint.vault.rotation import rotate
from hf_fingerprint.vault.schema import base_to_row
from hf_fingerprint.vault.sealing import encrypt, new_identity, seal
from hf_fingerprint.vault.unsealing import open_copies, unseal_copy_key
from tests.helpers.checkpoint_files import bytes_of, open_folder, stranger
from tests.helpers.error_checks import refused
from tests.helpers.format_1 import FORMAT_1
from tests.helpers.quick_age import lock_quickly
from tests.helpers.two_processes import run_two_and_get_errors


PASSPHRASE = "correct horse battery staple"
BASE = Base(
    base_id="53e1e7b2c8d4",
    source="org/tiny-vit",
    revision=None,
    content_hash="53e1e7b2c8d4" + "a1" * 26,
    tensors={"head.weight": TensorRecord("F32", (2, 3), "0a" * 32)},
    carriers=(Carrier("head.weight", 0.004, np.array([0.5, 0.25], np.float32)),),
    family="tardos",
    length=4096,
    coalition=20,
    certified=12,
    certified_by="simulated: minority",
    alpha=1e-6,
    expected_recipients=1000,
    calibration=Calibration("none", 0, 1e-3, None, None),
    secret=bytes(range(32)),
)
WHOLE = "f0" * 32


refusal = partial(refused, error=VaultError)


@dataclass
class Made:
    """A vault that was made once, with a base and two copies; the tests work on copies of its folder."""

    folder: Path
    vault: Vault
    modes: dict[str, int]
    records: list[CopyRecord]
    keys: list[bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A real vault, but for a passphrase that takes no time."""
    folder = tmp_path_factory.mktemp("made") / "deep" / "vault"
    mask = os.umask(0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hf_fingerprint.vault.store.encrypt_identity", lock_quickly)
            vault = Vault.create(folder, PASSPHRASE)
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    vault.unlock(PASSPHRASE)
    vault.add_base(BASE)
    made = [vault.begin_copy(BASE, name, Path("/copies") / name) for name in ("alice", "Zoë & Söhne")]
    record, key = made[0]
    vault.mark_written(record, key, WHOLE)
    return Made(folder, vault, modes, vault.copies(), [key for _, key in made])


@dataclass
class Mine:
    """A test's own copy of the vault."""

    folder: Path

    def open(self) -> Vault:
        """The vault, unlocked."""
        vault = Vault(self.folder)
        vault.unlock(PASSPHRASE)
        return vault

    def sql(self, statement: str, *values: object) -> None:
        """Changes the database behind the vault's back."""
        connection = sqlite3.connect(self.folder / "vault.db")
        connection.execute(statement, values)
        connection.commit()
        connection.close()


@pytest.fixture
def mine(made, tmp_path) -> Mine:
    return Mine(Path(shutil.copytree(made.folder, tmp_path / "vault")))


# Making, opening, unlocking


def test_a_vault_made_with_a_passphrase_unlocks_with_it(tmp_path):
    vault = Vault.create(tmp_path / "vault", PASSPHRASE)
    assert not vault.unlocked
    assert vault.bases() == vault.copies() == []
    vault.add_base(BASE)
    record, key = vault.begin_copy(BASE, "alice", tmp_path)

    resumed_record = Vault(tmp_path / "vault")
    resumed_record.unlock(PASSPHRASE)

    assert resumed_record.copy_key(record) == key


def test_a_new_vault_holds_its_database_and_its_identity_for_the_owners_eyes_only(made):
    assert made.modes == {"vault": 0o700, "vault.db": 0o600, "identity.age": 0o600}


def test_the_files_that_sqlite_adds_are_for_the_owners_eyes_too(mine):
    reader = sqlite3.connect(mine.folder / "vault.db")
    reader.execute("BEGIN").execute("SELECT * FROM meta").fetchall()
    mask = os.umask(0)
    try:
        mine.open().begin_copy(BASE, "bob", Path("/out"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in mine.folder.iterdir()}
    finally:
        os.umask(mask)
        reader.close()

    assert "vault.db-wal" in modes
    assert set(modes.values()) == {0o600}


def test_a_vault_opens_without_its_identity_and_says_that_it_is_locked(mine):
    (mine.folder / "identity.age").unlink()

    vault = Vault(mine.folder)

    assert not vault.unlocked
    assert [record.recipient for record in vault.copies()] == ["alice", "Zoë & Söhne"]
    assert vault.bases() == [BASE]
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    vault.mark_written(record, key, WHOLE)
    assert str(mine.folder) in refusal(vault.copy_key, record, error=PassphraseError)
    assert str(mine.folder) in refusal(vault.copy_keys, [record], error=PassphraseError)
    assert str(mine.folder / "identity.age") in refusal(vault.unlock, PASSPHRASE)


def test_the_passphrase_unlocks_it_wherever_the_identity_is(mine, made, tmp_path):
    (mine.folder / "identity.age").rename(tmp_path / "elsewhere.age")
    vault = Vault(str(mine.folder))

    vault.unlock(PASSPHRASE, tmp_path / "elsewhere.age")

    assert vault.unlocked
    assert [vault.copy_key(record) for record in vault.copies()] == made.keys


@pytest.mark.parametrize("passphrase", ["Correct horse battery staple", ""])
def test_a_wrong_passphrase_is_refused_and_changes_nothing(mine, passphrase):
    vault, before = Vault(mine.folder), bytes_of(mine.folder)

    assert "identity.age" in refusal(vault.unlock, passphrase, error=PassphraseError)
    assert not vault.unlocked
    assert bytes_of(mine.folder) == before


def test_the_identity_of_another_vault_is_refused(mine, tmp_path):
    other = Vault.create(tmp_path / "other", PASSPHRASE)
    vault, before = Vault(mine.folder), bytes_of(mine.folder)

    assert str(mine.folder) in refusal(vault.unlock, PASSPHRASE, other.identity, error=PassphraseError)
    assert not vault.unlocked
    assert bytes_of(mine.folder) == before


def test_a_public_key_that_was_changed_is_named_and_the_identity_still_opens_all_records(mine, made):
    mine.sql("UPDATE meta SET value = ? WHERE key = 'public_key'", new_identity()[1])
    vault = Vault(mine.folder)

    with pytest.warns(FingerprintWarning, match="public key is not that of the identity"):
        vault.unlock(PASSPHRASE)

    assert vault.copy_keys(vault.copies()) == made.keys


def test_a_vault_that_is_rotated_meanwhile_says_so_and_not_that_records_were_tampered_with(mine, made):
    before, unlocked = Vault(mine.folder), mine.open()
    rotate(mine.open(), "a new passphrase")

    for vault in (before, unlocked):
        text = refusal(vault.unlock, PASSPHRASE, error=PassphraseError)
        assert "tampered" not in text
    text = refusal(unlocked.copy_keys, unlocked.copies(), error=PassphraseError)
    assert "a new tracing identity since" in text


def test_an_empty_passphrase_makes_no_vault(tmp_path):
    refusal(Vault.create, tmp_path / "vault", "", error=PassphraseError)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [["vault.db", "identity.age"], ["vault.db"], ["identity.age"]])
def test_a_vault_is_never_made_over_another(mine, left):
    for path in mine.folder.iterdir():
        if path.name not in left:
            path.unlink()
    before = bytes_of(mine.folder)

    assert str(mine.folder) in refusal(Vault.create, mine.folder, "another passphrase")
    assert bytes_of(mine.folder) == before


def test_a_vault_is_not_made_where_a_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.store.encrypt_identity", lock_quickly)
    (tmp_path / "file").write_text("mine")

    assert "file" in refusal(Vault.create, tmp_path / "file", PASSPHRASE)
    assert bytes_of(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("place", ["missing", "empty", "file"])
def test_a_place_without_a_vault_is_refused_with_the_way_to_make_one(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")

    text = refusal(Vault, tmp_path / place)

    assert str(tmp_path / place) in text
    assert ("not a vault's folder" if place == "file" else "vault init") in text
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def test_a_vault_of_a_newer_format_is_refused_and_unchanged(mine):
    mine.sql("UPDATE meta SET value = '4' WHERE key = 'format'")
    before = bytes_of(mine.folder)

    text = refusal(Vault, mine.folder)

    assert str(mine.folder) in text
    assert "format 4" in text
    assert bytes_of(mine.folder) == before


@pytest.mark.parametrize("key", ["format", "public_key"])
def test_a_vault_that_lost_what_it_says_of_itself_is_read_all_the_same(mine, made, key):
    mine.sql("DELETE FROM meta WHERE key = ?", key)

    with pytest.warns(FingerprintWarning, match=key.replace("_", " ")):
        vault = Vault(mine.folder)

    vault.unlock(PASSPHRASE)
    assert vault.copy_keys(vault.copies()) == made.keys
    if key == "public_key":
        refusal(vault.begin_copy, BASE, "bob", Path("/out"))


def test_a_public_key_that_is_none_is_the_vaults_damage(mine):
    mine.sql("UPDATE meta SET value = 'age1nonsense' WHERE key = 'public_key'")

    refusal(lambda: Vault(mine.folder).begin_copy(BASE, "bob", Path("/out")))


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"this is not a database\n" * 100, b"SQLite format 3\0", b"SQLite format 3\0" + bytes(5000)],
)
def test_a_file_that_is_not_a_database_is_refused_and_unchanged(tmp_path, content):
    (tmp_path / "vault.db").write_bytes(content)

    assert str(tmp_path) in refusal(Vault, tmp_path)
    assert bytes_of(tmp_path) == {"vault.db": content}


def test_another_programs_database_is_refused_and_unchanged(tmp_path):
    connection = sqlite3.connect(tmp_path / "vault.db")
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()
    before = bytes_of(tmp_path)

    assert str(tmp_path) in refusal(Vault, tmp_path)
    assert bytes_of(tmp_path) == before


def test_a_truncated_database_is_refused_wherever_it_was_cut(mine):
    whole = (mine.folder / "vault.db").read_bytes()
    assert len(whole) % 4096 == 0

    def read_all() -> None:
        vault = Vault(mine.folder)
        vault.bases()
        vault.copies()

    for length in [17, 100, 512, 4095, *range(4096, len(whole), 4096)]:
        (mine.folder / "vault.db").write_bytes(whole[:length])
        assert str(mine.folder) in refusal(read_all)
        assert (mine.folder / "vault.db").read_bytes() == whole[:length]


def test_a_vault_that_may_not_be_read_is_refused_by_name(mine):
    with open_folder() as folder:
        shutil.copy(mine.folder / "vault.db", folder / "vault.db")
        (folder / "vault.db").chmod(0)
        with stranger():
            assert str(folder) in refusal(Vault, folder)


# Bases


def test_a_base_comes_back_as_it_was_registered(mine):
    (base,) = mine.open().bases()

    assert base == BASE
    assert base.carriers[0].amplitude.tolist() == [0.5, 0.25]
    assert mine.open().base_with_hash(BASE.content_hash) == BASE
    assert mine.open().base_with_hash("00" * 32) is None


def test_a_base_registered_twice_keeps_its_first_secret(mine):
    vault = mine.open()

    assert vault.add_base(replace(BASE, secret=bytes(32), certified=3)) == BASE
    assert vault.bases() == [BASE]


ANCESTOR = Ancestor("org/vit", "7b" * 20, "c2" * 32)


def test_a_base_gets_an_ancestor_without_a_new_secret(mine):
    vault = mine.open()

    found = vault.set_ancestor(BASE, ANCESTOR)

    assert found == replace(BASE, ancestor=ANCESTOR)
    assert vault.bases()[0] == found
    assert found.secret == BASE.secret
    assert found.describe()["ancestor"] == {
        "source": "org/vit",
        "revision": "7b" * 20,
        "content_hash": "c2" * 32,
    }
    assert vault.set_ancestor(found, None) == BASE
    assert "ancestor" not in BASE.describe()


def test_an_ancestor_is_not_set_on_a_record_that_changed_meanwhile(mine):
    vault = mine.open()
    vault.set_ancestor(BASE, ANCESTOR)

    assert BASE.base_id in refusal(vault.set_ancestor, BASE, replace(ANCESTOR, revision=None))
    assert "run again" in refusal(vault.set_ancestor, replace(BASE, base_id="0" * 12), ANCESTOR)
    assert vault.bases()[0].ancestor == ANCESTOR


def test_an_ancestor_that_no_merge_would_take_is_not_set(mine):
    vault = mine.open()

    assert "own ancestor" in refusal(vault.set_ancestor, BASE, Ancestor("/x", None, BASE.content_hash))
    assert vault.bases()[0] == BASE


def test_bases_are_listed_in_the_order_of_registration(mine):
    vault = mine.open()
    others = [replace(BASE, base_id=str(n) * 12, content_hash=str(n) * 64) for n in (9, 1, 5)]
    for base in others:
        assert vault.add_base(base) == base

    assert mine.open().bases() == [BASE, *others]


def test_two_bases_that_share_their_digits_are_not_confused(mine):
    vault = mine.open()

    assert BASE.base_id in refusal(vault.add_base, replace(BASE, content_hash="00" * 32))
    assert vault.bases() == [BASE]


# Copies


def test_a_copy_is_recorded_before_it_is_written_and_its_key_is_sealed(mine, made):
    vault = mine.open()

    record, key = vault.begin_copy(BASE, "bob", Path("/copies/bob"))

    assert vault.copies()[-1] == record
    assert (record.base_id, record.recipient, record.state) == (BASE.base_id, "bob", "begun")
    assert (record.out, record.content_hash, record.commitment) == ("/copies/bob", None, None)
    assert record.created.endswith("+00:00")
    assert len(key) == 32
    assert vault.copy_key(record) == key
    assert key not in made.keys


def test_a_written_copy_is_committed_to(mine):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))

    written = vault.mark_written(record, key, WHOLE)

    assert vault.copies()[-1] == written
    assert (written.state, written.content_hash) == ("written", WHOLE)
    assert written.commitment == commitment(key, "bob", WHOLE)
    assert vault.copy_key(written) == key
    vault.mark_issued(record.copy_id)
    assert vault.copies()[-1] == replace(written, state="issued")
    assert [copy.state for copy in vault.copies()[:-1]] == ["written", "begun"]


def test_copies_are_listed_by_base_and_recipient_in_the_order_of_issue(mine):
    vault = mine.open()
    other = vault.add_base(replace(BASE, base_id="0" * 12, content_hash="0" * 64))
    for base, name in [(other, "alice"), (BASE, "alice"), (other, "bob")]:
        vault.begin_copy(base, name, Path("/out"))

    assert [copy.recipient for copy in vault.copies()] == ["alice", "Zoë & Söhne", "alice", "alice", "bob"]
    assert [copy.base_id for copy in vault.copies(recipient="alice")] == [BASE.base_id, other.base_id, BASE.base_id]
    assert [copy.recipient for copy in vault.copies(other.base_id)] == ["alice", "bob"]
    assert [copy.base_id for copy in vault.copies(other.base_id, "alice")] == [other.base_id]
    assert vault.copies("nothing") == vault.copies(recipient="ALICE") == vault.copies(recipient="%") == []


@pytest.mark.parametrize("name", ["'; DROP TABLE copies; --", "Zoë\u202e", "日本", '"', "a" * 200, "%", "\\"])
def test_a_recipient_may_be_called_anything(mine, name):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, name, Path("/out"))
    vault.mark_written(record, key, WHOLE)

    (found,) = vault.copies(recipient=name)

    assert vault.copy_key(found) == key


def test_a_copy_of_an_unregistered_base_is_refused_and_not_recorded(mine):
    vault, other = mine.open(), replace(BASE, base_id="0" * 12)

    refusal(vault.begin_copy, other, "bob", Path("/out"))
    assert len(vault.copies()) == 2


def test_a_record_that_was_never_written_is_used_again_with_a_new_key(mine):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))

    resumed_record, new_key = vault.begin_copy(BASE, "bob", Path("/out"), resumed_record=record)

    assert resumed_record.copy_id == record.copy_id
    assert new_key != key
    assert len(vault.copies(recipient="bob")) == 1
    assert vault.copy_key(vault.copies(recipient="bob")[0]) == new_key


@pytest.mark.parametrize("state", ["written", "issued"])
def test_a_record_that_was_written_is_never_given_another_key(mine, state):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    vault.mark_written(record, key, WHOLE)
    if state == "issued":
        vault.mark_issued(record.copy_id)

    assert record.copy_id in refusal(lambda: vault.begin_copy(BASE, "bob", Path("/out"), resumed_record=record))
    assert vault.copy_key(vault.copies(recipient="bob")[0]) == key


def test_a_copy_whose_record_was_given_another_key_meanwhile_is_not_marked_written(mine):
    vault = mine.open()
    slow, forgotten_key = vault.begin_copy(BASE, "bob", Path("/out"))
    record, key = vault.begin_copy(BASE, "bob", Path("/out"), resumed_record=slow)

    assert slow.copy_id in refusal(vault.mark_written, slow, forgotten_key, WHOLE)
    vault.mark_written(record, key, WHOLE)
    assert vault.copy_key(vault.copies(recipient="bob")[0]) == key


def test_answering_copies_are_recorded_when_they_are_written(mine):
    vault = mine.open()
    for name, is_answering in (("bob", True), ("carol", False)):
        vault.mark_written(*vault.begin_copy(BASE, name, Path("/out")), WHOLE, is_answering=is_answering)
    slow, forgotten_key = vault.begin_copy(BASE, "dora", Path("/out"))
    vault.begin_copy(BASE, "dora", Path("/out"), resumed_record=slow)
    refusal(lambda: vault.mark_written(slow, forgotten_key, WHOLE, is_answering=True))

    assert vault.answering_ids(BASE.base_id) == {record.copy_id for record in vault.copies(recipient="bob")}


def test_a_missing_record_is_an_error_when_its_copy_is_written(mine):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    mine.sql("DELETE FROM copies WHERE copy_id = ?", record.copy_id)

    assert record.copy_id in refusal(vault.mark_written, record, key, WHOLE)
    assert record.copy_id in refusal(vault.mark_issued, record.copy_id)


def test_what_is_recorded_is_on_the_disk_when_the_call_returns(mine, tmp_path):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    vault.mark_written(record, key, WHOLE)

    shutil.copytree(mine.folder, tmp_path / "after a crash")

    (found,) = Vault(tmp_path / "after a crash").copies(recipient="bob")
    assert found.state == "written"


# Tampering


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("base_id", "000000000000"),
        ("content_hash", "00" * 32),
        ("document", base_to_row(replace(BASE, alpha=0.5))[2]),
        ("document", "{}"),
        ("amplitudes", np.array([0.5, 0.125], "<f4").tobytes()),
        ("secret", bytes(32)),
        ("seal", "00" * 32),
    ],
)
def test_no_column_of_a_base_can_be_changed_unnoticed(mine, column, value):
    mine.sql(f"UPDATE bases SET {column} = ?", value)
    vault = mine.open()

    with pytest.warns(FingerprintWarning) as caught:
        assert vault.bases() == []
    assert vault.bases() == []

    (text,) = [str(warning.message) for warning in caught]
    assert (value if column == "base_id" else BASE.base_id) in text
    assert BASE.secret.hex() not in text


def test_a_base_whose_row_cannot_be_used_is_not_registered_once_more(mine):
    mine.sql("UPDATE bases SET document = '{}'")

    assert BASE.base_id in refusal(mine.open().base_with_hash, BASE.content_hash)
    assert BASE.base_id in refusal(mine.open().add_base, BASE)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("copy_id", "0123456789abcdef"),
        ("base_id", "000000000000"),
        ("recipient", "mallory"),
        ("content_hash", "00" * 32),
        ("content_hash", "not hexadecimal"),
        ("content_hash", ""),
        ("content_hash", None),
        ("commitment", "00" * 32),
        ("commitment", None),
        ("sealed", b""),
        ("sealed", b"age-encryption.org/v1\n"),
        ("sealed", "text"),
    ],
)
@pytest.mark.parametrize("method", ["copy_key", "copy_keys"])
def test_no_column_that_a_copys_key_depends_on_can_be_changed_unnoticed(mine, made, column, value, method):
    vault = mine.open()
    record = replace(made.vault.copies()[0], **{column: value})

    text = refusal(vault.copy_key, record) if method == "copy_key" else refusal(vault.copy_keys, [record])

    assert record.copy_id in text
    mine.sql(f"UPDATE copies SET {column} = ? WHERE copy_id = ?", value, made.records[0].copy_id)
    rows = mine.open().rows()
    opened = open_copies(vault, rows.copies)
    assert opened.keys == made.keys[1:]
    assert len({*rows.faults, *opened.faults}) == 1


def test_two_records_cannot_swap_their_keys(mine, made):
    for record, other in zip(made.records, reversed(made.records), strict=True):
        mine.sql("UPDATE copies SET sealed = ? WHERE copy_id = ?", other.sealed, record.copy_id)
    vault = mine.open()

    for record in vault.copies():
        assert record.copy_id in refusal(vault.copy_key, record)


def test_a_key_of_the_forgers_own_does_not_open_the_commitment(mine, made):
    record = made.records[0]
    forged = seal(bytes(32), record.copy_id, record.base_id, record.recipient, made.vault.public_key)
    mine.sql("UPDATE copies SET sealed = ? WHERE copy_id = ?", forged, record.copy_id)

    assert record.copy_id in refusal(mine.open().copy_key, mine.open().copies()[0])


@pytest.mark.parametrize(("column", "value"), [("out", "/elsewhere"), ("created", "1970-01-01"), ("state", "issued")])
def test_columns_that_no_accusation_depends_on_are_not_sealed(mine, made, column, value):
    """`out` and `created` are notes for people: the seal and the commitment date nothing, a published commitment does.
    `state` must change after the key is sealed, on machines that hold no identity; who can set it back to "begun"
    behind the vault's back, and so have a key replaced, can delete the whole row as well."""
    mine.sql(f"UPDATE copies SET {column} = ? WHERE copy_id = ?", value, made.records[0].copy_id)
    vault = mine.open()

    assert getattr(vault.copies()[0], column) == value
    assert vault.copy_key(vault.copies()[0]) == made.keys[0]


def test_a_state_that_there_is_not_cannot_even_be_stored(mine):
    with pytest.raises(sqlite3.IntegrityError):
        mine.sql("UPDATE copies SET state = 'revoked'")


# Keys of many copies at once


def many(vault: Vault, count: int) -> list[bytes]:
    """More copies, half of them written."""
    keys = []
    for number in range(count):
        record, key = vault.begin_copy(BASE, f"recipient {number}", Path("/out"))
        if number % 2:
            vault.mark_written(record, key, WHOLE)
        keys.append(key)
    return keys


def test_the_keys_of_many_copies_are_those_of_each(mine, made, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 5)
    vault = mine.open()
    keys = made.keys + many(vault, 10)
    records = vault.copies()

    def unsealed_again(record, age_identity):
        assert record.commitment is None, "was unsealed again"
        return unseal_copy_key(record, age_identity)

    assert vault.copy_keys(records) == keys
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.unseal_copy_key", unsealed_again)
    assert vault.copy_keys(records) == keys
    assert vault.copy_keys(records[::-1]) == keys[::-1]
    assert vault.copy_keys(records[3:5]) == keys[3:5]
    assert vault.copy_keys([]) == []


def test_copies_issued_after_the_key_cache_was_made_are_found_too(mine, made, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 5)
    vault = mine.open()
    keys = made.keys + many(vault, 10)
    vault.copy_keys(vault.copies())
    keys += many(vault, 3)

    assert vault.copy_keys(vault.copies()) == keys


def test_a_damaged_key_cache_only_costs_time(mine, made, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 2)
    vault = mine.open()
    assert vault.copy_keys(vault.copies()) == made.keys
    for damage in (b"", b"x" * 500, encrypt(b"odd length", vault.public_key)):
        mine.sql("UPDATE bundles SET sealed = ?", damage)
        assert vault.copy_keys(vault.copies()) == made.keys


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("recipient", "mallory"),
        ("content_hash", "00" * 32),
        ("commitment", "00" * 32),
        ("sealed", b"\0"),
        ("base_id", "0" * 12),
        ("copy_id", "0" * 16),
    ],
)
def test_a_key_cache_does_not_hide_that_a_record_was_changed(mine, made, monkeypatch, column, value):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 2)
    vault = mine.open()
    assert vault.copy_keys(vault.copies()) == made.keys
    mine.sql(f"UPDATE copies SET {column} = ? WHERE copy_id = ?", value, made.records[0].copy_id)

    refusal(vault.copy_keys, vault.copies())


def test_a_forged_key_cache_does_not_give_a_committed_copy_another_key(mine, made):
    """An issuer has the public key and can seal a key cache, but must not choose an earlier recipient's codeword."""
    digests = b"".join(record_digest(record) for record in made.records)
    forged = pack_keys(np.frombuffer(digests, np.uint8).reshape(-1, 32), KeyTable(bytes(len(digests))))
    mine.sql("INSERT INTO bundles VALUES (?, ?)", BASE.base_id, encrypt(forged, made.vault.public_key))
    vault = mine.open()
    assert vault.copy_keys(vault.copies()) == made.keys


# What is remembered of files


def test_a_content_hash_is_recalled_for_the_same_files_in_the_same_state(mine):
    vault = mine.open()
    assert vault.cached_content_hash("/models/a", "state 1") is None

    vault.cache_content_hash("/models/a", "state 1", WHOLE)

    assert mine.open().cached_content_hash("/models/a", "state 1") == WHOLE
    assert vault.cached_content_hash("/models/a", "state 2") is None
    assert vault.cached_content_hash("/models/b", "state 1") is None
    vault.cache_content_hash("/models/a", "state 2", "0d" * 32)
    assert vault.cached_content_hash("/models/a", "state 1") is None
    assert vault.cached_content_hash("/models/a", "state 2") == "0d" * 32


# Secrets


def test_no_secret_shows_in_anything_that_is_printed(mine, made):
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    shown = [f"{vault!r} {vault} {vault._age_identity!r}"]
    for thing in (*vault.bases(), *vault.copies(), record, vault.mark_written(record, key, WHOLE)):
        shown += [repr(thing), str(thing), str(thing.describe())]
    secrets = [key, *made.keys, BASE.secret, *(copy.sealed for copy in vault.copies())]
    for secret in secrets:
        for spelling in (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode().rstrip("=")):
            assert not any(spelling in text for text in shown)
    assert not any("AGE-SECRET-KEY" in text for text in shown)


def test_no_secret_shows_in_what_is_refused(mine, made):
    texts = []
    for statement in (
        "UPDATE copies SET commitment = 'x'",
        "UPDATE copies SET recipient = 'x'",
        "UPDATE bases SET seal = 'x'",
        "DELETE FROM meta",
    ):
        mine.sql(statement)
        try:
            vault = mine.open()
            vault.bases()
            for record in vault.copies():
                vault.copy_key(record)
        except Exception as error:
            texts.append("".join(traceback.format_exception(error)))
    assert len(texts) == 4
    for secret in (*made.keys, BASE.secret):
        assert not any(secret.hex() in text or repr(secret)[2:-1] in text for text in texts)
    assert not any(PASSPHRASE in text or "AGE-SECRET-KEY" in text for text in texts)


def test_neither_copy_keys_nor_the_identity_are_in_the_files_in_the_clear(mine, made, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 2)
    reader = sqlite3.connect(mine.folder / "vault.db")
    reader.execute("BEGIN").execute("SELECT * FROM meta").fetchall()
    vault = mine.open()
    record, key = vault.begin_copy(BASE, "bob", Path("/out"))
    _, new_key = vault.begin_copy(BASE, "bob", Path("/out"), resumed_record=record)
    vault.copy_keys(vault.copies())

    files = bytes_of(mine.folder)
    reader.close()

    everything = b"\0".join(files.values())
    assert files["vault.db-wal"]
    assert "Zoë & Söhne".encode() in everything, "the scan would find nothing at all"
    assert BASE.secret in everything, "the scan would find no key, clear as it may be"
    for secret in (key, new_key, *made.keys):
        assert secret not in everything
        for spelling in (secret.hex().encode(), base64.b64encode(secret)[:-1], base64.urlsafe_b64encode(secret)[:-1]):
            assert spelling not in everything
    assert b"SECRET-KEY" not in everything
    assert PASSPHRASE.encode() not in everything


# Several processes


WORKER = """
import hashlib, sys
from pathlib import Path
from hf_fingerprint.vault import Vault
vault = Vault(sys.argv[1])
(base,) = vault.bases()
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    record, key = vault.begin_copy(base, f"{sys.argv[2]} {number}", Path("/out"))
    vault.mark_written(record, key, hashlib.sha256(key).hexdigest())
"""


def test_two_processes_that_issue_at_the_same_time_lose_nothing(mine):
    assert run_two_and_get_errors(WORKER, mine.folder) == ["", ""]

    vault = mine.open()
    records = vault.copies()[2:]
    names = [f"{worker} {number}" for worker in ("one", "two") for number in range(50)]
    assert sorted(record.recipient for record in records) == sorted(names)
    assert len({record.copy_id for record in records}) == 100
    keys = [vault.copy_key(record) for record in records]
    assert len(set(keys)) == 100
    assert [record.content_hash for record in records] == [hashlib.sha256(key).hexdigest() for key in keys]


# The format, frozen: a vault of format 1 as it was made long ago


GOLDEN_PUBLIC_KEY = "age1ym02hyae9ee3rdvp0t9mzhg8z9smcmlaryhg3a7lyaejr3frry6s5vw29m"
GOLDEN_SQL = f"{FORMAT_1} INSERT INTO meta VALUES ('public_key', '{GOLDEN_PUBLIC_KEY}');"
GOLDEN_IDENTITY = "AGE-SECRET-KEY-" + "1J7D79U060PJEKTLKRTW5CF3P4GS9GP2P2FQ0WQ7R639D3Z9NJ4SSKX8RRY"
GOLDEN_LOCKED = (
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBNRmxYM01DQ0ZFV3lsMDA2eVpYK2lBIDE5CnBZRTlMWUZXelVSeHRHM1ZDWUhwckc2"
    "ZkdYa2pWY2FYRTJuMWVRWDU3MUUKLS0tIGRUa01TdFVJb2FMdEJXSGJrM3NzLzVDTDVKUEVSNDNndmp4dUUrZUFERHcK2rKusfIc0L5A9mi2"
    "/sowSzLSEp3Hfe1be/5aBI2L1v8+Zjkm/cz2Z/icIuZdt5rXJkvXYkdrGH4fpS5XwY3C2VQsGEx8R+MAjqyd7Aj6e8Lyj3eHBqLpcvw2Oqil"
    "LDn8+Q6nRWXBuaF079g="
)
GOLDEN_SEALED = (
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBYRmEvZGlMY0gyaUZjNVN2YlNMOCtsUitNR2V6TndmT0dVYzRDcWlyeWlnCi9PTU1J"
    "QnloRlhJb29EdGQ0WG9YS2M1bjd6R1lQK1NqamFwQkJzMFI0a1UKLT4gKmEtZ3JlYXNlIFVVJnB5YjogbFlTP1o1ICMkY21mNCtBCkZPbVJi"
    "WmwrMWhoYW1NazJCZGE1alRxK1p6V3QvdFQrc3hlTDZWVFc4SFBBaXhrbUMyeXRqY3QxTEFDNnVrSkMKc0lHYgotLS0gK1dLUlRpRlRxcXM3"
    "TVVUMm9TQ3c2QlpGMFRXVnVQSXJvS012YllDaW9uTQqjPAP0Zdao5alLYrw8fNHKFDaI7g5rFAE55KqvYyV2LrSwcDKnEqH3uGPNe3iyw8Jl"
    "GcWkGn7HPrN2C8GhmyUlAUXvVItz+8k6qyuVg56epEs6a/cDe0pvc/TnJ7/THDepfbFfsOPKHthycwQTMvcjE7VJWO6tXbJCEO9vhvwsvwjx"
    "VKHFywrsHvGJUivrCIDgQsGMTEcqXLiWjFlhbrRAe66dBVOFV7Axtt8GD6nMlnoysnIyh+f1SqjU4x1kYNxhwR0O/+CVMQJFduiE"
)
GOLDEN_KEY = bytes(range(100, 132))
GOLDEN_COMMITMENT = "77ba09ca0d21c3eb287487ec9e66e1e1f608f1638376ba7ac0d4f1e4a39936d6"


@pytest.fixture
def golden(tmp_path) -> Path:
    """The folder of a vault as it was made long ago."""
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "identity.age").write_bytes(base64.b64decode(GOLDEN_LOCKED))
    connection = sqlite3.connect(folder / "vault.db")
    connection.executescript(GOLDEN_SQL)
    row = ("0123456789abcdef", "53e1e7b2c8d4", "Zoë & Söhne", "issued", "/copies/zoe", WHOLE, GOLDEN_COMMITMENT)
    values = (*row, "2026-08-01T12:00:00+00:00", base64.b64decode(GOLDEN_SEALED))
    connection.execute("INSERT INTO copies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()
    return folder


def test_a_vault_made_long_ago_lists_its_base_exactly(golden):
    (base,) = Vault(golden).bases()

    expected: dict[str, Any] = {
        "base_id": "53e1e7b2c8d4",
        "source": "org/tiny-vit",
        "revision": "9f" * 20,
        "content_hash": "53e1e7b2c8d4" + "a1" * 26,
        "tensors": {
            "blocks.0.attn.qkv.weight": ("F32", (2, 3), "0a" * 32),
            "blocks.0.gênant.weight": ("BF16", (3, 1, 1), "0b" * 32),
            "head.bias": ("I64", (), "0c" * 32),
        },
        "family": "tardos",
        "length": 4096,
        "coalition": 20,
        "certified": 12,
        "certified_by": "simulated: minority",
        "alpha": 1e-6,
        "expected_recipients": 1000,
        "calibration": Calibration("images", 256, 1e-3, 9.6e-05, 0.9985),
        "secret": bytes(range(32)),
        "compact": None,
        "replaces": None,
        "copy_of": None,
        "ancestor": None,
    }
    found = {field.name: getattr(base, field.name) for field in fields(base)}
    carriers = [(carrier.name, carrier.eps, carrier.amplitude.tolist()) for carrier in found.pop("carriers")]
    assert found == expected
    assert carriers == [
        ("blocks.0.attn.qkv.weight", 0.004, [0.5, -0.25]),
        ("blocks.0.gênant.weight", 0.002, [1.0, 2.0, 3.0]),
    ]


def test_a_vault_made_long_ago_opens_with_its_passphrase_and_gives_its_copys_key(golden):
    vault = Vault(golden)
    vault.unlock(PASSPHRASE)

    (record,) = vault.copies()

    assert record == CopyRecord(
        copy_id="0123456789abcdef",
        base_id="53e1e7b2c8d4",
        recipient="Zoë & Söhne",
        state="issued",
        out="/copies/zoe",
        content_hash=WHOLE,
        commitment=GOLDEN_COMMITMENT,
        created="2026-08-01T12:00:00+00:00",
        sealed=base64.b64decode(GOLDEN_SEALED),
    )
    assert vault.copy_key(record) == GOLDEN_KEY
    assert vault.copy_keys([record]) == [GOLDEN_KEY]
    assert vault._age_identity is not None
    assert str(vault._age_identity._identity) == GOLDEN_IDENTITY


def test_a_vault_made_long_ago_takes_new_copies(golden):
    vault = Vault(golden)
    record, key = vault.begin_copy(vault.bases()[0], "bob", Path("/out"))
    vault.mark_written(record, key, WHOLE)

    assert [copy.recipient for copy in Vault(golden).copies()] == ["Zoë & Söhne", "bob"]
