import hashlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_fingerprint import Issuer, issue
from hf_fingerprint.blackbox.key_images import export
from hf_fingerprint.blackbox.key_images.export import (
    check_bits,
    export_key_images,
    log10_false_match,
    mark_triggers,
    placement_key,
)
from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.errors import CodeError, FingerprintError, VaultError
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, names_in, new_vault, save_plain
from tests.helpers.trigger_models import ModelSuspect, base_with_triggers


pytestmark = pytest.mark.integration
NAMES = ["alice", "bob", "carol"]
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A base with a trigger set, copies of three recipients, and the key images of one."""
    root = tmp_path_factory.mktemp("key_sets")
    folder, vault, base = base_with_triggers(root)
    copies = {name: issue(folder, name, vault, root / name) for name in NAMES}
    keys = {name: vault.copy_key(vault.copies(base.base_id, name)[0]) for name in NAMES}
    steps = []
    made = export_key_images(folder, "alice", vault, root / "set", progress=lambda *step: steps.append(step))
    trigger_set = load_trigger_set(vault, base)
    images = trigger_set.images(base.secret)
    return SimpleNamespace(
        root=root,
        vault=vault,
        base=base,
        copies=copies,
        keys=keys,
        made=made,
        steps=steps,
        trigger_set=trigger_set,
        images=images,
    )


def assigned_to(scene, name: str) -> np.ndarray:
    return scene.trigger_set.assigned_labels([scene.keys[name]])[1][0]


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_set_holds_what_the_recipient_owns_and_looks_like_it(scene):
    assigned = np.flatnonzero(assigned_to(scene, "alice")).tolist()
    folder = scene.root / "set"

    assert names_in(folder) == [*(f"{index:03}.png" for index in assigned), "index.json"]
    assert (scene.made.images, scene.made.left_out, scene.made.bits) == (len(assigned), 0, 304)
    assert (scene.made.recipient, scene.made.base_id) == ("alice", scene.base.base_id)
    assert scene.made.copy_id == scene.copies["alice"].copy_id
    for index in assigned:
        apart = picture(folder / f"{index:03}.png") - scene.images[index].astype(float)
        assert apart.any() and 10 * math.log10(255**2 / np.square(apart).mean()) >= 38
    assert scene.made.psnr >= 38 and scene.made.ssim >= 0.97
    assert scene.steps == [("marking", done, len(assigned)) for done in range(1, len(assigned) + 1)]


def test_the_index_lists_the_files_and_tells_no_secret(scene):
    text = (scene.root / "set" / "index.json").read_text()
    index = json.loads(text)

    assert index.keys() == {"base", "bits", "left_out", "images"}
    assert len(index["images"]) == scene.made.images
    for each in index["images"]:
        assert each.keys() == {"file", "psnr", "ssim", "sha256"}
        assert each["sha256"] == hashlib.sha256((scene.root / "set" / each["file"]).read_bytes()).hexdigest()
    for secret in [scene.base.secret, *scene.keys.values()]:
        assert secret.hex() not in text
    assert json.loads(json.dumps(scene.made.to_dict()))["images"] == scene.made.images


def test_the_mark_is_no_trigger(scene):
    """With the mark, without it, and with another's mark, the copy predicts its labels equally often."""
    (labels,), _ = scene.trigger_set.assigned_labels([scene.keys["alice"]])
    assigned = np.flatnonzero(assigned_to(scene, "alice"))
    suspect = ModelSuspect(scene.copies["alice"].path)

    def assigned_labels(images) -> np.ndarray:
        return np.array([suspect(image) for image in images])

    def marked_for(name: str) -> list[np.ndarray]:
        every = mark_triggers(scene.images, assigned_to(scene, "alice"), scene.base.secret, scene.keys[name])
        return [made.image for _, made in every]

    plain, own, others = (
        assigned_labels(scene.images[assigned]),
        assigned_labels(marked_for("alice")),
        assigned_labels(marked_for("bob")),
    )

    assert (plain == labels[assigned]).mean() >= 0.9
    assert (own == plain).all()
    assert (others == plain).all()


def test_the_mark_assigns_no_trigger(scene):
    """The mark on a trigger that isn't assigned to a copy doesn't make it predict its labels."""
    (labels,), _ = scene.trigger_set.assigned_labels([scene.keys["alice"]])
    rest = np.flatnonzero(~assigned_to(scene, "alice"))
    suspect = ModelSuspect(scene.copies["alice"].path)
    marked = mark_triggers(scene.images, ~assigned_to(scene, "alice"), scene.base.secret, scene.keys["alice"])

    predicted_labels = np.array([suspect(made.image) for _, made in marked])
    plain = np.array([suspect(scene.images[index]) for index in rest])

    assert (predicted_labels == labels[rest]).sum() <= (plain == labels[rest]).sum()
    assert (predicted_labels == plain).mean() >= 0.8


