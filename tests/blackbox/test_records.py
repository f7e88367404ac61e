"""A suspect that may be a copy of several records: it is queried for each, with a share of alpha."""

import errno
import json
import math
import os
import shutil
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest

from hf_fingerprint import register
from hf_fingerprint.blackbox import check_proof, query, write_proof
from hf_fingerprint.blackbox.querying import proof
from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.blackbox.querying.transcript import image_digest
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.errors import CodeError, StorageError, VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.records_with_triggers import (
    CLASSES,
    COUNT,
    DECOYS,
    SimulatedSuspect,
    add_copy,
    add_trigger_set,
    records_with_triggers,
)
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


pytestmark = pytest.mark.integration
POOL = COUNT + DECOYS


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Draws the images of each secret once: they take most of a query's time."""
    drawn, draw = {}, TriggerSet.images

    def images(trigger_set, secret):
        if secret not in drawn:
            drawn[secret] = draw(trigger_set, secret)
        return drawn[secret][: len(trigger_set.patterns)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TriggerSet, "images", images)
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two records of one base's weights, and a suspect for a copy of each, with a recall below 1."""
    made = records_with_triggers(tmp_path_factory.mktemp("records"))
    leaks = {
        base.base_id: SimulatedSuspect(made.vault, made.bases, (base, made.recipients[base.base_id][2]), recall=0.9)
        for base in made.bases
    }
    return SimpleNamespace(**vars(made), leaks=leaks, nobody=SimulatedSuspect(made.vault, made.bases, seed=5))


def another_vault(scene, folder) -> Vault:
    """The same vault, to be changed."""
    shutil.copytree(scene.vault.folder, folder)
    found = Vault(folder)
    found.unlock(PASSPHRASE)
    return found


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("by", ["nothing", "place"])
def test_a_copy_of_either_record_is_named_with_its_base_and_nobody_else_is(scene, which, by):
    base = scene.bases[which]

    result = query(scene.leaks[base.base_id], scene.vault, None if by == "nothing" else scene.model)

    assert [(score.recipient, score.base_id) for score in result.accused] == [
        (scene.recipients[base.base_id][2], base.base_id)
    ]
    assert result.scores == result.accused
    assert result.base_ids == tuple(each.base_id for each in scene.bases)
    assert (result.copies, result.alpha, result.skipped) == (12, 1e-6, ())
    assert (result.outcome, result.reason) == (Outcome.ACCUSED, None)
    assert result.stats.queried < 2 * POOL
    assert result.accused[0].log10_bound <= math.log10(result.alpha)


def test_an_exact_id_names_that_record_alone(scene):
    first, second = scene.bases

    result = query(scene.leaks[second.base_id], scene.vault, first.base_id)

    assert (result.base_ids, result.copies) == ((first.base_id,), 6)
    assert result.outcome is Outcome.NOBODY and result.skipped == ()
    found = query(scene.leaks[second.base_id], scene.vault, second.base_id)
    assert [score.base_id for score in found.accused] == [second.base_id]


def test_of_records_that_share_alpha_each_takes_an_equal_part(scene, tmp_path):
    query(scene.nobody, scene.vault, transcript=tmp_path / "kept", alpha=1e-3, budget=1)

    headings = [
        json.loads((tmp_path / name).read_text().splitlines()[0])
        for name in ("kept", f"kept.{scene.bases[1].base_id}")
    ]
    assert [heading["alpha"] for heading in headings] == [5e-4, 5e-4]
    assert [heading["recipients"] for heading in headings] == [6, 6]
    assert [heading["base"] for heading in headings] == [base.base_id for base in scene.bases]
    assert "alpha" in refused(lambda: query(scene.nobody, scene.vault, transcript=tmp_path / "kept"))


def test_the_bound_is_over_the_innocents_of_all_records(scene):
    (alone,) = query(scene.leaks[scene.bases[0].base_id], scene.vault, scene.bases[0].base_id, exhaustive=True).accused
    (together,) = query(scene.leaks[scene.bases[0].base_id], scene.vault, exhaustive=True).accused

    assert (together.agreeing, together.counted) == (alone.agreeing, alone.counted)
    assert together.log10_bound == pytest.approx(alone.log10_bound + math.log10(2))


