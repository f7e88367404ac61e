"""A base that was registered with the wrong settings gets a second record, for new copies; copies of both trace."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hf_fingerprint import FingerprintConfig, Issuer, issue, register, trace
from hf_fingerprint.blackbox.querying.query import find_base_with_triggers
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import CodeError, VaultError
from hf_fingerprint.registration import lookup_base
from hf_fingerprint.training import Fingerprint
from hf_fingerprint.vault import Vault, copies_in_training, merge, open_pack, pack_vault, rotate, take_snapshot
from hf_fingerprint.vault.schema import base_from_row, base_to_row
from hf_fingerprint.vault.sealing import open_identity
from tests.helpers.error_checks import refused
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain, unlocked_vault


pytestmark = pytest.mark.integration
STRONGER = replace(PLAIN_SETTINGS, amplitude=0.006)


@pytest.fixture
def twice(tmp_path):
    """A base that was registered, and registered once more with another strength."""
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    old_copy = issue(model, "alice", vault, tmp_path / "alice", PLAIN_SETTINGS).path
    (old,) = vault.bases()
    new = register(model, vault, STRONGER, remeasure=True)
    return SimpleNamespace(vault=vault, model=model, old=old, new=new, old_copy=old_copy, root=tmp_path)


def test_the_second_record_has_the_same_weights_and_a_secret_of_its_own(twice):
    old, new = twice.old, twice.new

    assert twice.vault.bases() == [old, new]
    assert new.content_hash == old.content_hash
    assert new.secret != old.secret
    assert (old.replaces, new.replaces) == (None, old.base_id)
    assert {carrier.eps for carrier in new.carriers} == {0.006}
    assert new.describe()["replaces"] == old.base_id
    assert "replaces" not in old.describe()
    assert base_from_row(base_to_row(new)) == new


def test_copies_of_both_records_trace(twice):
    with Issuer(twice.model, twice.vault, STRONGER) as issuer:
        new_copy = issuer.issue("bob", twice.root / "bob").path

    assert issuer.base == twice.new
    for copy, recipient in ((twice.old_copy, "alice"), (new_copy, "bob")):
        result = trace(copy, twice.vault)
        assert [score.recipient for score in result.accused] == [recipient]
        assert result.recipients_tested == 2


def test_new_copies_are_made_from_the_second_record(twice):
    vault, model = twice.vault, twice.model

    assert vault.base_with_hash(twice.old.content_hash) == twice.new
    assert register(model, vault) == register(model, vault, STRONGER) == twice.new
    assert lookup_base(vault, model) == twice.new
    assert lookup_base(vault, twice.new.base_id) == twice.new
    assert lookup_base(vault, twice.old.base_id) == twice.old
    with pytest.raises(CodeError, match=r"registered with amplitude 0\.006, not 0\.003"):
        register(model, vault, PLAIN_SETTINGS)


def test_a_record_may_be_replaced_again(twice):
    third = register(twice.model, twice.vault, replace(STRONGER, amplitude=0.01), remeasure=True)

    assert third.replaces == twice.new.base_id
    assert twice.vault.base_with_hash(third.content_hash) == third
    assert len(twice.vault.bases()) == 3


def test_to_register_anew_what_is_not_registered_is_to_register_it(tmp_path):
    vault = new_vault(tmp_path / "vault")

    base = register(save_plain(tmp_path / "model"), vault, PLAIN_SETTINGS, remeasure=True)

    assert vault.bases() == [base]
    assert base.replaces is None


def test_of_two_processes_that_replace_a_record_the_first_is_taken(twice):
    vault = twice.vault
    late = replace(twice.new, base_id=f"{twice.new.base_id[:8]}ffff", secret=bytes(32))

    assert vault.add_base(late) == twice.new
    assert vault.bases() == [twice.old, twice.new]


def test_other_settings_are_refused_with_the_way_out(twice):
    text = refused(register, twice.model, twice.vault, FingerprintConfig(coalition=7), error=CodeError)

    assert "make a new record with `hf-fingerprint vault add --remeasure`" in text


def test_each_record_has_its_own_triggers(twice):
    vault, places = twice.vault, {}
    for base in (twice.old, twice.new):
        patterns, logits, head_updates = np.zeros((2, 56, 56, 3), np.int8), np.zeros((1, 2, 3)), np.zeros((1, 2, 4))
        made = TriggerSet(
            base.base_id, "head.weight", 2, 0.5, patterns, logits.astype(np.float32), head_updates.astype(np.float32)
        )
        vault.add_trigger_set(base, made.to_bytes())
        places[base.base_id] = find_base_with_triggers(vault, base.base_id)

    for base_id, (base, stored) in places.items():
        assert base_id == base.base_id == stored.base_id
    assert find_base_with_triggers(vault, twice.model)[0] == twice.new
    text = refused(find_base_with_triggers, vault, None, error=VaultError)
    assert twice.old.base_id in text
    assert twice.new.base_id in text


def test_a_training_puts_in_the_mark_of_the_second_record(twice):
    shapes = {name: record.shape for name, record in twice.new.tensors.items()}
    fingerprint = Fingerprint(twice.model, "carol", twice.vault)

    fingerprint._prepare(shapes, frozenset(shapes))

    (trained,) = copies_in_training(twice.vault)
    assert [copy.copy_id for copy in twice.vault.copies(twice.new.base_id)] == [trained]


def test_the_second_record_goes_with_the_vault(twice):
    age_identity = open_identity(twice.vault.identity, PASSPHRASE)
    other = Vault.create(twice.root / "other", public_key=twice.vault.public_key)

    merge(other, open_pack(pack_vault(twice.vault), age_identity, "the repo"))

    assert other.bases() == twice.vault.bases()
    assert other.base_with_hash(twice.old.content_hash) == twice.new
    assert merge(twice.vault, take_snapshot(other)).bases == 0


def test_the_second_record_stays_when_the_identity_is_rotated(twice, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.rotation.encrypt_identity", lock_quickly)

    rotated = rotate(twice.vault, "another passphrase")

    assert rotated.vault.base_with_hash(twice.old.content_hash) == twice.new
