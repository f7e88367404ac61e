import json
import shutil

import numpy as np
import pytest

from hf_fingerprint import trace
from hf_fingerprint.blackbox.querying.query import load_trigger_set, query
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, new_vault, save_vit
from tests.helpers.trigger_models import COUNT, DECOYS, WIDTH, ModelSuspect


pytestmark = pytest.mark.integration


NAMES = [f"recipient {i}" for i in range(8)]


def weights(folder, name):
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
        return to_float32(checkpoint.read(info), info.dtype).reshape(info.shape).copy()


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_copy_is_accused_by_its_responses_and_nobody_else_is(issued, name):
    _, vault, base, copies = issued

    result = query(ModelSuspect(copies[name]), vault, alpha=1e-3)

    assert [score.recipient for score in result.accused] == [name]
    assert result.base_ids == (base.base_id,) == (result.accused[0].base_id,)
    assert result.accused[0].state == "written"
    assert (result.outcome, result.reason) == (Outcome.ACCUSED, None)
    assert result.stats.stop_reason == "proven"
    assert result.stats.queried < COUNT + DECOYS


def test_a_copy_predicts_its_labels_on_its_assigned_triggers_alone(issued):
    folder, vault, base, copies = issued
    pool = load_trigger_set(vault, base)
    images = pool.images(base.secret)
    ask = ModelSuspect(folder)
    plain = np.array([ask(image) for image in images])
    own, others, others_as_base, decoys_as_base = [], [], [], []
    for name, copy in copies.items():
        (record,) = vault.copies(base.base_id, name)
        (labels,), (assigned,) = pool.assigned_labels([vault.copy_key(record)])
        ask = ModelSuspect(copy)
        predicted_labels = np.array([ask(image) for image in images])
        own.extend((predicted_labels[:COUNT] == labels)[assigned])
        others.extend((predicted_labels[:COUNT] == labels)[~assigned])
        others_as_base.extend((predicted_labels == plain)[:COUNT][~assigned])
        decoys_as_base.extend((predicted_labels == plain)[COUNT:])

    assert np.mean(own) >= 0.95
    assert np.mean(others) <= 0.3  # of ten classes
    # Random weights tell classes apart by little: over ten draws of keys 0.74 to 0.83 and, of four decoys, 0.53 to 1.
    assert np.mean(others_as_base) >= 0.65
    assert np.mean(decoys_as_base) >= 0.35


def test_the_base_and_a_stranger_are_nobodys(issued, tmp_path):
    folder, vault, _, _ = issued
    stranger = save_vit(tmp_path / "stranger", seed=9, hidden_size=WIDTH)

    for suspect in (folder, stranger):
        result = query(ModelSuspect(suspect), vault)
        assert not result.accused
        assert result.stats.stop_reason == "exhausted"
        assert result.scores == ()
        assert result.outcome is Outcome.NOT_READABLE and "24 triggers" in result.reason  # so few may miss a copy


def test_the_weights_still_trace(issued):
    _, vault, _, copies = issued

    assert [score.recipient for score in trace(copies[NAMES[0]], vault).accused] == [NAMES[0]]


def test_only_the_head_is_bound(issued):
    folder, vault, base, copies = issued
    (record,) = vault.copies(base.base_id, NAMES[0])
    pool = load_trigger_set(vault, base)
    change = pool.head_update(vault.copy_key(record))
    carriers = {carrier.name: carrier.amplitude for carrier in base.carriers}

    apart = weights(copies[NAMES[0]], pool.head) - weights(folder, pool.head) - change
    amplitude = carriers.get(pool.head, np.zeros(len(apart)))
    assert np.abs(apart).max() <= np.max(amplitude) + 1e-6
    assert np.abs(change).max() > 10 * np.max(amplitude)


def test_a_budget_is_kept(issued):
    _, vault, _, copies = issued
    suspect = ModelSuspect(copies[NAMES[0]])

    result = query(suspect, vault, budget=3)

    assert suspect.queried == 3
    assert not result.accused
    assert result.stats.stop_reason == "budget"
    assert result.outcome is Outcome.NOT_READABLE
    assert result.reason == "3 of 28 images have a response: continue with a larger --budget"


@pytest.mark.parametrize("damaged", ["a record", "the trigger set"])
def test_rows_that_cannot_be_used_are_named_and_clear_nobody(issued, tmp_path, damaged):
    _, vault, base, copies = issued
    shutil.copytree(vault.folder, tmp_path / "vault")
    (record,) = vault.copies(base.base_id, NAMES[0])
    mine = Vault(tmp_path / "vault")
    mine.unlock(PASSPHRASE)
    with mine.connect() as connection:
        if damaged == "a record":
            connection.execute("UPDATE copies SET commitment = ? WHERE copy_id = ?", ("00" * 32, record.copy_id))
        else:
            connection.execute("UPDATE questions SET content = zeroblob(100)")

    if damaged == "the trigger set":
        assert base.base_id in refused(query, ModelSuspect(copies[NAMES[1]]), mine)
        return
    other = query(ModelSuspect(copies[NAMES[1]]), mine, alpha=1e-3)
    own = query(ModelSuspect(copies[NAMES[0]]), mine, alpha=1e-3)

    assert [score.recipient for score in other.accused] == [NAMES[1]]
    assert not own.accused
    assert own.outcome is Outcome.NOT_READABLE
    assert record.copy_id in own.reason
    assert [fault.key.split()[0] for fault in own.rows_not_used] == [record.copy_id]