def test_what_was_stopped_goes_on_for_all_records_within_one_budget(scene, tmp_path):
    leak, base = scene.leaks[scene.bases[1].base_id], scene.bases[1]
    before = leak.queried

    first = query(leak, scene.vault, transcript=tmp_path / "kept", budget=9)
    second = query(leak, scene.vault, transcript=tmp_path / "kept", budget=14)
    exhaustive = query(leak, scene.vault, transcript=tmp_path / "kept")

    assert (first.stats.queried, second.stats.queried, second.stats.resumed) == (9, 14, 9)
    assert exhaustive.stats.resumed == 14
    assert leak.queried - before == exhaustive.stats.queried
    lines = [len(path.read_text().splitlines()) - 1 for path in tmp_path.iterdir()]
    assert len(lines) == 2 and sum(lines) == exhaustive.stats.queried and min(lines) > 0
    assert [score.base_id for score in exhaustive.accused] == [base.base_id]


@pytest.mark.parametrize("which", [0, 1])
def test_a_proof_has_what_the_bound_of_its_record_needs(scene, tmp_path, which):
    base = scene.bases[which]
    result = query(scene.leaks[base.base_id], scene.vault, transcript=tmp_path / "kept")

    assert write_proof(tmp_path / "proof", tmp_path / "kept", result, scene.vault) == (tmp_path / "proof",)

    (proven,), (score,) = check_proof(tmp_path / "proof").accusations, result.accused
    assert proven.holds
    assert (proven.recipient, proven.copies, proven.alpha) == (score.recipient, 6, 5e-7)
    assert proven.log10_bound == pytest.approx(score.log10_bound - math.log10(2))


def leak_of_both(scene) -> SimulatedSuspect:
    """A suspect with the labels of one recipient of each base."""
    leaks = [scene.leaks[base.base_id] for base in scene.bases]
    mixed = SimulatedSuspect(scene.vault, scene.bases)
    for leak, base in zip(leaks, scene.bases, strict=True):
        own = SimulatedSuspect(scene.vault, [base])._responses
        mixed._responses |= {digest: leak._responses[digest] for digest in own}
    return mixed


def test_accused_of_two_records_are_proven_in_a_file_each(scene, tmp_path):
    result = query(leak_of_both(scene), scene.vault, transcript=tmp_path / "kept", exhaustive=True)

    assert {score.base_id for score in result.accused} == {base.base_id for base in scene.bases}
    assert len(result.accused) == 2
    places = write_proof(tmp_path / "proof", tmp_path / "kept", result, scene.vault)
    assert [path.name for path in places] == ["proof", f"proof.{scene.bases[1].base_id}"]
    for path, base in zip(places, scene.bases, strict=True):
        (proven,) = check_proof(path).accusations
        assert proven.holds and proven.recipient == scene.recipients[base.base_id][2]
    said = refused(write_proof, tmp_path / "other", tmp_path / "nowhere", result, scene.vault)
    assert "nowhere" in said and not (tmp_path / "other").exists()


def test_a_disk_that_fills_up_under_the_second_proof_leaves_none_in_the_way_of_the_next_attempt(
    scene, tmp_path, monkeypatch
):
    result = query(leak_of_both(scene), scene.vault, transcript=tmp_path / "kept", exhaustive=True)
    given = (tmp_path / "proof", tmp_path / "kept", result, scene.vault)
    written, write = [], proof.write_private

    def full(path, content):
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(proof, "write_private", full)
        assert f"The disk of {tmp_path} is full: make room" in refused(write_proof, *given, error=StorageError)

    assert len(written) == 2 and not [path for path in tmp_path.iterdir() if "proof" in path.name]
    assert all(check_proof(place).accusations[0].holds for place in write_proof(*given))


def test_nobody_is_reported_if_all_images_have_a_response(scene):
    result = query(scene.nobody, scene.vault)

    assert (result.outcome, result.reason, result.scores) == (Outcome.NOBODY, None, ())
    assert result.stats.stop_reason == "exhausted"


@pytest.mark.parametrize("budget", [1, 12, 40])
def test_nobody_is_not_reported_after_few_responses(scene, budget):
    result = query(scene.nobody, scene.vault, budget=budget)

    assert result.outcome is Outcome.NOT_READABLE
    assert result.reason == f"{budget} of {2 * POOL} images have a response: continue with a larger --budget"


