import hmac
import shutil
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from functools import partial

import pyrage
import pytest

from hf_fingerprint import Issuer, Vault, trace
from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.keys import commitment, derive, new_secret
from hf_fingerprint.vault import begin_publication, begin_training, copies_in_training
from hf_fingerprint.vault.issuers import (
    add_issuer,
    issuers,
    new_issuer_key,
    open_issuer_key,
    remove_issuer,
)
from hf_fingerprint.vault.merging import merge
from hf_fingerprint.vault.packing import open_pack, pack_snapshot, pack_vault
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt, new_identity, seal
from hf_fingerprint.vault.snapshots import take_snapshot
from hf_fingerprint.vault.union import drop_refused
from tests.helpers.error_checks import refused
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, bytes_of, new_vault, save_plain


WHOLE = "f0" * 32
FORMAT_2 = ("DROP TABLE bound", "DROP TABLE questions", "UPDATE meta SET value = '2' WHERE key = 'format'")
refusal = partial(refused, error=VaultError)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A vault with a base, a real copy of alice's, one of bob's that was begun, a training, and an issuer."""
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "vault")
    with Issuer(save_plain(root / "model"), vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "copies" / "alice")
    vault.begin_copy(vault.bases()[0], "bob", root / "nowhere")
    begin_training(vault, vault.bases()[0], "carol")
    add_issuer(vault, new_issuer_key(root / "ci.key"), "ci")
    begin_publication(vault, vault.copies()[0].copy_id, "org/alice", {"README.md": "0a" * 32})
    vault.cache_content_hash("/here", "state", WHOLE)
    with vault.connect() as connection:
        connection.execute(
            "INSERT INTO bundles VALUES (?, ?)", (vault.bases()[0].base_id, encrypt(b"x", vault.public_key))
        )
    return root


@pytest.fixture
def vault(template, tmp_path):
    return Vault(shutil.copytree(template / "vault", tmp_path / "vault"))


@pytest.fixture
def age_identity(vault):
    vault.unlock(PASSPHRASE)
    return vault.age_identity()


@pytest.fixture
def ci(template):
    return open_issuer_key(template / "ci.key")


@pytest.fixture
def pulled(vault, ci, tmp_path):
    """What an issuer has on its machine."""
    snapshot = open_pack(pack_vault(vault), ci, "org/keys")
    found = Vault.create_empty(tmp_path / "ci", snapshot.public_key)
    merge(found, snapshot)
    return found


class TestAPack:
    def test_opens_for_the_identity_and_for_every_issuer_and_nobody_else(self, vault, age_identity, ci):
        packed = pack_vault(vault)

        assert open_pack(packed, age_identity, "x") == open_pack(packed, ci, "x") == take_snapshot(vault)
        stranger = AgeIdentity(new_identity()[0])
        text = refusal(open_pack, packed, stranger, "org/keys")
        assert "org/keys" in text
        assert stranger.public_key in text

    def test_does_not_open_for_a_removed_issuer(self, vault, age_identity, ci):
        remove_issuer(vault, "ci")

        packed = pack_vault(vault)

        refusal(open_pack, packed, ci, "org/keys")
        assert open_pack(packed, age_identity, "x") == take_snapshot(vault)

    def test_holds_what_issuers_share_and_nothing_of_this_machine(self, vault, ci):
        training = next(iter(copies_in_training(vault)))
        with vault.connect() as connection:
            (key,) = connection.execute("SELECT copy_key FROM training").fetchone()

        content = ci.decrypt(pack_vault(vault))

        assert content.startswith(b"SQLite format 3\0")
        for secret in (key, key.hex().encode(), training.encode(), b"carol", b"bob", b"/here", b"SECRET-KEY"):
            assert secret not in content
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(content)
            counts = {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            }
        assert counts == {
            "meta": 2,
            "bases": 1,
            "copies": 1,
            "verified": 0,
            "bundles": 0,
            "questions": 0,
            "bound": 0,
            "training": 0,
            "publications": 1,
            "issuers": 1,
        }

    def test_is_a_vaults_database_once_decrypted(self, vault, age_identity, tmp_path):
        (tmp_path / "by hand").mkdir()
        (tmp_path / "by hand" / "vault.db").write_bytes(age_identity.decrypt(pack_vault(vault)))

        found = Vault(tmp_path / "by hand")

        assert take_snapshot(found) == take_snapshot(vault)
        found.unlock(PASSPHRASE, vault.identity)
        assert len(found.copy_keys(found.copies())) == 1

    def test_shows_nothing_from_outside(self, vault):
        packed = pack_vault(vault)

        base = vault.bases()[0]
        for secret in (b"alice", base.secret, base.secret.hex().encode(), base.base_id.encode(), b"SQLite", b"ci"):
            assert secret not in packed or len(secret) < 3
        assert packed.startswith(b"age-encryption.org/v1\n")
        assert packed != pack_vault(vault)

    def test_changes_nothing_in_the_vaults_folder(self, vault):
        before = bytes_of(vault.folder)

        pack_vault(vault)

        assert bytes_of(vault.folder) == before

    def test_is_one_moment_while_another_process_writes(self, vault):
        with vault.connect() as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE copies SET state = 'written'")
            assert [record.state for record in take_snapshot(vault).copies.values()] == ["issued"]
            writer.execute("ROLLBACK")

    @pytest.mark.parametrize("cut", [0, 1, 30, 300, -1])
    def test_that_was_cut_is_refused(self, vault, age_identity, cut):
        assert "org/keys" in refusal(open_pack, pack_vault(vault)[:cut], age_identity, "org/keys")


def packed_database(vault: Vault, age_identity: AgeIdentity, *statements: str) -> bytes:
    """A pack as a stranger could make it, who knows the public key."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(age_identity.decrypt(pack_vault(vault)))
        for statement in statements:
            connection.execute(statement)
        return encrypt(connection.serialize(), vault.public_key)