def test_the_places_are_the_secrets_for_ever():
    assert placement_key(SECRET).hex() == "f68207f052cde1c74adac5b3b5165cafdcebdb80fad42541d486168953ce2bcc"


@pytest.mark.parametrize(("bits", "copies", "expected"), [(304, 1, -91.51), (304, 1000, -88.51), (8, 1000, 0)])
def test_the_odds_of_a_false_match(bits, copies, expected):
    assert log10_false_match(bits, copies) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("copies", "enough"), [(1, 24), (1000, 32), (1_000_000, 40)])
def test_too_few_bits_are_refused_with_how_many_are_enough(copies, enough):
    check_bits(enough, copies, 1e-6)

    assert f"choose {enough} or more" in refused(check_bits, enough - 8, copies, 1e-6, error=CodeError)


@pytest.mark.parametrize("bits", [64, 576])
def test_capacity_is_a_parameter(scene, bits):
    made = export_key_images(None, "bob", scene.vault, scene.root / f"{bits}", bits)

    assert made.bits == bits == json.loads((scene.root / f"{bits}" / "index.json").read_text())["bits"]
    assert made.images == assigned_to(scene, "bob").sum()


def test_a_trigger_without_capacity_is_left_out_and_counted(scene, monkeypatch):
    really, assigned = export.make_key_image, np.flatnonzero(assigned_to(scene, "carol"))

    def some(cover, payload, key, index):
        return really(cover, payload, key, index, psnr=38 if index in assigned[:2] else 58)

    monkeypatch.setattr(export, "make_key_image", some)
    made = export_key_images(None, "carol", scene.vault, scene.root / "some")

    assert (made.images, made.left_out) == (2, len(assigned) - 2)
    assert len(names_in(scene.root / "some")) == 3
    assigned = assigned[:0]
    said = refused(export_key_images, None, "carol", scene.vault, scene.root / "none")
    assert "has capacity for 304 bits" in said and not (scene.root / "none").exists()


def test_what_fails_leaves_nothing(scene, monkeypatch, tmp_path):
    def broken(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_private", broken)
    with pytest.raises(KeyboardInterrupt):
        export_key_images(None, "alice", scene.vault, tmp_path / "deep" / "set")

    assert names_in(tmp_path / "deep") == []


def test_places_that_are_no_good_are_refused(scene, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, said in [
        (tmp_path / "there", "already exists"),
        (tmp_path / "file", "already exists"),
        (tmp_path / "file" / "set", "can't be written"),
        (scene.vault.folder / "set", "inside the vault"),
        (tmp_path / ("x" * 300), "can't be written"),
    ]:
        assert said in refused(export_key_images, None, "alice", scene.vault, out)
    assert names_in(tmp_path) == ["file", "there"]
    assert not list(scene.vault.folder.rglob("*set*"))


def test_a_recipient_must_have_one_copy_or_be_named_by_its_id(scene, tmp_path):
    again = issue(scene.root / "base", "bob", scene.vault, tmp_path / "again")
    try:
        said = refused(export_key_images, None, "bob", scene.vault, tmp_path / "set", error=VaultError)
        assert "bob has 2 copies" in said and again.copy_id in said
        made = export_key_images(None, again.copy_id, scene.vault, tmp_path / "set")
        assert (made.recipient, made.copy_id) == ("bob", again.copy_id)
    finally:
        with scene.vault.connect() as connection:
            connection.execute("DELETE FROM bound WHERE copy_id = ?", (again.copy_id,))
            connection.execute("DELETE FROM copies WHERE copy_id = ?", (again.copy_id,))
    assert "no copy" in refused(export_key_images, None, "mallory", scene.vault, tmp_path / "m", error=VaultError)


def test_a_locked_vault_and_one_without_trigger_sets_are_refused(scene, tmp_path):
    locked = Vault(scene.vault.folder)
    assert "passphrase" in refused(export_key_images, None, "alice", locked, tmp_path / "set")
    bare = new_vault(tmp_path / "vault")
    bare.unlock(PASSPHRASE)
    with Issuer(save_plain(tmp_path / "model"), bare, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", tmp_path / "alice")
    for base in (None, issuer.base.base_id):
        said = refused(export_key_images, base, "alice", bare, tmp_path / "set", error=FingerprintError)
        assert "hf-fingerprint triggers" in said
    assert not (tmp_path / "set").exists()