def test_nobody_is_not_reported_if_most_responses_predict_no_class(scene):
    class Mumbling:
        name, retries, classes, queried = "suspect", 0, CLASSES, 0

        def __call__(self, image):
            self.queried += 1
            return scene.nobody(image) if self.queried % 4 == 0 else None

    result = query(Mumbling(), scene.vault)

    assert result.outcome is Outcome.NOT_READABLE
    assert result.reason.startswith(f"most responses predict no class: 37 of {2 * POOL} images have a usable response")


def test_nobody_is_not_reported_of_copies_without_trigger_labels(scene, tmp_path):
    vault = another_vault(scene, tmp_path / "vault")
    add_copy(vault, scene.bases[0], "early", is_answering=False)
    silent = register(save_plain(tmp_path / "other", plain_arrays(seed=3)), vault, PLAIN_SETTINGS)
    for name in ("eve", "dan"):
        add_copy(vault, silent, name, is_answering=False)

    result = query(scene.nobody, vault)

    assert result.outcome is Outcome.NOT_READABLE
    assert result.reason == "3 of 15 copies have no trigger labels: trace them by their weights"
    assert result.non_answering == ("early",)
    assert [(each.base_id, each.reason) for each in result.skipped] == [(silent.base_id, "it has no trigger set")]
    assert query(scene.nobody, vault, scene.bases[1].base_id).outcome is Outcome.NOBODY


def test_nobody_is_not_reported_with_a_low_recall(scene, tmp_path):
    vault = unlocked_vault(tmp_path / "vault")
    base = register(scene.model, vault, PLAIN_SETTINGS)
    add_trigger_set(vault, base, recall=0.3)
    add_copy(vault, base, "alice")

    result = query(SimulatedSuspect(vault, [base]), vault)

    assert result.outcome is Outcome.NOT_READABLE
    assert result.reason == (
        f"the {COUNT} triggers of base {base.base_id} are too few to accuse every copy at alpha 1e-06: trace the "
        f"suspect by its weights"
    )


def test_skipped_bases_are_listed_with_the_reason(scene, tmp_path):
    vault = another_vault(scene, tmp_path / "vault")
    others = {
        name: register(save_plain(tmp_path / name, plain_arrays(seed=seed)), vault, PLAIN_SETTINGS)
        for seed, name in enumerate(("bare", "unissued", "wider", "older"), 3)
    }
    for name, classes in (("unissued", CLASSES), ("wider", 12), ("older", CLASSES)):
        add_trigger_set(vault, others[name], classes=classes, count=4)
    add_copy(vault, others["wider"], "alice")
    add_copy(vault, others["older"], "alice", is_answering=False)

    result = query(scene.leaks[scene.bases[1].base_id], vault)

    reason = {each.base_id: each.reason for each in result.skipped}
    assert reason == {
        others["bare"].base_id: "it has no trigger set",
        others["unissued"].base_id: "it has no copies",
        others["wider"].base_id: "it has 12 classes, and the suspect has 10",
        others["older"].base_id: "none of its 1 copies was taught trigger labels",
    }
    assert result.base_ids == tuple(base.base_id for base in scene.bases)
    assert len(result.accused) == 1
    shown = json.loads(json.dumps(result.to_dict()))
    assert shown["outcome"] == "accused" and len(shown["skipped"]) == 4


def test_bases_of_different_classes_are_refused_if_the_suspect_has_no_classes(scene, tmp_path):
    vault = another_vault(scene, tmp_path / "vault")
    wider = register(save_plain(tmp_path / "wider", plain_arrays(seed=3)), vault, PLAIN_SETTINGS)
    add_trigger_set(vault, wider, classes=12, count=4)
    add_copy(vault, wider, "alice")
    suspect = SimulatedSuspect(vault, scene.bases, classes=None)

    assert f"{wider.base_id} (12 classes)" in refused(query, suspect, vault, error=VaultError)
    assert suspect.queried == 0
    assert query(suspect, vault, scene.model, budget=1).base_ids == tuple(base.base_id for base in scene.bases)
    said = refused(query, scene.nobody, vault, wider.base_id, error=VaultError)
    assert "it has 12 classes, and the suspect has 10" in said and "--labels" in said