class TestAStrangersPack:
    @pytest.mark.parametrize("content", [b"", b"nothing", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(5000)])
    def test_that_is_no_database_is_refused(self, vault, age_identity, content):
        packed = encrypt(content, vault.public_key)

        assert "org/keys" in refusal(open_pack, packed, age_identity, "org/keys")

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE more (x)",
            "CREATE VIEW seen AS SELECT 1",
            "CREATE TRIGGER t AFTER INSERT ON copies BEGIN DELETE FROM bases; END",
            "DROP TABLE issuers",
            "DROP TABLE meta",
            "DELETE FROM meta WHERE key = 'public_key'",
            "UPDATE meta SET value = 'age1x' WHERE key = 'public_key'",
        ],
    )
    def test_that_is_no_vault_is_refused(self, vault, age_identity, statement):
        packed = packed_database(vault, age_identity, statement)

        assert "org/keys" in refusal(open_pack, packed, age_identity, "org/keys")

    def test_of_a_newer_format_says_so(self, vault, age_identity):
        packed = packed_database(vault, age_identity, "UPDATE meta SET value = '4' WHERE key = 'format'")

        text = refusal(open_pack, packed, age_identity, "org/keys")
        assert "format 4" in text
        assert "upgrade" in text

    @pytest.mark.parametrize(
        ("statement", "tables"),
        [
            ("DELETE FROM bases", ["copies", "publications"]),
            ("UPDATE bases SET secret = zeroblob(32)", ["bases", "copies", "publications"]),
            ("UPDATE bases SET document = '{}'", ["bases", "copies", "publications"]),
            ("UPDATE copies SET recipient = x'00'", ["copies", "publications"]),
            ("UPDATE copies SET sealed = 'text'", ["copies", "publications"]),
            ("UPDATE copies SET content_hash = NULL", ["copies", "publications"]),
            ("UPDATE copies SET commitment = 7.5, content_hash = zeroblob(1)", ["copies", "publications"]),
            ("UPDATE copies SET base_id = 'another'", ["copies", "publications"]),
            ("UPDATE publications SET files = '[]'", ["publications"]),
            ("UPDATE publications SET files = 'no JSON'", ["publications"]),
            ("UPDATE issuers SET name = x'00'", ["issuers"]),
        ],
    )
    def test_gives_no_row_that_no_vault_holds_and_names_it(self, vault, age_identity, statement, tables):
        found = open_pack(packed_database(vault, age_identity, statement), age_identity, "org/keys")

        assert [fault.table for fault in found.faults] == tables
        assert all(fault.describe().isprintable() for fault in found.faults)
        whole = take_snapshot(vault)
        lost = {*tables, "bases"} if statement == "DELETE FROM bases" else set(tables)
        rest = drop_refused(whole, {(table, key): "is refused" for table in lost for key in whole.rows(table)})
        assert found == rest

    def test_with_a_base_whose_seal_fits_and_whose_document_says_nothing_loses_it(self, vault, age_identity):
        snapshot = take_snapshot(vault)
        forged = {}
        for key, (base_id, whole, _, amplitudes, secret, _) in snapshot.bases.items():
            seal_key, message = derive(secret, "record"), f"{base_id}\n{whole}\n{{}}\n".encode() + amplitudes
            genuine = hmac.new(seal_key, message, "sha256").hexdigest()
            forged[key] = (base_id, whole, "{}", amplitudes, secret, genuine)
        packed = pack_snapshot(replace(snapshot, bases=forged))

        found = open_pack(packed, age_identity, "org/keys")

        assert found.bases == found.copies == {}
        assert [fault.table for fault in found.faults] == ["bases", "copies", "publications"]


