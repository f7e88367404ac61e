"""Related bases: which are read, the reasons for the others, and recorded content hashes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from hf_fingerprint import Issuer, TraceResult, issue, trace
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.registration import register
from hf_fingerprint.tracing import vault_records
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


pytestmark = pytest.mark.integration


Arrays = dict[str, np.ndarray]


def names(result: TraceResult) -> list[str]:
    return [score.recipient for score in result.accused]


def moved(arrays: Arrays, share: float, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        n: (a + share * a.std() * rng.standard_normal(a.shape)).astype(np.float32) if a.ndim > 1 and a.size else a
        for n, a in arrays.items()
    }


def rounded(arrays: Arrays) -> Arrays:
    def one(a: np.ndarray) -> np.ndarray:
        step = np.abs(a).max(axis=tuple(range(1, a.ndim)), keepdims=True) / 127
        return (np.round(a / step) * step).astype(np.float32)

    return {n: one(a) if a.ndim > 1 and a.dtype == np.float32 and a.size else a for n, a in arrays.items()}


def half(arrays: Arrays) -> Arrays:
    return {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in arrays.items()}


def relaid(arrays: Arrays) -> Arrays:
    """The tensors without names, matrices transposed and convolutions as HWIO."""
    order = list(arrays)[::-1]
    moved = {n: arrays[n].T if arrays[n].ndim == 2 else arrays[n] for n in order}
    moved |= {n: arrays[n].transpose(2, 3, 1, 0) for n in order if arrays[n].ndim == 4}
    return {f"onnx::{i}": np.ascontiguousarray(moved[n]) for i, n in enumerate(order)}


def codes(arrays: Arrays) -> Arrays:
    """The matrices as integers without scales, under names of no base."""
    scaled = {n: a / np.abs(a).max() * 127 if a.ndim == 2 and a.size else a for n, a in arrays.items()}
    return {f"t.{n}": np.round(a).astype(np.int8) if a.ndim == 2 else a for n, a in scaled.items()}


RELATED = {
    "another head": lambda a: a | {"head.weight": np.ones((7, 48), np.float32), "head.bias": np.zeros(7, np.float32)},
    "scaled norms": lambda a: {n: 2 * w if "norm" in n else w for n, w in a.items()},
    "half precision": half,
}
TREATMENTS = {"verbatim": lambda a: a, "rounded": rounded, "drifted": lambda a: moved(a, 0.01, 7)}
TREATMENTS |= {"relaid": relaid, "codes": codes}


@pytest.fixture(scope="module", params=RELATED)
def related(request, tmp_path_factory):
    """Two bases with one backbone in one vault, and two copies of each."""
    root, arrays = tmp_path_factory.mktemp("related"), plain_arrays()
    vault, copies = unlocked_vault(root / "vault"), {}
    for name, own in (("one", arrays), ("two", RELATED[request.param](arrays))):
        with Issuer(save_plain(root / name, own), vault, PLAIN_SETTINGS) as issuer:
            for copy in issuer.issue_all([f"a of {name}", f"b of {name}"], root / f"copies of {name}"):
                copies[copy.recipient] = load_file(copy.path / "model.safetensors")
    return SimpleNamespace(vault=vault, copies=copies, kind=request.param)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_copies_of_two_bases_with_one_backbone_are_all_named_and_nobody_else(related, tmp_path, treatment):
    bases = {copy.recipient: copy.base_id for copy in related.vault.copies()}
    for recipient, arrays in related.copies.items():
        save_file(TREATMENTS[treatment](arrays), tmp_path / "suspect.safetensors")

        result = trace(tmp_path / "suspect.safetensors", related.vault)

        assert names(result) == [recipient]
        assert result.accused[0].base == result.base == bases[recipient]
        if related.kind != "half precision":
            assert {read.base for read in result.bases_read} == set(bases.values())
            assert result.recipients_tested == 4


def test_the_same_by_ranges(related, tmp_path, monkeypatch):
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        for i, (recipient, arrays) in enumerate(related.copies.items()):
            hub.add(f"org/suspect{i}", {"model.safetensors": save(arrays)}, lfs=True)

            result = trace(f"org/suspect{i}", related.vault)

            assert names(result) == [recipient]
            assert result.bytes_total > 0


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Eight fine-tunes of one backbone, and a copy of each."""
    root, copies = tmp_path_factory.mktemp("tuned"), {}
    vault = unlocked_vault(root / "vault")
    for i in range(8):
        with Issuer(save_plain(root / str(i), moved(plain_arrays(), 0.03, i)), vault, PLAIN_SETTINGS) as issuer:
            copies[f"of {i}"] = load_file(issuer.issue(f"of {i}", root / f"copy {i}").path / "model.safetensors")
    return SimpleNamespace(vault=vault, copies=copies, root=root)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_of_fine_tunes_of_one_backbone_the_one_is_read_and_the_others_are_listed(tuned, tmp_path, treatment):
    for recipient in ("of 0", "of 5"):
        save_file(TREATMENTS[treatment](tuned.copies[recipient]), tmp_path / "suspect.safetensors")

        result = trace(tmp_path / "suspect.safetensors", tuned.vault)

        assert names(result) == [recipient]
        assert [read.base for read in result.bases_read] == [result.base]
        assert len(result.bases_not_read) == 7
        assert all("a share of" in each.reason for each in result.bases_not_read)