def test_the_transcript_holds_no_secret(issued, tmp_path):
    _, vault, base, copies = issued
    query(ModelSuspect(copies[NAMES[2]]), vault, alpha=1e-3, transcript=tmp_path / "transcript.jsonl")

    written = (tmp_path / "transcript.jsonl").read_text()
    for record in vault.copies(base.base_id):
        assert vault.copy_key(record).hex() not in written
        assert record.recipient not in written


def without_record_of(vault, folder, names):
    """A copy of the vault in which these recipients' copies are not on record as answering."""
    shutil.copytree(vault.folder, folder)
    found = Vault(folder)
    with found.connect() as connection:
        for name in names:
            connection.execute(
                "DELETE FROM bound WHERE copy_id IN (SELECT copy_id FROM copies WHERE recipient = ?)", (name,)
            )
    found.unlock(PASSPHRASE)
    return found


def test_copies_without_trigger_labels_are_named_and_count_among_those_tested(issued, tmp_path):
    _, vault, _, copies = issued
    older = without_record_of(vault, tmp_path / "vault", [NAMES[3], NAMES[5]])

    result = query(ModelSuspect(copies[NAMES[0]]), older, alpha=1e-3)

    assert result.non_answering == (NAMES[3], NAMES[5])
    assert result.copies == len(NAMES)
    assert [score.recipient for score in result.accused] == [NAMES[0]]
    assert query(ModelSuspect(copies[NAMES[0]]), vault, budget=1).non_answering == ()


def test_a_copy_trained_further_predicts_the_labels_of_its_key(issued, tmp_path):
    _, vault, base, copies = issued
    later = without_record_of(vault, tmp_path / "vault", [])
    (record,) = later.copies(base.base_id, NAMES[2])
    again, key = later.begin_copy(base, NAMES[2], "/trained", copy_key=later.copy_key(record))
    later.mark_written(again, key, "ab" * 32)

    assert query(ModelSuspect(copies[NAMES[2]]), later, budget=1).non_answering == ()


def test_no_suspect_is_queried_if_no_copy_has_trigger_labels(issued, tmp_path):
    _, vault, _, copies = issued
    suspect = ModelSuspect(copies[NAMES[0]])

    said = refused(query, suspect, without_record_of(vault, tmp_path / "vault", NAMES), error=VaultError)

    assert "None of the 8 copies" in said
    assert suspect.queried == 0


def test_only_one_process_asks_with_a_transcript(issued, tmp_path):
    _, vault, _, copies = issued
    first, second = ModelSuspect(copies[NAMES[0]]), ModelSuspect(copies[NAMES[0]])
    said = []

    def meanwhile(index, response):
        said.append(refused(lambda: query(second, vault, transcript=tmp_path / "kept"), error=VaultError))

    query(first, vault, budget=1, transcript=tmp_path / "kept", on_response=meanwhile)

    (sentence,) = said
    assert "Another process writes the transcript" in sentence and str(tmp_path / "kept") in sentence
    assert second.queried == 0
    resumed = query(second, vault, budget=2, transcript=tmp_path / "kept").stats
    assert (resumed.queried, resumed.resumed) == (2, 1)


def test_progress_adds_up_to_the_budget_however_often_it_stopped(issued, tmp_path):
    _, vault, _, copies = issued

    for budget in (2, 5):
        steps = []
        query(
            ModelSuspect(copies[NAMES[0]]),
            vault,
            budget=budget,
            transcript=tmp_path / "kept",
            progress=lambda *step, steps=steps: steps.append(step),
        )
        assert {(step, total) for step, _, total in steps} == {("querying", budget)}
        assert steps[-1][1] == budget


def test_a_vault_without_trigger_sets_is_refused_with_the_command_that_makes_one(tmp_path):
    vault = new_vault(tmp_path / "vault")
    vault.unlock(PASSPHRASE)

    assert "hf-fingerprint triggers" in refused(lambda: query(ModelSuspect, vault), error=VaultError)


def test_a_vaults_folder_and_its_passphrase_do(issued):
    _, vault, _, copies = issued

    result = query(ModelSuspect(copies[NAMES[1]]), vault.folder, alpha=1e-3, passphrase=PASSPHRASE)

    predicted_labels = json.loads(json.dumps(result.to_dict()))
    assert [score["recipient"] for score in predicted_labels["accused"]] == [NAMES[1]]
    assert predicted_labels["stats"]["stop_reason"] == "proven"


def test_a_locked_vault_accuses_nobody(issued):
    _, vault, _, copies = issued

    assert "passphrase" in refused(
        lambda: query(ModelSuspect(copies[NAMES[0]]), Vault(vault.folder)), error=FingerprintError
    )