class TestAPackOfFormat2:
    """As an issuer who has not upgraded yet pushes it: without trigger sets."""

    def test_opens_and_has_everything_but_trigger_sets(self, vault, age_identity):
        packed = packed_database(vault, age_identity, *FORMAT_2)

        assert open_pack(packed, age_identity, "org/keys") == take_snapshot(vault)

    def test_with_tables_of_its_own_is_refused(self, vault, age_identity):
        for statements in (FORMAT_2[1:], (*FORMAT_2, "CREATE TABLE more (x)"), (*FORMAT_2, "DROP TABLE issuers")):
            packed = packed_database(vault, age_identity, *statements)

            assert "not hold a complete vault" in refusal(open_pack, packed, age_identity, "org/keys")

    def test_removes_no_trigger_set_from_a_vault_that_has_one(self, vault, age_identity):
        packed = packed_database(vault, age_identity, *FORMAT_2)
        (base,), (copy, *_) = vault.bases(), vault.copies()
        vault.add_trigger_set(base, b"which?")
        with vault.connect() as connection:
            connection.execute("INSERT INTO bound VALUES (?)", (copy.copy_id,))

        merge(vault, open_pack(packed, age_identity, "org/keys"))

        assert vault.trigger_set(base) == b"which?"
        assert vault.answering_ids(base.base_id) == {copy.copy_id}


class TestAnIssuer:
    """What the machine of a CI runner has: the pulled folder and the issuer's key."""

    def test_marks_copies_that_the_owner_of_the_identity_traces(self, vault, pulled, template, tmp_path):
        with Issuer(template / "model", pulled) as issuer:
            issuer.issue("dora", tmp_path / "dora")
        merge(vault, take_snapshot(pulled))
        vault.unlock(PASSPHRASE)

        result = trace(tmp_path / "dora", vault)

        assert [accused.recipient for accused in result.accused] == ["dora"]

    def test_does_not_trace(self, pulled, template, ci):
        record = pulled.copies()[0]

        refusal(trace, template / "copies" / "alice", pulled, error=PassphraseError)
        refusal(pulled.copy_key, record, error=PassphraseError)
        refusal(pulled.copy_keys, [record], error=PassphraseError)
        assert not (pulled.folder / "identity.age").exists()
        assert "identity.age" in refusal(pulled.unlock, PASSPHRASE)

    def test_does_not_open_a_copys_key_with_its_own(self, pulled, ci):
        (record,) = pulled.copies()

        assert record.copy_id in refusal(ci.unseal, record.sealed, record.copy_id, record.base_id, record.recipient)
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(record.sealed, [ci._identity])

    def test_is_not_taken_for_the_identity(self, vault, pulled, ci, tmp_path):
        (tmp_path / "identity.age").write_bytes(lock_quickly(str(ci._identity), PASSPHRASE))

        refusal(pulled.unlock, PASSPHRASE, tmp_path / "identity.age", error=PassphraseError)
        assert ci.public_key != vault.public_key

    @pytest.mark.parametrize("rewritten", ["sealed", "sealed and commitment", "all of it"])
    def test_that_replaces_an_earlier_record_is_found_out_by_its_name(self, vault, pulled, rewritten, tmp_path):
        (record,) = pulled.copies()
        key = new_secret()
        whole = "0d" * 32 if rewritten == "all of it" else record.content_hash
        new_commitment = record.commitment if rewritten == "sealed" else commitment(key, "alice", whole)
        sealed = seal(key, record.copy_id, record.base_id, "alice", pulled.public_key)
        with pulled.connect() as connection:
            connection.execute(
                "UPDATE copies SET sealed = ?, content_hash = ?, commitment = ?", (sealed, whole, new_commitment)
            )
        before = take_snapshot(vault)

        for one, other in ((vault, pulled), (pulled, vault)):
            copies = [fault for fault in merge(one, take_snapshot(other)).refused if fault.table == "copies"]
            assert [fault.key for fault in copies] == [f"{record.copy_id} (alice)"]
        assert take_snapshot(vault) == before

    def test_makes_no_copy_that_traces_by_an_earlier_record(self, vault, pulled, template, tmp_path):
        """It marks a copy and says that this is alice's: her record doesn't say so, and the new one is another, with
        its own date, in plain sight."""
        (record,) = pulled.copies()
        with Issuer(template / "model", pulled) as issuer:
            issuer.issue("alice", tmp_path / "forged")
        vault.unlock(PASSPHRASE)

        result = trace(tmp_path / "forged", vault, all_scores=True)

        assert result.accused == ()
        assert {score.recipient for score in result.scores} == {"alice", "carol"}
        assert merge(vault, take_snapshot(pulled)).copies == 1
        (accused,) = trace(tmp_path / "forged", vault).accused
        assert (accused.recipient, accused.copy_id == record.copy_id) == ("alice", False)
        old, new = vault.copies(recipient="alice")
        assert (old, new.copy_id) == (record, accused.copy_id)
        assert new.created >= old.created


