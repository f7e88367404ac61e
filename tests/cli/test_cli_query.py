"""`query`: what it refuses before anything is queried, and what its argument means."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hf_fingerprint import Issuer
from hf_fingerprint.blackbox.client.class_names import Labels
from hf_fingerprint.cli.query_command import load_base_labels, open_suspect
from tests.helpers.error_checks import refused
from tests.helpers.loopback_suspect import LoopbackSuspect, image_of_class
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    root = tmp_path_factory.mktemp("query")
    names = {str(index): f"class {index}" for index in range(10)}
    vault, model = new_vault(root / "vault"), save_plain(root / "model", config_json=json.dumps({"id2label": names}))
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "alice")
    (root / "labels").write_text("\n".join(names.values()))
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    (root / "mine.py").write_text("number = 3\n\n\ndef red(image):\n    return image.getpixel((0, 0))[0]\n")
    (root / "broken.py").write_text("import nothing_of_the_kind\n")
    return SimpleNamespace(root=root, vault=vault, folder=vault.folder, base=issuer.base, model=model)


def failed(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert code == 2 and out == "" and err.startswith("Error: ") and len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("suspect", "options", "said"),
    [
        ("nothing", [], "not a suspect"),
        ("hf:", [], "not a suspect"),
        ("hf:org/name/more", [], "Hub id"),
        ("http://", [], "http://"),
        ("https://api.example", ["--request-format", "xml"], "raw, json, multipart"),
        ("https://api.example", ["--rate", "0"], "0 requests"),
        ("https://api.example", ["--budget", "0"], "--budget"),
        ("https://api.example", ["--token-env", "NOT_SET"], "give its name, not the token"),
        ("python:mine.py:red", ["--token-env", "HOME"], "--token-env"),
        ("python:red", [], "can't be imported"),
        ("python:mine.py:number", [], "no function number"),
        ("python:mine.py:blue", [], "no function blue"),
        ("python:broken.py:red", [], "ModuleNotFoundError"),
        ("python:nowhere.py:red", [], "can't be imported"),
        ("pipeline:nowhere", [], "nowhere"),
        ("https://api.example", ["--labels", "nowhere"], "nowhere"),
        ("https://api.example", ["--base", "nowhere"], "--labels"),
    ],
)
def test_a_suspect_that_cannot_be_queried_is_refused_in_a_line(run, scene, monkeypatch, suspect, options, said):
    monkeypatch.chdir(scene.root)

    assert said in failed(run("query", suspect, "--vault", scene.folder, *options))


def test_a_wrong_passphrase_and_a_missing_vault_are_refused(run, scene):
    assert "nowhere" in failed(run("query", "https://api.example", "--vault", scene.root / "nowhere"))
    wrong = ["--passphrase-file", scene.root / "labels"]
    assert "passphrase" in failed(run("query", "https://api.example", "--vault", scene.folder, *wrong))


@pytest.mark.parametrize("suspect", ["htps://alice:sesame@api.example", "htps://api.example?key=sesame"])
def test_a_mistyped_address_is_not_shown_with_its_password(run, scene, suspect):
    assert "sesame" not in failed(run("query", suspect, "--vault", scene.folder))


def test_the_labels_are_the_bases_unless_given(scene):
    expected = tuple(f"class {index}" for index in range(10))
    for path, base in [
        (None, None),
        (None, scene.base.base_id),
        (None, str(scene.model)),
        (scene.root / "labels", None),
    ]:
        assert load_base_labels(path, scene.vault, base).names == expected
    assert "--labels" in refused(load_base_labels, None, scene.vault, str(scene.root / "alice" / "nothing"))


@pytest.mark.parametrize("suspect", ["python:{root}/mine.py:red", "python:mine:red", "{url}"])
def test_a_suspect_is_queried_as_its_name_says(scene, monkeypatch, suspect):
    monkeypatch.chdir(scene.root)
    with LoopbackSuspect() as server:
        name = suspect.format(root=scene.root, url=server.url)
        client = open_suspect(name, Labels.numbered(10), "raw", None, None, None)

        assert [client(image_of_class(label)) for label in (3, 8)] == [3, 8]
        assert client.name == name


def test_a_folder_is_run(tmp_path):
    pytest.importorskip("timm")
    from tests.helpers.small_models import save_timm

    folder = save_timm(tmp_path / "model")
    classes = json.loads((folder / "config.json").read_text())["num_classes"]
    client = open_suspect(f"pipeline:{folder}", Labels.numbered(classes), "raw", None, None, None)

    assert 0 <= client(np.zeros((40, 40, 3), np.uint8)) < classes
