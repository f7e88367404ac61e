"""`triggers`, `query` and `check-proof`: from a base to a proof that anybody can check."""

import json
import re
from types import SimpleNamespace

import pytest

from hf_fingerprint.blackbox.querying.proof import NOT_SHOWN
from hf_fingerprint.cli.main import main
from hf_fingerprint.registration import register
from tests.helpers.small_models import PASSPHRASE, SETTINGS, new_vault, save_vit
from tests.helpers.trigger_models import COUNT, DECOYS, STEPS, WIDTH


pytestmark = pytest.mark.integration
SERVING = """
from pathlib import Path

import numpy as np
from tests.helpers.trigger_models import ModelSuspect

served = ModelSuspect(Path({copy!r}))


def classify(image):
    return served(np.asarray(image))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A base with a trigger set, made by the command line; copies of alice's and bob's, and one that is older."""
    root = tmp_path_factory.mktemp("triggers")
    vault, model = new_vault(root / "vault"), save_vit(root / "model", hidden_size=WIDTH)
    register(model, vault, SETTINGS)
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    few = ["--count", COUNT, "--decoys", DECOYS, "--steps", STEPS]
    for arguments in (
        ["issue", model, "--recipient", "early", "--vault", vault.folder, "--out", root],
        ["triggers", model, "--vault", vault.folder, *few],
        ["issue", model, "--recipient", "alice", "--recipient", "bob", "--vault", vault.folder, "--out", root],
    ):
        assert main([str(argument) for argument in arguments]) == 0
    options = ["--vault", vault.folder, "--passphrase-file", root / "passphrase"]
    return SimpleNamespace(root=root, model=model, options=options, vault=vault.folder)


@pytest.fixture
def proof(run, scene, tmp_path):
    """The proof against alice, by her copy."""
    proof = tmp_path / "proof.json"
    code, _, err = run("query", f"pipeline:{scene.root / 'alice'}", *scene.options, "--proof", proof)
    assert code == 0, err
    return proof


