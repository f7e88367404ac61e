import shutil
import stat
from functools import partial

import numpy as np
import pyrage
import pytest

from hf_fingerprint import Issuer, Vault, trace
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import FingerprintError, PassphraseError, VaultError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import acquire_lock, begin_training, copies_in_training, forget_copy, merge, take_snapshot
from hf_fingerprint.vault.sealing import new_identity
from tests.helpers.error_checks import refused
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain, vault_bytes


WHOLE = "f0" * 32


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    register(save_plain(root / "model"), new_vault(root / "vault"), PLAIN_SETTINGS)
    return root


@pytest.fixture
def vault(template, tmp_path):
    shutil.copytree(template / "vault", tmp_path / "vault")
    return Vault(tmp_path / "vault")


@pytest.fixture
def base(vault):
    (base,) = vault.bases()
    return base


refusal = partial(refused, error=VaultError)


class TestATraining:
    def test_resumes_with_the_same_key(self, vault, base):
        record, key = begin_training(vault, base, "alice")
        again, same = begin_training(Vault(vault.folder), base, "alice", "elsewhere")

        assert (again, same) == (record, key)
        assert record.state == "begun"
        assert len(key) == 32
        assert [copy.copy_id for copy in vault.copies()] == [record.copy_id]

    def test_is_one_recipients(self, vault, base):
        alice, bob = begin_training(vault, base, "alice"), begin_training(vault, base, "bob")

        assert alice[0].copy_id != bob[0].copy_id
        assert alice[1] != bob[1]
        assert copies_in_training(vault) == {alice[0].copy_id, bob[0].copy_id}

    def test_seals_its_key_too(self, vault, base):
        record, key = begin_training(vault, base, "alice")
        vault.unlock(PASSPHRASE)

        assert vault.copy_key(record) == key

    def test_needs_no_unlocked_vault(self, vault, base):
        begin_training(vault, base, "alice")

        assert not vault.unlocked
        with pytest.raises(PassphraseError):
            vault.copy_key(vault.copies()[0])

    def test_does_not_resume_an_interrupted_issue(self, vault, base):
        issued, key = vault.begin_copy(base, "alice", "somewhere")
        record, other = begin_training(vault, base, "alice")

        assert record.copy_id != issued.copy_id
        assert other != key

    def test_ends_and_leaves_no_key_in_any_file(self, vault, base):
        record, key = begin_training(vault, base, "alice")
        _, another = begin_training(vault, base, "bob")
        assert key in vault_bytes(vault)
        done = vault.mark_written(record, key, WHOLE, is_issued=True)

        assert done.state == "issued"
        assert vault.copies()[0] == done
        assert key not in vault_bytes(vault)
        assert another in vault_bytes(vault)
        assert record.copy_id not in copies_in_training(vault)
        vault.unlock(PASSPHRASE)
        assert vault.copy_key(done) == key

    def test_that_ended_is_followed_by_a_new_one(self, vault, base):
        record, key = begin_training(vault, base, "alice")
        vault.mark_written(record, key, WHOLE)
        second, other = begin_training(vault, base, "alice")

        assert second.copy_id != record.copy_id
        assert other != key

    @pytest.mark.parametrize("state", ["written", "issued"])
    def test_whose_key_an_earlier_version_left_behind_is_ended_when_the_vault_is_opened(self, vault, base, state):
        record, key = begin_training(vault, base, "alice")
        _, other = begin_training(vault, base, "bob")
        with vault.connect() as connection:
            connection.execute("UPDATE copies SET state = ? WHERE copy_id = ?", (state, record.copy_id))
        assert key in vault_bytes(vault)
        Vault(vault.folder)

        assert key not in vault_bytes(vault)
        assert other in vault_bytes(vault)
        assert record.copy_id not in copies_in_training(vault)

    @pytest.mark.parametrize("cut", ["before the transaction ends", "before the journal is cleared"])
    def test_interrupted_while_its_copy_is_recorded_leaves_no_key(self, vault, base, monkeypatch, cut):
        record, key = begin_training(vault, base, "alice")
        step = "wipe_training_keys" if cut == "before the transaction ends" else "clear_journal"
        with vault.connect() as other:  # the journal would be cut off when the last connection ends
            other.execute("SELECT count(*) FROM meta").fetchone()
            with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
                patched.setattr(f"hf_fingerprint.vault.record_store.{step}", lambda *_: 1 / 0)
                vault.mark_written(record, key, WHOLE, is_issued=True)
            begun = vault.copies()[0].state == "begun"
            assert begun == (step == "wipe_training_keys") == (record.copy_id in copies_in_training(vault))
            if begun:
                vault.mark_written(record, key, WHOLE, is_issued=True)
            Vault(vault.folder)

            assert key not in vault_bytes(vault)

    def test_that_ended_in_a_copy_of_the_folder_is_ended_here_by_a_merge(self, vault, base, tmp_path):
        record, key = begin_training(vault, base, "alice")
        shutil.copytree(vault.folder, tmp_path / "clone")
        clone = Vault(tmp_path / "clone")
        clone.mark_written(record, key, WHOLE, is_issued=True)
        merge(vault, take_snapshot(clone))

        assert [copy.state for copy in vault.copies()] == ["issued"]
        assert key not in vault_bytes(vault)

    def test_does_not_stop_the_vault_from_issuing_and_tracing(self, vault, base, template, tmp_path):
        begin_training(vault, base, "alice")
        with Issuer(template / "model", vault) as issuer:
            issuer.issue("alice", tmp_path / "copy")
        result = trace(tmp_path / "copy", vault, passphrase=PASSPHRASE)

        assert [score.recipient for score in result.accused] == ["alice"]
        assert result.recipients_tested == 2
        assert len(copies_in_training(vault)) == 1


