"""`key-images export` and `key-images read`."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from hf_fingerprint import issue
from hf_fingerprint.blackbox import synthetic_cover
from hf_fingerprint.blackbox.querying.query import find_base_with_triggers
from hf_fingerprint.vault import Vault
from tests.helpers.small_models import PASSPHRASE, names_in
from tests.helpers.trigger_models import base_with_triggers


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    root = tmp_path_factory.mktemp("key_images")
    folder, vault, base = base_with_triggers(root, steps=1)
    issue(folder, "alice", vault, root / "alice")
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    (root / "wrong").write_text("not it\n")
    return SimpleNamespace(root=root, base=base, vault=vault.folder)


@pytest.fixture
def key_images(run, scene):
    def run_it(*arguments, passphrase="passphrase"):
        given = ["--vault", scene.vault, "--passphrase-file", scene.root / passphrase]
        return run("key-images", *arguments, *given)

    return run_it


def failed(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert code == 2 and out == "" and err.startswith("Error: ") and len(err.splitlines()) == 1
    return err


def test_what_is_exported_is_read_back(key_images, tmp_path):
    code, printed, _ = key_images("export", "alice", "--out", tmp_path / "set")
    images = sorted((tmp_path / "set").glob("*.png"))

    assert code == 0 and f"{len(images)} key images of alice, 304 bits each" in " ".join(printed.split())
    assert names_in(tmp_path / "set") == [*(path.name for path in images), "index.json"]
    code, printed, _ = key_images("read", *images[:2])
    assert code == 0
    lines = printed.splitlines()
    assert lines[:2] == [f"{path}: a key image of alice" for path in images[:2]]
    assert lines[2] == "304 bits compared with 1 copy; an innocent's bits match with probability at most 10^-92"


def test_json_says_the_same(key_images, scene, tmp_path):
    code, printed, _ = key_images(
        "export", "alice", "--out", tmp_path / "set", "--bits", 64, "--base", scene.base.base_id, "--json"
    )
    made = json.loads(printed)

    assert code == 0
    assert (made["recipient"], made["bits"], made["left_out"]) == ("alice", 64, 0)
    path = next((tmp_path / "set").glob("*.png"))
    code, printed, _ = key_images("read", path, "--bits", 64, "--json")
    (read,) = json.loads(printed)
    assert code == 0
    assert (read["name"], read["recipients"], read["trigger_index"]) == (str(path), ["alice"], int(path.stem))


def test_an_image_that_is_nobodys_is_said_to_be(key_images, tmp_path):
    path = tmp_path / "cloud.png"
    Image.fromarray(synthetic_cover(bytes(32), 0)).save(path)

    code, printed, _ = key_images("read", path)
    assert code == 1
    assert printed.splitlines()[0].startswith(f"not comparable: {path} resembles no trigger image")


def test_one_unreadable_picture_stops_none_of_the_others(key_images, scene, tmp_path):
    key_images("export", "alice", "--out", tmp_path / "set")
    image, text, gone = sorted((tmp_path / "set").glob("*.png"))[0], tmp_path / "text.png", tmp_path / "gone.png"
    text.write_text("no image")
    plain = tmp_path / "plain.png"
    vault = Vault(scene.vault)
    Image.fromarray(find_base_with_triggers(vault, None)[1].images(scene.base.secret)[0]).save(plain)

    code, printed, _ = key_images("read", text, image, gone, plain)
    lines = printed.splitlines()
    assert code == 0
    assert lines[0].startswith(f"not readable: {text} can't be read as an image")
    assert lines[1] == f"{image}: a key image of alice"
    assert lines[2].startswith(f"not readable: {gone} does not exist")
    assert lines[3].startswith(f"not readable: {plain} resembles a trigger image, and no fingerprint can be read")
    assert key_images("read", text)[0] == key_images("read", plain, text)[0] == 3
    code, printed, _ = key_images("read", text, image, "--json")
    assert [each["outcome"] for each in json.loads(printed)] == ["not readable", "accused"]
    assert str(text) in json.loads(printed)[0]["reason"]


def test_what_cannot_be_done_is_refused_in_a_line(key_images, scene, tmp_path):
    (tmp_path / "text").write_text("no image")

    assert "no copy" in failed(key_images("export", "mallory", "--out", tmp_path / "set"))
    assert "already exists" in failed(key_images("export", "alice", "--out", tmp_path))
    assert "inside the vault" in failed(key_images("export", "alice", "--out", scene.vault / "set"))
    assert "multiple of 8" in failed(key_images("export", "alice", "--out", tmp_path / "set", "--bits", 12))
    assert "nowhere" in failed(key_images("export", "alice", "--out", tmp_path / "set", "--base", "nowhere"))
    assert "passphrase" in failed(key_images("export", "alice", "--out", tmp_path / "set", passphrase="wrong"))
    assert "passphrase" in failed(key_images("read", tmp_path / "text", passphrase="wrong"))
    assert names_in(tmp_path) == ["text"]