def failed(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert code == 2 and out == "" and err.startswith("Error: ") and len(err.splitlines()) == 1
    return err


def test_a_trigger_set_is_made_once(run, scene):
    assert "already has a trigger set" in failed(run("triggers", scene.model, "--vault", scene.vault))


def test_a_stolen_copy_is_traced_and_the_proof_is_written(run, scene, tmp_path):
    proof = tmp_path / "proof.json"

    code, out, err = run("query", f"pipeline:{scene.root / 'alice'}", *scene.options, "--proof", proof)

    said = " ".join(out.split())
    assert code == 0
    assert f"pipeline:{scene.root / 'alice'}queriedforbase" in "".join(out.split())  # in lines of 80 columns
    assert said.count("ACCUSED") == 1
    assert re.search(r"alice +(\d+) of \1 +10\^-\d", said), "all her trigger labels match"
    assert "accused: the copy made for alice (" in said
    assert "3 copies tested; the probability that any innocent is accused is at most 1e-06" in said
    assert re.search(r"stopped at the proof, after \d+ images", said)
    assert said.endswith("queries can't trace 1 of these copies, which have no trigger labels: early")
    assert str(proof) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proof.json", "proof.json.transcript"]


def test_a_function_is_queried_and_the_result_is_printed_as_json(run, scene, tmp_path):
    (tmp_path / "mine.py").write_text(SERVING.format(copy=str(scene.root / "bob")))
    arguments = [
        f"python:{tmp_path / 'mine.py'}:classify",
        *scene.options,
        "--json",
        "--transcript",
        tmp_path / "kept",
    ]

    first, again = run("query", *arguments), run("query", *arguments)

    assert (first[0], again[0]) == (0, 0)
    printed, later = json.loads(first[1]), json.loads(again[1])
    assert [score["recipient"] for score in printed["accused"]] == ["bob"]
    assert printed["non_answering"] == ["early"]
    assert printed["copies"] == 3
    assert printed["stats"]["resumed"] == 0
    assert later["stats"] == {**printed["stats"], "resumed": printed["stats"]["queried"]}


@pytest.mark.parametrize("suspect", ["model", "early"])
def test_the_base_and_copies_without_trigger_labels_accuse_nobody(run, scene, tmp_path, suspect):
    proof = tmp_path / "proof.json"

    code, out, err = run("query", f"pipeline:{scene.root / suspect}", *scene.options, "--proof", proof)

    said = " ".join(out.split())
    assert code == 3
    assert "ACCUSED" not in said and "│" not in said
    assert f"not readable: the {COUNT} triggers of base" in said
    assert "1 of 3 copies have no trigger labels: trace them by their weights. 3 copies tested" in said
    assert f"stopped at the last image, after {COUNT + DECOYS} images" in said
    assert not proof.exists()
    assert "proof" not in err


def test_the_proof_is_checked_from_its_file_alone(run, scene, proof, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    commitment = json.loads(proof.read_text())["accused"][0]["commitment"]
    code, out, _ = run("check-proof", "proof.json", "--commitment", commitment)

    said = " ".join(out.split())
    assert code == 0
    assert re.search(r"alice +(\d+) of \1 +10\^-\d+\.\d +holds", said)
    assert "3 copies tested (alpha 1e-06)" in said
    assert f"alice's commitment: {commitment} (as published)" in said
    for not_shown in NOT_SHOWN:
        assert f"- {not_shown}" in said
    assert said.endswith("the proof holds for the published commitments")
    code, out, _ = run("check-proof", "proof.json", "--commitment", commitment, "--json")
    assert code == 0
    (proven,) = json.loads(out)
    assert (proven["recipient"], proven["holds"], proven["published"]) == ("alice", True, True)
    assert (proven["outcome"], proven["not_shown"]) == ("accused", list(NOT_SHOWN))


def test_a_proof_is_not_checked_without_a_published_commitment_and_wrong_with_another(run, proof):
    code, out, _ = run("check-proof", proof)
    said = " ".join(out.split())
    assert code == 3
    assert "not checked against a published commitment" in said
    assert "the proof holds" not in said and f"- {NOT_SHOWN[0]}" in said
    code, out, _ = run("check-proof", proof, "--json")
    assert code == 3
    assert (json.loads(out)[0]["published"], json.loads(out)[0]["outcome"]) == (None, "not readable")
    code, out, _ = run("check-proof", proof, "--commitment", "ab" * 32)
    assert code == 1
    assert "wrong commitment" in " ".join(out.split()) and out.splitlines()[-1] == "the proof does not hold"
    assert "64 hexadecimal digits" in failed(run("check-proof", proof, "--commitment", "nothing"))


def test_scores_of_others_are_shown_only_with_all_scores(run, scene):
    arguments = [f"pipeline:{scene.root / 'alice'}", *scene.options, "--json"]
    code, out, err = run("query", *arguments)
    assert (code, err) == (0, "")
    assert [score["recipient"] for score in json.loads(out)["scores"]] == ["alice"]
    code, out, err = run("query", *arguments, "--all-scores")
    assert code == 0
    assert len(json.loads(out)["scores"]) == 3
    assert "do not publish them" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("alpha", ["0.99", "0.051", "0", "nan"])
def test_nobody_is_accused_at_a_large_alpha(run, scene, alpha):
    arguments = [f"pipeline:{scene.root / 'alice'}", *scene.options]

    assert "at most 0.05" in failed(run("query", *arguments, "--alpha", alpha))


def test_few_responses_are_not_readable(run, scene):
    code, out, _ = run("query", f"pipeline:{scene.root / 'model'}", *scene.options, "--budget", 1)

    said = " ".join(out.split())
    assert code == 3
    assert (
        f"not readable: 1 of {COUNT + DECOYS} images have a response: continue with a larger --budget; 1 of 3" in said
    )


def test_a_proof_that_was_tampered_with_does_not_hold(run, proof):
    document = json.loads(proof.read_text())
    for change, why in (
        ({"accused": [document["accused"][0] | {"recipient": "mallory"}]}, "wrong key"),
        ({"answers": [[trigger, (label + 1) % 10] for trigger, label in document["answers"]]}, "no proof"),
    ):
        proof.write_text(json.dumps(document | change))

        code, out, _ = run("check-proof", proof)

        assert code == 1
        assert why in " ".join(out.split())
        assert out.splitlines()[-1] == "the proof does not hold"
        assert json.loads(run("check-proof", proof, "--json")[1])[0]["holds"] is False
    proof.write_text("no proof")
    assert "not a proof" in failed(run("check-proof", proof))


def test_an_existing_proof_is_kept_and_nothing_is_queried(run, scene, proof):
    before = proof.read_bytes()

    said = failed(run("query", "https://nowhere.example", *scene.options, "--proof", proof))

    assert "another file" in said
    assert proof.read_bytes() == before


def test_exhaustive_queries_all_images(run, scene):
    code, out, _ = run("query", f"pipeline:{scene.root / 'bob'}", *scene.options, "--exhaustive", "--json")

    printed = json.loads(out)
    assert code == 0
    assert [score["recipient"] for score in printed["accused"]] == ["bob"]
    assert printed["stats"]["answered"] - printed["stats"]["decoys_queried"] == COUNT


def test_names_for_too_few_classes_are_refused(run, scene, tmp_path):
    (tmp_path / "labels").write_text("cat\ndog\n")

    said = failed(run("query", "https://nowhere.example", *scene.options, "--labels", tmp_path / "labels"))

    assert "it has 10 classes, and the suspect has 2" in said and "--labels" in said