def test_a_mixture_of_copies_of_several_bases_names_all_of_them(tuned, tmp_path):
    mixed = {
        n: np.mean([tuned.copies[f"of {i}"][n] for i in (1, 4, 6)], axis=0).astype(a.dtype) if a.ndim else a
        for n, a in tuned.copies["of 1"].items()
    }
    save_file(mixed, tmp_path / "suspect.safetensors")

    result = trace(tmp_path / "suspect.safetensors", tuned.vault)

    assert {read.copies for read in result.bases_read} == {1}
    assert len(result.bases_read) == 3
    assert set(names(result)) <= {"of 1", "of 4", "of 6"}


def test_a_copy_of_which_a_few_tensors_are_left_keeps_its_base(tuned, tmp_path):
    arrays, kept = dict(tuned.copies["of 5"]), {"blocks.1.mlp.fc1.weight", "blocks.2.attn.qkv.weight"}
    others = plain_arrays(77)
    save_file({n: w if n in kept else others[n] for n, w in arrays.items()}, tmp_path / "suspect.safetensors")

    result = trace(tmp_path / "suspect.safetensors", tuned.vault)

    assert names(result) == ["of 5"]
    assert [read.base for read in result.bases_read] == [result.base]


def test_which_bases_are_read_depends_on_no_key(tuned, tmp_path, monkeypatch):
    """The choice is made before any copy key is opened for."""
    opened = []
    monkeypatch.setattr(vault_records, "open_copies", lambda vault, records: opened.append(len(records)) or 1 / 0)
    save_file(tuned.copies["of 3"], tmp_path / "suspect.safetensors")
    with pytest.raises(ZeroDivisionError):
        trace(tmp_path / "suspect.safetensors", tuned.vault)
    assert opened == [1]  # of the one base that is read


def test_a_base_whose_files_are_gone_clears_nobody(tuned, tmp_path):
    save_file(moved(plain_arrays(), 0.03, 2), tmp_path / "suspect.safetensors")  # a base of theirs, unmarked
    assert trace(tmp_path / "suspect.safetensors", tuned.vault).outcome is Outcome.NOBODY

    (tuned.root / "7").rename(tuned.root / "elsewhere")
    try:
        result = trace(tmp_path / "suspect.safetensors", tuned.vault)
        accused = trace(tuned.root / "copy 5", tuned.vault)
    finally:
        (tuned.root / "elsewhere").rename(tuned.root / "7")

    assert result.outcome is Outcome.NOT_READABLE
    assert "--base" in result.reason
    assert names(accused) == ["of 5"]