class TestForgetting:
    def test_deletes_an_abandoned_training(self, vault, base, template):
        record, key = begin_training(vault, base, "alice")
        _, other = begin_training(vault, base, "bob")
        assert forget_copy(vault, record.copy_id) == record

        content = vault_bytes(vault)
        assert key not in content
        assert record.sealed not in content
        assert other in content
        assert [copy.recipient for copy in vault.copies()] == ["bob"]
        result = trace(template / "model", vault, passphrase=PASSPHRASE, all_scores=True)
        assert [score.recipient for score in result.scores] == ["bob"]
        assert begin_training(vault, base, "alice")[1] != key

    def test_deletes_an_unfinished_copy(self, vault, base):
        record, _ = vault.begin_copy(base, "alice", "somewhere")
        forget_copy(vault, record.copy_id)

        assert vault.copies() == []

    @pytest.mark.parametrize("is_issued", [False, True])
    def test_keeps_a_finished_copy(self, vault, base, is_issued):
        record, key = begin_training(vault, base, "alice")
        done = vault.mark_written(record, key, WHOLE, is_issued=is_issued)

        assert "may have been delivered" in refusal(lambda: forget_copy(vault, record.copy_id))
        assert vault.copies() == [done]

    @pytest.mark.parametrize("what", ["training alice", "/out/alice"])
    def test_is_refused_while_a_process_works_on_the_copy(self, vault, base, what):
        record, key = begin_training(vault, base, "alice", "/out/alice")
        lock = acquire_lock(vault, base, what, "busy")

        assert "is working on" in refusal(lambda: forget_copy(vault, record.copy_id))
        assert key in vault_bytes(vault)
        lock.release()
        forget_copy(vault, record.copy_id)

    def test_of_no_record_is_refused(self, vault):
        assert "no record 0123" in refusal(lambda: forget_copy(vault, "0123"))

    def test_is_not_undone_by_a_merge(self, vault, base, tmp_path):
        record, key = begin_training(vault, base, "alice")
        shutil.copytree(vault.folder, tmp_path / "clone")
        clone = Vault(tmp_path / "clone")
        forget_copy(vault, record.copy_id)
        merge(vault, take_snapshot(clone))
        assert vault.copies() == []

        done = clone.mark_written(record, key, WHOLE, is_issued=True)  # it was finished after all: it must trace
        merge(vault, take_snapshot(clone))
        assert vault.copies() == [done]
        assert key not in vault_bytes(vault)

    def test_by_the_command_line(self, vault, base, capsys):
        record, key = begin_training(vault, base, "alice")

        assert main(["vault", "forget", record.copy_id, "--vault", str(vault.folder)]) == 0
        assert f"{record.copy_id} (alice)" in capsys.readouterr().out
        assert main(["vault", "forget", record.copy_id, "--vault", str(vault.folder)]) == 2
        assert key not in vault_bytes(vault)


