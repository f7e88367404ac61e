import copy
import gc
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from hf_fingerprint import Issuer, Vault, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.codes import decode
from hf_fingerprint.errors import VaultError
from hf_fingerprint.extraction import extract
from hf_fingerprint.keys import commitment
from hf_fingerprint.registration import register
from hf_fingerprint.training import DeepMarksLoss, Fingerprint
from hf_fingerprint.vault import begin_training, copies_in_training
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, SETTINGS, WEAK_SETTINGS, new_vault, save_timm, save_vit, vault_bytes


pytestmark = pytest.mark.integration
INNOCENTS = 3000


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A base and a vault that knows it; each test works on a copy of the vault."""
    root = tmp_path_factory.mktemp("template")
    save_timm(root / "model", "test_resnet")
    register(root / "model", new_vault(root / "vault"), WEAK_SETTINGS)
    return root


@pytest.fixture
def base(template) -> Path:
    return template / "model"


@pytest.fixture
def vault(template, tmp_path) -> Vault:
    shutil.copytree(template / "vault", tmp_path / "vault")
    return Vault(tmp_path / "vault")


def load(folder) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).train()


def train(model: torch.nn.Module, deepmarks: DeepMarksLoss | None, steps: int = 6) -> torch.nn.Module:
    """A few steps on labeled noise."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 64, 64, generator=generator)
        labels = torch.randint(0, 1000, (4,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        (loss if deepmarks is None else loss + deepmarks()).backward()
        optimizer.step()
    return model


def save(model: torch.nn.Module, folder: Path) -> Path:
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def trained_for(recipient: str, start: Path, vault: Vault, out: Path) -> Fingerprint:
    """A finished training, saved and not yet recorded."""
    fingerprint, model = Fingerprint(start, recipient, vault), load(start)
    save(train(model, DeepMarksLoss(model, fingerprint)), out)
    return fingerprint


def accused(suspect: Path, vault: Vault) -> list[str]:
    return [score.recipient for score in trace(suspect, vault, passphrase=PASSPHRASE).accused]


def kept_key(vault: Vault, base: Path, recipient: str) -> bytes:
    with open_checkpoint(base) as checkpoint:
        _, key = begin_training(vault, register(checkpoint, vault), recipient)
    return key


class TestATrainedCopy:
    def test_a_trace_names_its_recipient_and_nobody_else(self, base, vault, tmp_path):
        with Issuer(base, vault) as issuer:
            list(issuer.issue_all(["bob", "carol", "dave"], tmp_path / "copies"))
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        recorded = fingerprint.record(tmp_path / "trained")
        result = trace(tmp_path / "trained", vault, passphrase=PASSPHRASE)

        assert [score.recipient for score in result.accused] == ["alice"]
        assert result.recipients_tested == 4
        assert result.accused[0].copy_id == recorded.copy_id
        assert result.accused[0].score == pytest.approx(recorded.score, rel=0.1)
        assert recorded.score > 5 * result.threshold
        assert recorded.agreement > 0.99
        for name in ("bob", "carol", "dave"):
            assert accused(tmp_path / "copies" / name, vault) == [name]

    def test_no_innocent_scores_as_high(self, base, vault, tmp_path):
        trained_for("alice", base, vault, tmp_path / "trained").record(tmp_path / "trained")
        vault.unlock(PASSPHRASE)
        (known,) = vault.bases()
        stream = np.random.default_rng(7)
        keys = [*vault.copy_keys(vault.copies()), *(stream.bytes(32) for _ in range(INNOCENTS))]
        with open_checkpoint(tmp_path / "trained") as suspect, open_checkpoint(base) as original:
            reading = extract(known, original, suspect)
        found = decode(known.codebook(), keys, reading.values, reading.mass, known.alpha)

        assert list(found.accused) == [0]
        assert found.scores[1:].max() < 5 < found.scores[0]

    def test_its_record_is_like_an_issued_copys(self, base, vault, tmp_path):
        recorded = trained_for("alice", base, vault, tmp_path / "trained").record(tmp_path / "trained")
        (record,) = vault.copies()
        vault.unlock(PASSPHRASE)

        assert (record.state, record.recipient, record.out) == ("issued", "alice", str(tmp_path / "trained"))
        assert record.commitment == commitment(vault.copy_key(record), "alice", recorded.content_hash)
        assert recorded.commitment == record.commitment
        assert recorded.recipient == "alice"
        assert json.loads(json.dumps(recorded.to_dict()))["path"] == str(tmp_path / "trained")
        assert str(recorded).replace("\n", " ").startswith(f"alice: {tmp_path}")
        assert recorded.content_hash not in repr(recorded)
        assert register(base, vault).base_id == recorded.base_id

    def test_recording_twice_is_recording_once(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")

        assert fingerprint.record(tmp_path / "trained") == fingerprint.record(str(tmp_path / "trained"))
        assert len(vault.copies()) == 1

    def test_two_results_of_one_training_are_two_copies_with_one_mark(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        state = load_file(tmp_path / "trained" / "model.safetensors")
        average = {name: value * 1.0001 if value.is_floating_point() else value for name, value in state.items()}
        save_file(average, tmp_path / "ema.safetensors")
        first, second = fingerprint.record(tmp_path / "trained"), fingerprint.record(tmp_path / "ema.safetensors")

        assert first.copy_id != second.copy_id
        assert [record.state for record in vault.copies()] == ["issued", "issued"]
        vault.unlock(PASSPHRASE)
        assert len(set(vault.copy_keys(vault.copies()))) == 1
        assert set(accused(tmp_path / "ema.safetensors", vault)) == {"alice"}

    def test_the_next_training_has_a_mark_of_its_own(self, base, vault, tmp_path):
        first = trained_for("alice", base, vault, tmp_path / "first")
        first.record(tmp_path / "first")
        second = trained_for("alice", base, vault, tmp_path / "second")
        second.record(tmp_path / "second")
        vault.unlock(PASSPHRASE)

        assert len(set(vault.copy_keys(vault.copies()))) == 2
        result = trace(tmp_path / "second", vault)
        assert [score.copy_id for score in result.accused] == [vault.copies()[1].copy_id]


class TestNothingIsRecorded:
    def test_of_a_folder_without_the_mark(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        save(train(load(base), None), tmp_path / "unmarked")
        before = vault.copies()

        said = refused(lambda: fingerprint.record(tmp_path / "unmarked"))
        assert "does not carry the mark" in said
        assert "nothing was recorded" in said
        assert vault.copies() == before
        assert before[0].state == "begun"
        assert copies_in_training(vault) == {before[0].copy_id}
        assert fingerprint.record(tmp_path / "trained").recipient == "alice"

    def test_of_another_recipients_copy(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        with Issuer(base, vault) as issuer:
            issuer.issue("bob", tmp_path / "bob")

        assert "does not carry the mark" in refused(lambda: fingerprint.record(tmp_path / "bob"))

    def test_of_a_folder_with_the_vault_in_it(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        shutil.copytree(tmp_path / "trained", tmp_path, dirs_exist_ok=True)

        assert "move the vault out of it" in refused(lambda: fingerprint.record(tmp_path), error=VaultError)
        assert vault.copies()[0].state == "begun"

    def test_before_anything_was_trained(self, base, vault):
        assert "train a model with this fingerprint first" in refused(
            lambda: Fingerprint(base, "alice", vault).record(base)
        )
        assert vault.copies() == []

    def test_in_an_output_folder_that_holds_the_vault(self, base, vault, tmp_path):
        fingerprint = Fingerprint(base, "alice", vault)

        assert "move the vault out of it" in refused(
            lambda: fingerprint.check_output_folder(tmp_path), error=VaultError
        )
        fingerprint.check_output_folder(tmp_path / "elsewhere")

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 256])
    def test_for_what_is_no_name(self, base, vault, name):
        refused(lambda: Fingerprint(base, name, vault), error=VaultError)


class TestSecrets:
    def test_it_is_never_pickled_and_shows_nothing(self, base, vault, tmp_path):
        fingerprint = trained_for("Ariadne-of-Naxos", base, vault, tmp_path / "trained")

        assert "can't be pickled" in refused(lambda: pickle.dumps(fingerprint))
        assert copy.deepcopy(fingerprint) is fingerprint
        assert "Ariadne" not in repr(fingerprint)

    def test_the_kept_key_is_gone_from_every_file_once_recorded(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        key = kept_key(vault, base, "alice")
        assert key in vault_bytes(vault)
        fingerprint.record(tmp_path / "trained")

        assert key not in vault_bytes(vault)
        assert key.hex().encode() not in vault_bytes(vault)
        assert copies_in_training(vault) == set()

    def test_nor_does_a_second_connection_keep_it(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        key = kept_key(vault, base, "alice")
        with vault.connect() as other:
            other.execute("SELECT * FROM training").fetchall()
            fingerprint.record(tmp_path / "trained")
            assert (vault.folder / "vault.db-wal").exists()
            assert key not in vault_bytes(vault)

    def test_the_saved_model_holds_neither_key_nor_name(self, base, vault, tmp_path):
        fingerprint = trained_for("Ariadne-of-Naxos", base, vault, tmp_path / "trained")
        key = kept_key(vault, base, "Ariadne-of-Naxos")
        fingerprint.record(tmp_path / "trained")
        (known,) = vault.bases()

        written = b"".join(path.read_bytes() for path in (tmp_path / "trained").rglob("*") if path.is_file())
        for secret in (key, known.secret, key.hex().encode(), known.secret.hex().encode(), b"Ariadne"):
            assert secret not in written


class TestACrash:
    def test_the_same_codeword_goes_on(self, base, vault, tmp_path):
        code = (
            "import sys, os, timm, torch\n"
            "from timm.models import save_for_hf\n"
            "from hf_fingerprint.training import DeepMarksLoss, Fingerprint\n"
            "model = timm.create_model(f'local-dir:{sys.argv[1]}', pretrained=True)\n"
            "deepmarks = DeepMarksLoss(model, Fingerprint(sys.argv[1], 'alice', sys.argv[2]))\n"
            "save_for_hf(model, sys.argv[3], safe_serialization=True)\n"
            "print('training', flush=True)\n"
            "sys.stdin.read()\n"
            "os._exit(9)\n"
        )
        command = [sys.executable, "-c", code, str(base), str(vault.folder), str(tmp_path / "checkpoint")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "training\n"
            said = refused(lambda: Fingerprint(base, "alice", vault).bind(load(base)), error=VaultError)
            Fingerprint(base, "bob", vault).bind(load(base))
            other.stdin.close()
            assert other.wait() == 9
        assert "being trained already" in said
        resumed = Fingerprint(base, "alice", vault)
        model = load(tmp_path / "checkpoint")
        deepmarks = DeepMarksLoss(model, resumed, embed=False)
        deepmarks()

        assert deepmarks.metrics["fingerprint_agreement"] == 1.0
        assert len(vault.copies(recipient="alice")) == 1
        save(train(model, deepmarks), tmp_path / "trained")
        resumed.record(tmp_path / "trained")
        assert accused(tmp_path / "trained", vault) == ["alice"]

    def test_a_checkpoint_of_an_unfinished_training_traces(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "checkpoint")
        (record,) = vault.copies()

        assert record.state == "begun"
        assert accused(tmp_path / "checkpoint", vault) == ["alice"]
        assert fingerprint.record(tmp_path / "checkpoint").copy_id == record.copy_id

    @pytest.mark.parametrize(
        "cut",
        [
            "hf_fingerprint.vault.record_store.commitment",
            "hf_fingerprint.vault.record_store.wipe_training_keys",
            "hf_fingerprint.vault.record_store.clear_journal",
            "hf_fingerprint.training.fingerprint.TrainedCopy",
        ],
    )
    def test_anywhere_in_the_recording_is_mended_by_recording_again_and_leaves_no_key(
        self, base, vault, tmp_path, monkeypatch, cut
    ):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        key = kept_key(vault, base, "alice")
        with monkeypatch.context() as patched:
            patched.setattr(cut, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                fingerprint.record(tmp_path / "trained")
        (record,) = vault.copies()
        early = cut.endswith(("commitment", "wipe_training_keys"))
        assert (record.state == "begun") == (key in vault_bytes(vault)) == early
        recorded = fingerprint.record(tmp_path / "trained")

        assert key not in vault_bytes(vault)
        assert [(copy.copy_id, copy.state) for copy in vault.copies()] == [(recorded.copy_id, "issued")]
        assert accused(tmp_path / "trained", vault) == ["alice"]
        assert Fingerprint(base, "alice", vault).bind(load(base))

    def test_among_two_results_of_one_training_leaves_two_records(self, base, vault, tmp_path, monkeypatch):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        fingerprint.record(tmp_path / "trained")
        state = load_file(tmp_path / "trained" / "model.safetensors")
        save_file(
            {name: value * 1 for name, value in state.items()} | {"more": torch.ones(1)}, tmp_path / "two.safetensors"
        )
        with monkeypatch.context() as patched:
            patched.setattr(Vault, "mark_written", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                fingerprint.record(tmp_path / "two.safetensors")
        assert [copy.state for copy in vault.copies()] == ["issued", "begun"]
        fingerprint.record(tmp_path / "two.safetensors")

        assert [copy.state for copy in vault.copies()] == ["issued", "issued"]

    def test_that_an_earlier_version_left_before_the_end_is_ended(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        recorded = fingerprint.record(tmp_path / "trained")
        with vault.connect() as connection:
            connection.execute("UPDATE copies SET state = 'written'")

        assert fingerprint.record(tmp_path / "trained") == recorded
        assert [copy.state for copy in vault.copies()] == ["issued"]


class TestTwoAtOnce:
    def test_of_one_recipient_are_refused_until_the_first_is_recorded(self, base, vault, tmp_path):
        first = trained_for("alice", base, vault, tmp_path / "trained")
        said = refused(lambda: Fingerprint(base, "alice", vault).bind(load(base)), error=VaultError)
        assert "record that one first" in said
        first.record(tmp_path / "trained")

        assert Fingerprint(base, "alice", vault).bind(load(base))

    def test_of_two_recipients_go_well(self, base, vault, tmp_path):
        fingerprints = {name: trained_for(name, base, vault, tmp_path / name) for name in ("alice", "bob")}
        for name, fingerprint in fingerprints.items():
            fingerprint.record(tmp_path / name)

        assert [accused(tmp_path / name, vault) for name in fingerprints] == [["alice"], ["bob"]]

    def test_a_model_that_was_given_up_does_not_block_the_next(self, base, vault, tmp_path):
        fingerprint = trained_for("alice", base, vault, tmp_path / "trained")
        del fingerprint
        gc.collect()

        assert Fingerprint(base, "alice", vault).bind(load(base))
        assert len(vault.copies()) == 1


class TestAnIssuedCopyTrainedFurther:
    @pytest.fixture
    def copies(self, base, vault, tmp_path):
        with Issuer(base, vault) as issuer:
            list(issuer.issue_all(["alice", "bob"], tmp_path / "copies"))
        return tmp_path / "copies"

    def test_its_reading_stays_and_its_key_sealed(self, copies, vault, tmp_path):
        before = vault.copies()
        model, fingerprint = load(copies / "bob"), Fingerprint(copies / "bob", "bob", vault)
        deepmarks = DeepMarksLoss(model, fingerprint)
        regularizer = deepmarks.regularizer
        held = regularizer.extract().clone()
        train(model, deepmarks, steps=10)

        assert not vault.unlocked
        assert copies_in_training(vault) == set()
        assert float(regularizer.measure().agreement) == 1.0
        assert float((regularizer.extract() - held).square().mean()) < 5e-3
        recorded = fingerprint.record(save(model, tmp_path / "further"))
        assert recorded.commitment is None
        assert recorded.copy_id == before[1].copy_id
        assert recorded.recipient == "bob"
        assert vault.copies() == before
        assert accused(tmp_path / "further", vault) == ["bob"]

    def test_the_mark_would_have_faded_without(self, copies, vault):
        model, fingerprint = load(copies / "bob"), Fingerprint(copies / "bob", "bob", vault)
        regularizer = fingerprint.bind(model)
        before = float(regularizer.measure().loss)
        train(model, None, steps=10)

        assert before < 1e-6
        assert float(regularizer.measure().loss) > 1e-2

    def test_an_unlocked_vault_adds_a_committed_record(self, copies, vault, tmp_path):
        vault.unlock(PASSPHRASE)
        fingerprint = trained_for("bob", copies / "bob", vault, tmp_path / "further")
        recorded = fingerprint.record(tmp_path / "further")
        issued, further = vault.copies(recipient="bob")

        assert recorded.copy_id == further.copy_id != issued.copy_id
        key = vault.copy_key(further)
        assert key == vault.copy_key(issued)
        assert recorded.commitment == commitment(key, "bob", recorded.content_hash) == further.commitment
        assert set(accused(tmp_path / "further", vault)) == {"bob"}
        assert key not in vault_bytes(vault)

    def test_untouched_it_is_the_copy_that_was_issued(self, copies, vault):
        fingerprint = Fingerprint(copies / "bob", "bob", vault)
        DeepMarksLoss(load(copies / "bob"), fingerprint)
        recorded = fingerprint.record(copies / "bob")

        assert recorded.commitment == vault.copies(recipient="bob")[0].commitment
        assert len(vault.copies()) == 2

    def test_for_another_recipient_it_is_refused(self, copies, vault):
        said = refused(lambda: Fingerprint(copies / "bob", "alice", vault).bind(load(copies / "bob")))

        assert "is the copy of bob and not of alice" in said
        assert len(vault.bases()) == 1

    def test_with_an_ancestor_it_is_refused_and_nothing_is_recorded(self, copies, base, vault):
        said = refused(lambda: Fingerprint(copies / "bob", "bob", vault, ancestor=base).bind(load(copies / "bob")))

        assert "is a copy, and an ancestor stands in the record of its base" in said
        assert [each.ancestor for each in vault.bases()] == [None]

    def test_trained_further_off_the_record_it_is_no_base_unless_that_is_meant(self, copies, base, vault, tmp_path):
        further, (registered,) = save(train(load(copies / "bob"), None), tmp_path / "further"), vault.bases()

        said = refused(lambda: Fingerprint(further, "carol", vault, SETTINGS).bind(load(further)))
        assert f"carries the mark of base {registered.base_id} ({base})" in said

        Fingerprint(further, "carol", vault, SETTINGS, as_base=True).bind(load(further))
        assert [each.copy_of for each in vault.bases()] == [None, registered.base_id]


class TestAncestor:
    """The public model that the base was fine-tuned from stands in the base's record."""

    @pytest.fixture
    def public(self, base, tmp_path):
        shutil.copytree(base, tmp_path / "public")
        weights = load_file(base / "model.safetensors")
        moved = {n: w + 0.01 * w.abs().mean() if w.is_floating_point() else w for n, w in weights.items()}
        save_file(moved, tmp_path / "public" / "model.safetensors")
        return tmp_path / "public"

    def test_is_recorded_when_the_training_begins(self, base, vault, public):
        Fingerprint(base, "alice", vault, ancestor=public).bind(load(base))

        assert [each.ancestor.source for each in vault.bases()] == [str(public)]


class TestRenamedParameters:
    """transformers renames a ViT's parameters in memory; the files keep the older names."""

    def test_are_found_and_traced_under_either_name(self, tmp_path):
        from transformers import AutoModelForImageClassification

        base, vault = save_vit(tmp_path / "model"), new_vault(tmp_path / "vault")
        model = AutoModelForImageClassification.from_pretrained(base).train()
        in_memory = {name for name, _ in model.named_parameters()}
        assert not in_memory >= set(load_file(base / "model.safetensors"))
        fingerprint = Fingerprint(base, "alice", vault, SETTINGS)
        deepmarks = DeepMarksLoss(model, fingerprint)
        (known,) = vault.bases()
        assert len(deepmarks.regularizer.parameters) == len(known.carriers)
        assert set(deepmarks.regularizer.parameters) != {carrier.name for carrier in known.carriers}
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        for _ in range(4):
            loss = model(pixel_values=torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss + deepmarks()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(tmp_path / "trained")
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, tmp_path / "as-in-memory.safetensors")

        assert fingerprint.record(tmp_path / "trained").agreement > 0.99
        assert fingerprint.record(tmp_path / "as-in-memory.safetensors").agreement > 0.99
        for suspect in ("trained", "as-in-memory.safetensors"):
            assert set(accused(tmp_path / suspect, vault)) == {"alice"}