def test_a_base_without_copies_takes_nothing_of_the_bound(tmp_path):
    vault, arrays = unlocked_vault(tmp_path / "vault"), plain_arrays()
    register(save_plain(tmp_path / "bare", RELATED["another head"](arrays)), vault, PLAIN_SETTINGS)
    copy = issue(save_plain(tmp_path / "model", arrays), "alice", vault, tmp_path / "copy", PLAIN_SETTINGS)

    result = trace(copy.path, vault)

    assert names(result) == ["alice"]
    assert [read.base for read in result.bases_read] == [copy.base_id]


# content hashes on record


def test_a_suspect_whose_hash_is_on_record_is_reported_with_its_date(tuned):
    result = trace(tuned.root / "copy 4", tuned.vault)

    (record,) = tuned.vault.copies(recipient="of 4")
    (found,) = result.on_record
    assert (found.recipient, found.copy_id, found.base) == ("of 4", record.copy_id, record.base_id)
    assert found.created == record.created
    assert result.accused[0].copy_id == record.copy_id


def test_a_recorded_hash_accuses_nobody(tmp_path):
    """An issuer can record any hash: here that of the base, for mallory."""
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", tmp_path / "alice")
        base = issuer.base
    record, key = vault.begin_copy(base, "mallory", tmp_path / "nowhere")
    vault.mark_written(record, key, base.content_hash, is_issued=True)

    result = trace(model, vault)

    assert [found.recipient for found in result.on_record] == ["mallory"]
    assert (result.accused, result.outcome) == ((), Outcome.NOBODY)


def test_a_hash_on_record_adds_a_base_and_hides_none(tuned, tmp_path):
    """A record of another base that claims the suspect's hash makes that base be read as well, and no other less."""
    victim, other = (tuned.vault.copies(recipient=name)[0] for name in ("of 2", "of 6"))
    base = next(base for base in tuned.vault.bases() if base.base_id == other.base_id)
    record, key = tuned.vault.begin_copy(base, "mallory", tmp_path / "nowhere")
    tuned.vault.mark_written(record, key, victim.content_hash, is_issued=True)

    result = trace(tuned.root / "copy 2", tuned.vault)

    assert names(result) == ["of 2"]
    assert {read.base for read in result.bases_read} == {victim.base_id, other.base_id}
    assert {found.recipient for found in result.on_record} == {"of 2", "mallory"}


def test_a_copy_registered_as_a_base_and_its_own_copies_both_trace(tmp_path):
    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    first = issue(model, "alice", vault, tmp_path / "alice", PLAIN_SETTINGS)
    second = issue(first.path, "bob", vault, tmp_path / "bob", PLAIN_SETTINGS, as_base=True)

    assert names(trace(first.path, vault)) == ["alice"]
    result = trace(second.path, vault)
    assert sorted(names(result)) == ["alice", "bob"]
    assert {score.base for score in result.accused} == {first.base_id, second.base_id}


def test_the_state_of_a_record_is_reported(tmp_path: Path):
    from hf_fingerprint.vault import begin_publication, begin_training, confirm_publication

    vault, model = unlocked_vault(tmp_path / "vault"), save_plain(tmp_path / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copies = {name: issuer.issue(name, tmp_path / name) for name in ("written", "pushed", "delivered")}
        base = issuer.base
    for name, account in (("pushed", None), ("delivered", "somebody")):
        begin_publication(vault, copies[name].copy_id, f"org/{name}", {}, account)
        confirm_publication(vault, copies[name].copy_id, "c0ffee")
    _, key = begin_training(vault, base, "begun")
    codeword = base.codebook().codeword(key)

    for name, copy in copies.items():
        assert [(s.recipient, s.state) for s in trace(copy.path, vault).accused] == [(name, name)]
    assert "begun" in {s.state for s in trace(copies["written"].path, vault, all_scores=True).scores}
    assert len(codeword) == base.length
