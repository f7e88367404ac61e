import base64
import json
import logging
import shutil
import stat
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_fingerprint import Vault
from hf_fingerprint.errors import FingerprintError, HubError, PassphraseError, VaultError
from hf_fingerprint.hub import api as hub_client
from hf_fingerprint.hub import vault_repo as module
from hf_fingerprint.hub.vault_repo import pull_vault, push_vault
from hf_fingerprint.keys import commitment, new_secret
from hf_fingerprint.registration import register
from hf_fingerprint.vault import begin_publication, begin_training
from hf_fingerprint.vault.issuers import add_issuer, issuers, new_issuer_key, open_issuer_key, remove_issuer
from hf_fingerprint.vault.merging import MergeReport
from hf_fingerprint.vault.packing import take_snapshot
from hf_fingerprint.vault.rotation import rotate
from hf_fingerprint.vault.sealing import AgeIdentity, new_identity, open_identity, seal
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import Fault, LoopbackHub
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, bytes_of, names_in, new_vault, save_plain


WHOLE = "f0" * 32
TOKEN = "hf_the-owner-of-org"
REPO = "org/keys"
refusal = partial(refused, error=FingerprintError)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on 127.0.0.1, and this process logged in there as a member of `org`."""
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        server.account("owner", orgs={"org"}, token=TOKEN)
        server.account("reader", orgs={"org"}, token="hf_reader", role="read")
        server.account("stranger", token="hf_stranger")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        wait = hub_client._delay
        monkeypatch.setattr(hub_client, "_delay", lambda *arguments: None if wait(*arguments) is None else 0.0)
        yield server


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A vault with a base, one issuer and copies of two recipients."""
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "vault")
    register(save_plain(root / "model"), vault, PLAIN_SETTINGS)
    add_issuer(vault, new_issuer_key(root / "ci.key"), "ci")
    for name in ("Ariadne-of-Naxos", "Bartholomew-Ltd"):
        written(vault, name)
    return root


def written(vault: Vault, name: str) -> bytes:
    record, key = vault.begin_copy(vault.bases()[0], name, f"/copies/{name}")
    vault.mark_written(record, key, WHOLE)
    return key


def names(vault: Vault) -> list[str]:
    return sorted(record.recipient for record in vault.copies())


@pytest.fixture
def vault(template, tmp_path):
    """The owner's, unlocked."""
    vault = Vault(shutil.copytree(template / "vault", tmp_path / "vault"))
    vault.unlock(PASSPHRASE)
    return vault


@pytest.fixture
def ci(template):
    return open_issuer_key(template / "ci.key")


def held(hub: LoopbackHub) -> SimpleNamespace:
    repo = hub.datasets[REPO]
    head = repo.commits[repo.refs["main"]]
    return SimpleNamespace(repo=repo, files=head.files, head=head, commits=len(repo.commits))