@pytest.mark.parametrize("alpha", [0.99, 0.06, 0, -1, float("nan"), float("inf")])
def test_nobody_is_accused_at_such_an_alpha(scene, alpha, monkeypatch):
    queried = scene.nobody.queried

    assert "alpha" in refused(lambda: query(scene.nobody, scene.vault, alpha=alpha), error=CodeError)
    bases = [replace(scene.bases[0], alpha=alpha), scene.bases[1]]
    monkeypatch.setattr(Vault, "bases", lambda vault: bases)
    assert "alpha" in refused(lambda: query(scene.nobody, scene.vault), error=CodeError)
    assert scene.nobody.queried == queried


def test_without_all_scores_no_score_of_an_innocent_is_returned(scene):
    leak = scene.leaks[scene.bases[0].base_id]
    every = query(leak, scene.vault, all_scores=True)

    assert len(every.scores) == every.copies == 12 and len(every.accused) == 1
    assert every.scores[0].accused
    assert sorted(score.log10_bound for score in every.scores[1:]) == [s.log10_bound for s in every.scores[1:]]


@pytest.mark.parametrize("leaked", [True, False])
def test_no_result_depends_on_an_innocents_key(tmp_path, monkeypatch, leaked):
    """The same query for two vaults in which all keys but the leaker's differ has the same results."""
    monkeypatch.setattr("hf_fingerprint.blackbox.querying.query.secrets", SimpleNamespace(randbits=lambda bits: 7))
    shown = {}
    for budget in (30, None):
        for number in range(2):
            root = tmp_path / f"{number} {budget}"
            monkeypatch.setattr("hf_fingerprint.registration.registering.new_secret", lambda: bytes(32))
            vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
            base = register(model, vault, PLAIN_SETTINGS)
            add_trigger_set(vault, base)
            for i, name in enumerate(["mallory", *"abcdef"]):
                add_copy(vault, base, name, key=bytes([i, number * (i > 0)]) + bytes(30))
            suspect = SimulatedSuspect(vault, [base], (base, "mallory") if leaked else None)
            result = query(suspect, vault, budget=budget, transcript=root / "kept")
            found = result.to_dict()
            for score in (*found["scores"], *found["accused"]):
                del score["copy_id"], score["base_id"]
            del found["base_ids"]
            lines = [json.loads(line) for line in (root / "kept").read_text().splitlines()]
            responses = [(line["question"], line["answer"]) for line in lines[1:]]
            reason = (found.pop("reason") or "").replace(base.base_id, "base")
            shown.setdefault(budget, []).append((found, reason, responses))
    for one, other in shown.values():
        assert one == other
        assert bool(one[0]["accused"]) == leaked


def climbed(scene, gained, steps: int) -> set[str]:
    """The recipients that hill-climbing suspects accuse: each changes one response of the last one, and keeps it if
    the result it sees gets larger."""
    base = scene.bases[0]
    suspect, whom = SimulatedSuspect(scene.vault, [base], seed=1), set()
    pool = [image_digest(image) for image in load_trigger_set(scene.vault, base).images(base.secret)[:COUNT]]
    tries = iter([(digest, by) for digest in pool for by in range(1, CLASSES)])
    most = gained(query(suspect, scene.vault, base.base_id, alpha=1e-3, all_scores=True))
    for digest, by in islice(tries, steps):
        kept = suspect._responses[digest]
        suspect._responses[digest] = (kept + by) % CLASSES
        result = query(suspect, scene.vault, base.base_id, alpha=1e-3, all_scores=gained is of_everybody)
        whom |= {score.recipient for score in result.accused}
        if whom:
            break
        if gained(result) > most:
            most = gained(result)
        else:
            suspect._responses[digest] = kept
    return whom


def of_everybody(result) -> float:
    return max(score.agreeing for score in result.scores if score.recipient.endswith(".3"))


def of_the_accused(result) -> float:
    return len(result.accused) + sum(-score.log10_bound for score in result.accused)


def test_an_attacker_who_sees_every_result_accuses_no_innocent_and_with_all_scores_does(scene):
    assert climbed(scene, of_the_accused, 150) == set()
    assert climbed(scene, of_everybody, 400) == {scene.recipients[scene.bases[0].base_id][3]}