class TestAVaultForAnIdentityElsewhere:
    """For a machine that marks copies and must not be able to trace: it holds a public key and no identity."""

    @pytest.fixture
    def identity(self):
        return new_identity()

    def test_marks_and_traces_where_the_identity_is(self, identity, template, tmp_path):
        secret, public = identity
        marking = Vault.create(tmp_path / "marking", public_key=public)
        with Issuer(template / "model", marking, PLAIN_SETTINGS) as issuer:
            issuer.issue("alice", tmp_path / "copy")
        (tmp_path / "identity.age").write_bytes(lock_quickly(secret, PASSPHRASE))

        assert [path.name for path in marking.folder.iterdir() if path.name.endswith(".age")] == []
        assert marking.public_key == public
        refusal(lambda: marking.unlock(PASSPHRASE))
        marking.unlock(PASSPHRASE, tmp_path / "identity.age")
        assert [score.recipient for score in trace(tmp_path / "copy", marking).accused] == ["alice"]

    def test_trains_too(self, identity, template, tmp_path):
        secret, public = identity
        marking = Vault.create(tmp_path / "marking", public_key=public)
        record, key = begin_training(marking, register(template / "model", marking, PLAIN_SETTINGS), "alice")

        sealed = pyrage.decrypt(record.sealed, [pyrage.x25519.Identity.from_str(secret)])
        assert key.hex().encode() in sealed

    def test_is_readable_by_its_owner_only(self, identity, tmp_path):
        vault = Vault.create(tmp_path / "marking", public_key=identity[1])

        assert stat.S_IMODE((vault.folder / "vault.db").stat().st_mode) == 0o600

    def test_does_not_open_with_another_identity(self, identity, tmp_path):
        vault = Vault.create(tmp_path / "marking", public_key=identity[1])
        (tmp_path / "other.age").write_bytes(lock_quickly(new_identity()[0], PASSPHRASE))

        said = refusal(lambda: vault.unlock(PASSPHRASE, tmp_path / "other.age"), error=FingerprintError)
        assert "is not that of" in said

    def test_an_identity_in_its_place_is_refused_unseen(self, identity, tmp_path):
        secret, _ = identity
        for spelling in (secret, secret.lower(), f" {secret}\n"):
            said = refusal(lambda spelling=spelling: Vault.create(tmp_path / "marking", public_key=spelling))
            assert "tracing identity, not its public key" in said
            assert secret[20:40].lower() not in said.lower()
        assert not (tmp_path / "marking").exists()

    @pytest.mark.parametrize("key", ["", "age1", "ssh-ed25519 AAAA", "age1" + "q" * 58])
    def test_what_is_no_key_is_refused(self, tmp_path, key):
        assert "not an age public key" in refusal(lambda: Vault.create(tmp_path / "marking", public_key=key))
        assert not (tmp_path / "marking").exists()

    def test_an_existing_vault_is_left_alone(self, identity, vault):
        before = vault_bytes(vault)

        assert "already holds a vault" in refusal(lambda: Vault.create(vault.folder, public_key=identity[1]))
        assert vault_bytes(vault) == before


class TestTheCommand:
    def test_makes_a_vault_that_only_marks(self, tmp_path, capfd):
        _, public = new_identity()
        code = main(["vault", "init", str(tmp_path / "marking"), "--public-key", public])
        out, err = capfd.readouterr()

        assert (code, err) == (0, "")
        assert "marks copies" in out
        assert Vault(tmp_path / "marking").public_key == public
        assert not (tmp_path / "marking" / "identity.age").exists()

    def test_asks_for_no_passphrase(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_fingerprint.vault.find_passphrase", lambda *_, **__: pytest.fail("prompted"))

        assert main(["vault", "init", str(tmp_path / "marking"), "--public-key", new_identity()[1]]) == 0

    @pytest.mark.parametrize("lower", [False, True])
    def test_refuses_an_identity_without_repeating_it(self, tmp_path, capfd, lower):
        secret = new_identity()[0]
        given = secret.lower() if lower else secret
        code = main(["vault", "init", str(tmp_path / "marking"), "--public-key", given])
        out, err = capfd.readouterr()

        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert len(err.splitlines()) == 1
        for length in (58, 20, 10):
            assert secret[16 : 16 + length].lower() not in (out + err).lower()
        assert not (tmp_path / "marking").exists()

    def test_refuses_what_is_no_key(self, tmp_path, capfd):
        assert main(["vault", "init", str(tmp_path / "marking"), "--public-key", "age1nonsense"]) == 2
        assert "age1nonsense" not in capfd.readouterr().err


def test_a_kept_key_says_the_codeword_that_is_trained(vault, base):
    _, key = begin_training(vault, base, "alice")
    again = begin_training(Vault(vault.folder), base, "alice")[1]

    assert np.array_equal(base.codebook().codeword(key), base.codebook().codeword(again))
