import json

import numpy as np
import pytest
from asked_models import COUNT, DECOYS, WIDTH, Served, asked_base
from refusals import refused
from small_models import PASSPHRASE, new_vault, save_vit

from hf_fingerprint import issue, trace
from hf_fingerprint.blackbox.proof import check_proof, write_proof
from hf_fingerprint.blackbox.querying import query, questions_of
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.vault import Vault


NAMES = [f"recipient {i}" for i in range(8)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A base with questions, and copies issued to eight recipients."""
    root = tmp_path_factory.mktemp("asked")
    folder, vault, base = asked_base(root)
    copies = {name: issue(folder, name, vault, root / name).path for name in NAMES}
    return folder, vault, base, copies


def weights(folder, name):
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
        return to_float32(checkpoint.read(info), info.dtype).reshape(info.shape).copy()


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_copy_is_traced_by_its_answers_and_nobody_else_is(asked, name):
    _, vault, base, copies = asked

    result = query(Served(copies[name]), vault, alpha=1e-3)

    assert [score.recipient for score in result.accused] == [name]
    assert result.base_id == base.base_id
    assert result.questioning.stopped == "proven"
    assert result.questioning.asked < COUNT + DECOYS


def test_its_questions_alone_are_answered_by_its_labels(asked):
    _, vault, base, copies = asked
    pool = questions_of(vault, base)
    images = pool.images(base.secret)
    plain = [Served(asked[0])(image) for image in images]
    for name in NAMES[:3]:
        (record,) = vault.copies(base.base_id, name)
        (labels,), (owned,) = pool.answers([vault.copy_key(record)])
        told = np.array([Served(copies[name])(image) for image in images])
        assert (told[:COUNT] == labels)[owned].mean() >= 0.9
        assert (told == plain)[COUNT:].all()
        assert (told[:COUNT] == plain[:COUNT])[~owned].mean() >= 0.7


def test_the_base_and_a_stranger_are_nobodys(asked, tmp_path):
    folder, vault, _, _ = asked
    stranger = save_vit(tmp_path / "stranger", seed=9, hidden_size=WIDTH)

    for suspect in (folder, stranger):
        result = query(Served(suspect), vault)
        assert not result.accused
        assert result.questioning.stopped == "all asked"


def test_the_weights_still_trace(asked):
    _, vault, _, copies = asked

    assert [score.recipient for score in trace(copies[NAMES[0]], vault).accused] == [NAMES[0]]


def test_only_the_head_is_bound(asked):
    folder, vault, base, copies = asked
    (record,) = vault.copies(base.base_id, NAMES[0])
    pool = questions_of(vault, base)
    change = pool.head_change(vault.copy_key(record))
    carriers = {carrier.name: carrier.amplitude for carrier in base.carriers}

    apart = weights(copies[NAMES[0]], pool.head) - weights(folder, pool.head) - change
    amplitude = carriers.get(pool.head, np.zeros(len(apart)))
    assert np.abs(apart).max() <= np.max(amplitude) + 1e-6
    assert np.abs(change).max() > 10 * np.max(amplitude)


def test_a_budget_is_kept(asked):
    _, vault, _, copies = asked
    suspect = Served(copies[NAMES[0]])

    result = query(suspect, vault, budget=3)

    assert suspect.asked == 3
    assert not result.accused
    assert result.questioning.stopped == "budget"


def test_a_proof_holds_without_the_vault_and_falls_with_any_lie(asked, tmp_path):
    _, vault, _, copies = asked
    transcript, proof = tmp_path / "transcript.jsonl", tmp_path / "proof.json"
    result = query(Served(copies[NAMES[1]]), vault, alpha=1e-3, transcript=transcript)
    write_proof(proof, transcript, result, vault)

    (proven,) = check_proof(proof)

    (score,) = result.accused
    assert proven.holds
    assert (proven.recipient, proven.agreeing, proven.counted) == (NAMES[1], score.agreeing, score.counted)
    assert proven.log10_bound == pytest.approx(score.log10_bound)
    document = json.loads(proof.read_text())
    document["accused"][0]["recipient"] = "somebody else"
    proof.write_text(json.dumps(document))
    assert "does not open its commitment" in refused(lambda: check_proof(proof), error=FingerprintError)


def test_answers_told_otherwise_prove_nothing(asked, tmp_path):
    _, vault, _, copies = asked
    transcript, proof = tmp_path / "transcript.jsonl", tmp_path / "proof.json"
    write_proof(proof, transcript, query(Served(copies[NAMES[1]]), vault, alpha=1e-3, transcript=transcript), vault)
    document = json.loads(proof.read_text())
    document["answers"] = [[question, (answer + 1) % 10] for question, answer in document["answers"]]
    proof.write_text(json.dumps(document))

    (proven,) = check_proof(proof)

    assert not proven.holds


def test_the_transcript_holds_no_secret(asked, tmp_path):
    _, vault, base, copies = asked
    query(Served(copies[NAMES[2]]), vault, alpha=1e-3, transcript=tmp_path / "transcript.jsonl")

    written = (tmp_path / "transcript.jsonl").read_text()
    for record in vault.copies(base.base_id):
        assert vault.copy_key(record).hex() not in written
        assert record.recipient not in written


def test_nobody_accused_leaves_nothing_to_prove(asked, tmp_path):
    folder, vault, _, _ = asked
    result = query(Served(folder), vault, transcript=tmp_path / "transcript.jsonl")

    said = refused(
        lambda: write_proof(tmp_path / "proof", tmp_path / "transcript.jsonl", result, vault), error=FingerprintError
    )
    assert "Nobody is accused" in said


def test_a_vault_without_questions_says_how_to_make_them(tmp_path):
    vault = new_vault(tmp_path / "vault")
    vault.unlock(PASSPHRASE)

    assert "hf-fingerprint questions" in refused(lambda: query(Served, vault), error=VaultError)


def test_a_locked_vault_accuses_nobody(asked):
    _, vault, _, copies = asked

    assert "passphrase" in refused(
        lambda: query(Served(copies[NAMES[0]]), Vault(vault.folder)), error=FingerprintError
    )