class TestAnIssuersKey:
    def test_is_for_its_owners_eyes_and_opens_again(self, tmp_path):
        public_key = new_issuer_key(tmp_path / "ci.key")

        assert stat.S_IMODE((tmp_path / "ci.key").stat().st_mode) == 0o600
        assert open_issuer_key(tmp_path / "ci.key").public_key == public_key

    def test_comes_from_the_environment_too(self, tmp_path, monkeypatch):
        public_key = new_issuer_key(tmp_path / "ci.key")
        for text in ((tmp_path / "ci.key").read_text(), (tmp_path / "ci.key").read_text().splitlines()[1]):
            monkeypatch.setenv("HF_FINGERPRINT_ISSUER_KEY", text)
            assert open_issuer_key().public_key == public_key
        monkeypatch.setenv("HF_FINGERPRINT_ISSUER_KEY", "")
        assert open_issuer_key() is None

    def test_is_never_made_over_a_file(self, tmp_path):
        (tmp_path / "ci.key").write_text("mine")

        assert "ci.key" in refusal(new_issuer_key, tmp_path / "ci.key")
        assert (tmp_path / "ci.key").read_text() == "mine"
        assert "nowhere" in refusal(new_issuer_key, tmp_path / "nowhere" / "ci.key")

    @pytest.mark.parametrize("text", ["", "# public key: age1\n", "AGE-SECRET-KEY-1NOTREALLY", "one\ntwo\n", "\0"])
    def test_that_is_none_is_refused_by_name_and_never_shown(self, tmp_path, text, monkeypatch):
        (tmp_path / "ci.key").write_text(text)

        said = refusal(open_issuer_key, tmp_path / "ci.key")

        assert "ci.key" in said
        assert "NOTREALLY" not in said
        assert "gone" in refusal(open_issuer_key, tmp_path / "gone")

    def test_shows_its_public_key_only(self, tmp_path):
        public_key = new_issuer_key(tmp_path / "ci.key")

        assert repr(open_issuer_key(tmp_path / "ci.key")) == f"AgeIdentity({public_key})"


class TestTheListOfIssuers:
    def test_has_names_by_keys(self, vault, ci):
        assert issuers(vault) == {ci.public_key: "ci"}

    def test_takes_another_name_for_the_same_key(self, vault, ci):
        add_issuer(vault, ci.public_key, "runner")

        assert issuers(vault) == {ci.public_key: "runner"}

    def test_takes_public_keys_only(self, vault, ci):
        secret = str(ci._identity)
        for wrong in ("", "age1nonsense", secret, secret.lower()):
            text = refusal(add_issuer, vault, wrong, "x")
            assert secret[16:] not in text.upper()
        for name in ("", " ", "a\nb", "x" * 101):
            refusal(add_issuer, vault, new_identity()[1], name)
        assert issuers(vault) == {ci.public_key: "ci"}

    def test_removes_for_good(self, vault, ci):
        before = take_snapshot(vault)
        assert remove_issuer(vault, "ci") == [ci.public_key]

        assert issuers(vault) == {}
        assert ci.public_key in refusal(add_issuer, vault, ci.public_key, "ci")
        merge(vault, before)
        assert issuers(vault) == {}

    def test_removes_by_key_too_and_knows_whom_it_has(self, vault, ci):
        assert remove_issuer(vault, ci.public_key) == [ci.public_key]
        assert "ci" in refusal(remove_issuer, vault, "ci")