class TestPushing:
    def test_makes_a_private_dataset_repo_with_the_vault_in_one_commit(self, hub, vault):
        pushed = push_vault(vault, REPO)

        now = held(hub)
        assert now.repo.private
        assert hub.repos == {}
        assert set(now.files) == {"vault.age", "README.md", ".gitattributes"}
        assert now.files["vault.age"].startswith(b"age-encryption.org/v1\n")
        assert b"private" in now.files["README.md"]
        assert now.commits == 2
        assert (pushed.revision, pushed.new) == (now.head.sha, True)
        assert pushed.merged == MergeReport()
        sent = [json.loads(line) for r in hub.received if "/commit/" in r.path for line in r.body.splitlines()]
        assert sent[0]["value"]["parentCommit"] == now.head.parent

    def test_what_is_there_already_is_not_pushed_again(self, hub, vault):
        first = push_vault(vault, REPO)

        second = push_vault(vault, REPO)

        assert (second.revision, second.new) == (first.revision, False)
        assert held(hub).commits == 2

    def test_what_is_new_is_one_commit_more(self, hub, vault):
        push_vault(vault, REPO)
        written(vault, "Cassandra-GmbH")

        assert push_vault(vault, REPO).new
        assert held(hub).commits == 3
        assert not push_vault(vault, REPO).new

    def test_two_issuers_records_come_together(self, hub, vault, template, ci, tmp_path):
        push_vault(vault, REPO)
        runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
        written(runner, "of the runner"), written(vault, "of the owner")

        assert push_vault(runner, REPO, ci).merged == MergeReport()
        assert push_vault(vault, REPO).merged == MergeReport(copies=1)
        pull_vault(REPO, runner.folder, ci)

        everyone = ["Ariadne-of-Naxos", "Bartholomew-Ltd", "of the owner", "of the runner"]
        assert names(vault) == names(runner) == everyone
        assert take_snapshot(vault) == take_snapshot(runner)
        assert len(set(vault.copy_keys(vault.copies()))) == 4

    @pytest.mark.parametrize("rounds", [1, 3])
    def test_a_concurrent_push_is_merged(self, hub, vault, ci, tmp_path, monkeypatch, rounds):
        push_vault(vault, REPO)
        runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
        written(vault, "mine")
        real, busy = module.pack_snapshot, []

        def meanwhile(snapshot):
            packed = real(snapshot)
            if len(busy) < rounds:
                busy.append(1)
                written(runner, f"theirs {len(busy)}")
                with monkeypatch.context() as patch:
                    patch.setattr(module, "pack_snapshot", real)
                    push_vault(runner, REPO, ci)
            return packed

        monkeypatch.setattr(module, "pack_snapshot", meanwhile)
        pushed = push_vault(vault, REPO)

        assert pushed.merged.copies == rounds
        assert pushed.revision == held(hub).head.sha
        found, _ = pull_vault(REPO, tmp_path / "found", vault.age_identity())
        theirs = [f"theirs {number + 1}" for number in range(rounds)]
        assert names(found) == sorted(["Ariadne-of-Naxos", "Bartholomew-Ltd", "mine", *theirs])

    def test_that_is_never_let_in_is_given_up_in_a_sentence(self, hub, vault):
        push_vault(vault, REPO)
        written(vault, "mine")
        hub.faults.append(Fault(match="POST .*/commit/", status=412, times=100))

        assert REPO in refusal(push_vault, vault, REPO, error=HubError)
        hub.faults.clear()
        assert push_vault(vault, REPO).new

    def test_without_a_key_it_does_not_replace_what_is_there(self, hub, vault):
        push_vault(vault, REPO)
        locked = Vault(vault.folder)
        written(locked, "new")
        before = held(hub).head

        assert "identity" in refusal(push_vault, locked, REPO)
        assert "identity" in refusal(push_vault, locked, REPO, AgeIdentity(new_identity()[0]))
        assert held(hub).head == before

    def test_without_a_key_it_fills_an_empty_repo(self, hub, vault):
        assert push_vault(Vault(vault.folder), REPO).new

    @pytest.mark.parametrize("kind", ["conflict", "junk", "another vault"])
    def test_what_contradicts_it_is_not_overwritten(self, hub, vault, ci, tmp_path, kind):
        push_vault(vault, REPO)
        said = REPO
        if kind == "junk":
            held(hub).repo.commit({"vault.age": b"junk"})
        elif kind == "another vault":
            other = new_vault(tmp_path / "other")
            add_issuer(other, ci.public_key, "ci")
            push_vault(other, "org/others")
            held(hub).repo.commit({"vault.age": hub.datasets["org/others"].commits[
                hub.datasets["org/others"].refs["main"]].files["vault.age"]})  # fmt: skip
        else:
            runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
            record, key = runner.copies()[0], new_secret()
            sealed = seal(key, record.copy_id, record.base_id, record.recipient, runner.public_key)
            with runner.connect() as connection:
                connection.execute(
                    "UPDATE copies SET sealed = ?, commitment = ? WHERE copy_id = ?",
                    (sealed, commitment(key, record.recipient, WHOLE), record.copy_id),
                )
            said = record.copy_id
            assert said in refusal(push_vault, runner, REPO, ci)
            with runner.connect() as connection:  # it leaves the honest record out, and pushes with the client alone
                connection.execute("DELETE FROM copies WHERE copy_id != ?", (record.copy_id,))
            held(hub).repo.commit({"vault.age": module.pack_snapshot(take_snapshot(runner))})
        before, mine = held(hub).head, take_snapshot(vault)

        assert said in refusal(push_vault, vault, REPO, ci, error=VaultError)
        assert held(hub).head == before
        assert take_snapshot(vault) == mine

    def test_a_record_there_that_does_not_open_is_named_and_not_pushed_again(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
        key = written(runner, "good")
        snapshot, rows = take_snapshot(runner), {}
        for row in runner.copies():
            bad = row if row.recipient == "good" else replace(row, commitment="00" * 32)
            rows[row.copy_id] = replace(bad, created="soon") if row.recipient == "Ariadne-of-Naxos" else bad
        held(hub).repo.commit({"vault.age": module.pack_snapshot(replace(snapshot, copies=rows))})

        with vault.connect() as connection:
            connection.execute("DELETE FROM copies WHERE recipient = 'Bartholomew-Ltd'")
        pushed = push_vault(vault, REPO)

        assert len(pushed.merged.refused) == 2
        assert pushed.merged.copies == 1
        assert key in vault.copy_keys(vault.copies())
        again = push_vault(vault, REPO)
        assert again.merged == MergeReport()
        assert not again.new

    def test_a_row_here_that_cannot_be_used_replaces_none_there(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        before = take_snapshot(vault)
        with vault.connect() as connection:
            connection.execute("UPDATE copies SET sealed = x'00' WHERE recipient = 'Ariadne-of-Naxos'")
        written(vault, "new")

        pushed = push_vault(vault, REPO)

        assert [fault.table for fault in pushed.merged.unusable] == ["copies"]
        found, _ = pull_vault(REPO, tmp_path / "runner", ci)
        assert names(found) == ["Ariadne-of-Naxos", "Bartholomew-Ltd", "new"]
        assert before.copies.items() <= take_snapshot(found).copies.items()

    def test_a_pack_beyond_the_limit_is_not_fetched(self, hub, vault, ci, tmp_path, monkeypatch):
        push_vault(vault, REPO)
        monkeypatch.setattr(module, "MAX_PACK", 1000)
        before = hub.bytes_sent

        assert "MB" in refusal(pull_vault, REPO, tmp_path / "new", ci, error=HubError)
        assert "MB" in refusal(push_vault, vault, REPO, error=HubError)
        assert hub.bytes_sent - before < 20_000
        assert not any("resolve" in call.path for call in hub.calls[-4:])


class TestTheRepo:
    def test_that_is_public_is_refused(self, hub, vault, ci, tmp_path):
        hub.add(REPO, {".gitattributes": b""}, kind="dataset")

        assert "public" in refusal(push_vault, vault, REPO, error=HubError)
        assert held(hub).commits == 1
        push_vault(vault, "org/private")
        hub.datasets["org/private"].private = False
        assert "public" in refusal(pull_vault, "org/private", tmp_path / "new", ci, error=HubError)
        assert not (tmp_path / "new").exists()
        assert "public" in refusal(push_vault, vault, "org/private", error=HubError)

    @pytest.mark.parametrize("repo", ["org/alice", "Org/Alice"])
    def test_that_is_a_copys_is_refused(self, hub, vault, repo):
        begin_publication(vault, vault.copies()[0].copy_id, "org/alice", {})
        hub.account("owner", orgs={"Org"})

        assert repo in refusal(push_vault, vault, repo, error=HubError)
        assert hub.datasets == {}
        assert hub.received == []

    def test_that_turns_out_to_be_a_copys_is_refused(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        begin_publication(vault, vault.copies()[0].copy_id, REPO, {})
        held(hub).repo.commit({"vault.age": module.pack_snapshot(take_snapshot(vault))})

        refusal(pull_vault, REPO, tmp_path / "new", ci, error=HubError)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "data/train.csv", "vault.db"])
    def test_that_holds_anything_else_is_refused(self, hub, vault, ci, tmp_path, name):
        hub.add(REPO, {name: b"x"}, private=True, kind="dataset")

        assert name in refusal(push_vault, vault, REPO, error=HubError)
        assert name in refusal(pull_vault, REPO, tmp_path / "new", ci, error=HubError)
        assert held(hub).commits == 1

    def test_keeps_its_owners_readme(self, hub, vault):
        hub.add(REPO, {"README.md": b"mine"}, private=True, kind="dataset")

        push_vault(vault, REPO)

        assert held(hub).files["README.md"] == b"mine"

    def test_that_holds_no_vault_is_not_pulled(self, hub, tmp_path, ci):
        hub.add(REPO, {"README.md": b"mine"}, private=True, kind="dataset")

        assert REPO in refusal(pull_vault, REPO, tmp_path / "new", ci, error=HubError)
        assert "org/none" in refusal(pull_vault, "org/none", tmp_path / "new", ci, error=HubError)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("repo", ["", "a/b/c", "../up", "org/", "no name"])
    def test_that_cannot_be_is_refused(self, hub, vault, ci, tmp_path, repo):
        refusal(push_vault, vault, repo)
        refusal(pull_vault, repo, tmp_path / "new", ci)

    @pytest.mark.parametrize("token", ["hf_stranger", "hf_reader", "hf_expired", None])
    def test_is_closed_to_those_who_may_not(self, hub, vault, ci, tmp_path, token, monkeypatch):
        push_vault(vault, REPO)
        written(vault, "new")
        before = held(hub).head
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")

        assert REPO in refusal(push_vault, vault, REPO)
        if token != "hf_reader":
            assert REPO in refusal(pull_vault, REPO, tmp_path / "new", ci)
        assert held(hub).head == before

    def test_on_a_hub_that_is_down_is_refused_in_a_sentence(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        hub.stop()

        assert REPO in refusal(push_vault, vault, REPO)
        assert REPO in refusal(pull_vault, REPO, tmp_path / "new", ci)


class TestPulling:
    def test_makes_a_vault_that_issues_and_does_not_trace(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)

        found, report = pull_vault(REPO, tmp_path / "deep" / "runner", ci)

        assert report == MergeReport(bases=1, copies=2, issuers=report.issuers)
        assert names_in(found.folder) == ["vault.db"]
        assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((found.folder / "vault.db").stat().st_mode) == 0o600
        assert found.public_key == vault.public_key
        assert found.bases() == vault.bases()
        assert take_snapshot(found) == take_snapshot(vault)
        refusal(found.copy_key, found.copies()[0], error=PassphraseError)

    def test_restores_the_vault_of_the_identity(self, hub, vault, tmp_path):
        push_vault(vault, REPO)
        (tmp_path / "restored").mkdir()
        shutil.copy(vault.folder / "identity.age", tmp_path / "restored")

        found, _ = pull_vault(REPO, tmp_path / "restored", vault.age_identity())

        found.unlock(PASSPHRASE)
        assert found.copy_keys(found.copies()) == vault.copy_keys(vault.copies())

    def test_again_brings_what_is_new(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        found, _ = pull_vault(REPO, tmp_path / "runner", ci)
        before = bytes_of(found.folder)
        assert pull_vault(REPO, tmp_path / "runner", ci)[1] == MergeReport()
        assert take_snapshot(found) == take_snapshot(vault)
        assert names_in(found.folder) == sorted(before)
        written(vault, "new")
        push_vault(vault, REPO)

        assert pull_vault(REPO, tmp_path / "runner", ci)[1] == MergeReport(copies=1)

    def test_into_a_new_folder_is_refused_if_another_identity_was_expected(self, hub, vault, ci, tmp_path):
        """Who may write to the repo may put another vault there, sealed to an identity of its own."""
        push_vault(vault, REPO)
        rogue = new_vault(tmp_path / "rogue", "x")
        add_issuer(rogue, ci.public_key, "ci")
        held(hub).repo.commit({"vault.age": module.pack_snapshot(take_snapshot(rogue))})

        text = refusal(pull_vault, REPO, tmp_path / "runner", ci, vault.public_key, error=VaultError)
        assert vault.public_key in text
        assert not (tmp_path / "runner").exists()
        push_vault(vault, "org/again")
        pull_vault("org/again", tmp_path / "runner", ci, vault.public_key)

    def test_a_large_vault_goes_as_lfs(self, hub, vault, ci, tmp_path, monkeypatch):
        monkeypatch.setattr("tests.helpers.loopback_hub_repos.LFS_SIZE", 1000)
        push_vault(vault, REPO)
        written(vault, "new")
        push_vault(vault, REPO)

        found, _ = pull_vault(REPO, tmp_path / "runner", ci)

        assert held(hub).head.blobs["vault.age"].sha256
        assert take_snapshot(found) == take_snapshot(vault)

    def test_with_another_key_makes_nothing(self, hub, vault, tmp_path):
        push_vault(vault, REPO)

        refusal(pull_vault, REPO, tmp_path / "new", AgeIdentity(new_identity()[0]), error=VaultError)
        assert not (tmp_path / "new").exists()

    def test_a_removed_issuer_does_not_open_what_is_pushed_from_then_on(self, hub, vault, ci, tmp_path):
        push_vault(vault, REPO)
        remove_issuer(vault, "ci")
        assert push_vault(vault, REPO).new

        refusal(pull_vault, REPO, tmp_path / "new", ci, error=VaultError)
        assert issuers(vault) == {}

    def test_into_another_vaults_folder_is_refused(self, hub, vault, tmp_path):
        push_vault(vault, REPO)
        other = new_vault(tmp_path / "other")
        before = bytes_of(other.folder)

        assert "rotate" in refusal(pull_vault, REPO, other.folder, open_issuer(vault, tmp_path))
        assert bytes_of(other.folder) == before

    def test_cut_off_between_making_and_filling_it_is_mended_by_doing_it_again(
        self, hub, vault, ci, tmp_path, monkeypatch
    ):
        push_vault(vault, REPO)
        monkeypatch.setattr(module, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pull_vault(REPO, tmp_path / "runner", ci)
        monkeypatch.undo()
        hub.point_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)

        found, _ = pull_vault(REPO, tmp_path / "runner", ci)

        assert take_snapshot(found) == take_snapshot(vault)


def open_issuer(vault: Vault, folder: Path) -> AgeIdentity:
    """A key that opens the vault and, for others' records, nothing."""
    add_issuer(vault, new_issuer_key(folder / "another.key"), "another")
    push_vault(vault, REPO)
    return open_issuer_key(folder / "another.key")


class TestAfterARotation:
    @pytest.fixture
    def rotated(self, hub, vault, ci, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_fingerprint.vault.rotation.encrypt_identity", lock_quickly)
        push_vault(vault, REPO)
        runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
        done = rotate(vault, "new")
        done.vault.unlock("new")
        return SimpleNamespace(vault=done.vault, runner=runner, old=open_identity(done.old_identity_file, PASSPHRASE))

    def test_the_vault_there_is_replaced_with_the_old_identity_at_hand(self, hub, rotated, vault, ci, tmp_path):
        written(rotated.runner, "of the runner")
        push_vault(rotated.runner, REPO, ci)

        refusal(push_vault, rotated.vault, REPO, error=VaultError)
        pushed = push_vault(rotated.vault, REPO, rotated.old)

        assert pushed.merged == MergeReport(copies=1)
        refusal(pull_vault, REPO, tmp_path / "old", rotated.old, error=VaultError)
        found, _ = pull_vault(REPO, tmp_path / "found", rotated.vault.age_identity())
        assert take_snapshot(found) == take_snapshot(rotated.vault)
        found.unlock("new", rotated.vault.folder / "identity.age")
        assert len(found.copy_keys(found.copies())) == 3
        assert not push_vault(rotated.vault, REPO).new

    def test_an_issuer_from_before_the_rotation_gets_an_error(self, hub, rotated, ci):
        push_vault(rotated.vault, REPO, rotated.old)

        assert "identity" in refusal(push_vault, rotated.runner, REPO, ci)
        assert "identity" in refusal(pull_vault, REPO, rotated.runner.folder, ci)

    def test_and_pulls_into_a_new_folder(self, hub, rotated, ci, tmp_path):
        push_vault(rotated.vault, REPO, rotated.old)

        found, _ = pull_vault(REPO, tmp_path / "again", ci)

        written(found, "new")
        assert push_vault(found, REPO, ci).new
        assert push_vault(rotated.vault, REPO).merged.copies == 1
        assert len(rotated.vault.copy_keys(rotated.vault.copies())) == 3


REQUESTS = ["GET /api/datasets", "POST /api/repos/create", "POST .*preupload", "POST .*/commit/", "GET .*resolve", ""]
WRONG = [("status", 500), ("status", 429), ("status", 401), ("status after", 500), ("cut before", 0), ("cut after", 0),
         ("cut within", 0)]  # fmt: skip


@pytest.mark.integration
class TestCutOff:
    @pytest.mark.parametrize("match", REQUESTS)
    @pytest.mark.parametrize(("kind", "status"), WRONG)
    @pytest.mark.parametrize("first", [False, True])
    def test_anywhere_a_push_is_mended_by_doing_it_again(
        self, hub, vault, ci, tmp_path, match, kind, status, first, monkeypatch
    ):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        everyone = [*names(vault), "new"]
        if not first:
            push_vault(vault, REPO)
            runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
            written(runner, "theirs")
            push_vault(runner, REPO, ci)
            everyone.append("theirs")
        written(vault, "new")
        hub.faults.append(Fault(match=match, kind=kind, status=status or 503, times=30 if kind == "status" else 1))
        try:
            push_vault(vault, REPO)
        except FingerprintError as error:
            assert REPO in str(error)
            assert len(str(error).splitlines()) == 1
            assert TOKEN not in "".join(traceback.format_exception(error))
        hub.faults.clear()
        Vault(vault.folder)

        push_vault(vault, REPO)

        found, _ = pull_vault(REPO, tmp_path / "found", ci)
        assert names(found) == names(vault) == sorted(everyone)
        assert held(hub).repo.private
        assert held(hub).commits == (2 if first else 4)

    @pytest.mark.parametrize("match", ["GET /api/datasets", "GET .*resolve", ""])
    @pytest.mark.parametrize(("kind", "status"), WRONG)
    def test_anywhere_a_pull_is_mended_by_doing_it_again(
        self, hub, vault, ci, tmp_path, match, kind, status, monkeypatch
    ):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        push_vault(vault, REPO)
        hub.faults.append(Fault(match=match, kind=kind, status=status or 503, times=30 if kind == "status" else 1))
        try:
            pull_vault(REPO, tmp_path / "new", ci)
        except FingerprintError as error:
            assert REPO in str(error)
            assert not (tmp_path / "new").exists()
        hub.faults.clear()

        found, _ = pull_vault(REPO, tmp_path / "new", ci)

        assert take_snapshot(found) == take_snapshot(vault)


class TestSecrets:
    def spellings(self, secret: bytes) -> list[bytes]:
        """A secret, unencoded and in every encoding that may be written."""
        found = [secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
        for shift in range(3):  # of the bytes before it
            for coded in (base64.b64encode, base64.urlsafe_b64encode):
                found.append(coded(bytes(shift) + secret)[4 if shift else 0 : -4])
        return found

    def test_not_one_byte_of_them_reaches_the_hub_the_logs_or_the_disk(
        self, hub, vault, ci, tmp_path, monkeypatch, caplog
    ):
        caplog.set_level(logging.DEBUG)
        monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
        errors = []
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        (tmp_path / "tmp").mkdir()
        key = written(vault, "Cassandra-GmbH")
        _, training_key = begin_training(vault, vault.bases()[0], "Dionysos-AG")
        push_vault(vault, REPO)
        runner, _ = pull_vault(REPO, tmp_path / "runner", ci)
        runner_key = written(runner, "Electra-SA")
        hub.faults += [Fault(match="POST .*/commit/", kind="cut after"), Fault(match="GET .*resolve", status=500)]
        for _ in range(3):
            try:
                push_vault(runner, REPO, ci)
            except FingerprintError as error:
                errors += traceback.format_exception(error)
        push_vault(vault, REPO)
        refusal(push_vault, Vault(vault.folder), REPO, AgeIdentity(new_identity()[0]))
        assert names(vault) == sorted([*names(runner), "Dionysos-AG"])

        base = vault.bases()[0]
        secrets = [base.secret, key, training_key, runner_key, *vault.copy_keys(vault.copies())]
        include_identities = [str(vault.age_identity()._identity), str(ci._identity)]
        texts = [*names(vault), *include_identities, PASSPHRASE, base.base_id, *(c.copy_id for c in vault.copies())]
        texts += [copy.commitment for copy in vault.copies() if copy.commitment] + [
            copy.out for copy in vault.copies()
        ]
        secrets += [text.encode() for text in texts if text]
        secrets += [row.sealed[60:] for row in vault.copies()]
        looked_for = [part for secret in secrets for part in self.spellings(secret)]
        sent = []
        for request in hub.received:
            sent += [request.path.encode(), json.dumps(request.headers).encode(), request.body]
            for line in request.body.splitlines() if "/commit/" in request.path else []:
                sent.append(base64.b64decode(json.loads(line)["value"].get("content", "")))
        kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
        assert len(sent) > 60
        assert errors
        assert "127.0.0.1" in caplog.text, "nothing was logged, so nothing was tested"
        assert any(piece.startswith(b"age-encryption.org") for piece in sent)
        everything = b"\0".join(
            [*sent, *(path.read_bytes() for path in kept), caplog.text.encode(), *map(str.encode, errors)]
        )
        assert [part for part in looked_for if part in everything] == []

    def test_the_search_finds_what_it_looks_for(self):
        secret = bytes(range(200, 232))
        for hidden in (b"x" + secret, secret.hex().encode(), *(base64.b64encode(b"." * n + secret) for n in range(7))):
            assert any(part in hidden for part in self.spellings(secret)), hidden

    def test_nothing_is_left_next_to_the_vault(self, hub, vault, ci, tmp_path):
        before = set(names_in(vault.folder))
        push_vault(vault, REPO)
        push_vault(vault, REPO)
        pull_vault(REPO, tmp_path / "runner", ci)

        assert set(names_in(vault.folder)) == before
        assert names_in(tmp_path / "runner") == ["vault.db"]
