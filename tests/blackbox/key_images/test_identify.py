from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_fingerprint import issue
from hf_fingerprint.blackbox import synthetic_cover
from hf_fingerprint.blackbox.key_images.export import export_key_images, mark_triggers
from hf_fingerprint.blackbox.key_images.identify import MIN_IMAGE_SIZE, KeyImageIdentifier, identify_key_image
from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.errors import CodeError, VaultError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.records_with_triggers import add_copy, add_trigger_set, records_with_triggers
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    SETTINGS,
    names_in,
    new_vault,
    plain_arrays,
    save_plain,
)
from tests.helpers.trigger_models import COUNT, base_with_triggers


pytestmark = pytest.mark.integration
NAMES = ["alice", "bob", "carol"]
HOW = Image.Resampling


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A base with a trigger set, three recipients, the key images of two, and their identifier."""
    root = tmp_path_factory.mktemp("key_reading")
    folder, vault, base = base_with_triggers(root, steps=1)
    for name in NAMES:
        issue(folder, name, vault, root / name)
    for name in NAMES[:2]:
        export_key_images(None, name, vault, root / f"{name}_set")
    sets = {name: sorted((root / f"{name}_set").glob("*.png")) for name in NAMES[:2]}
    return SimpleNamespace(root=root, vault=vault, base=base, sets=sets, reader=KeyImageIdentifier(vault))


def jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def halved(image: np.ndarray, how: HOW, back: bool = True) -> np.ndarray:
    small = Image.fromarray(image).resize((112, 112), how)
    return np.asarray(small.resize((224, 224), how) if back else small)


SUFFERED = {
    "nothing": lambda image: image,
    "JPEG 75": jpeg,
    "half size": lambda image: halved(image, HOW.BICUBIC, back=False),
    **{f"half size and back, {how.name}": lambda image, how=how: halved(image, how) for how in HOW if how.value != 5},
    "half size, back, JPEG 75": lambda image: jpeg(halved(image, HOW.BICUBIC)),
}


@pytest.mark.parametrize("suffered", SUFFERED)
@pytest.mark.parametrize("name", NAMES[:2])
def test_every_key_image_names_its_recipient_and_nobody_else_after(scene, name, suffered):
    for path in scene.sets[name]:
        read = scene.reader.read(SUFFERED[suffered](np.asarray(Image.open(path))))

        assert read.recipients == (name,)
        assert (read.outcome, read.reason, read.base_id) == (Outcome.ACCUSED, None, scene.base.base_id)
        assert read.trigger_index == int(path.stem)
        assert (read.bits, read.copies) == (304, 3)
        assert read.log10_false_match < -90


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_files_of_several_kinds_are_read(scene, tmp_path, suffix, mode):
    path = scene.sets["alice"][0]
    place = tmp_path / f"found.{suffix}"
    Image.open(path).convert(mode).save(place)

    read = identify_key_image(place, scene.vault, scene.base.base_id)

    assert (read.name, read.recipients) == (str(place), ("alice",))


def test_an_image_that_carries_nothing_is_nobodys(scene):
    plain = load_trigger_set(scene.vault, scene.base).images(scene.base.secret)
    flat = np.full((224, 224, 3), 7, np.uint8)
    strangers = [synthetic_cover(bytes(32), 0), flat, np.zeros_like(flat), plain[COUNT]]  # the last one is a decoy

    for image, outcome in [
        *((each, Outcome.NOT_COMPARABLE) for each in strangers),
        *((each, Outcome.NOT_READABLE) for each in (jpeg(plain[0]), *plain[:COUNT:4])),
    ]:
        read = scene.reader.read(image)
        assert (read.recipients, read.trigger_index, read.base_id) == ((), None, None)
        assert read.outcome is outcome
        assert "224 x 224 pixels" in read.reason and read.reason.endswith(".")


def test_the_fingerprint_of_a_key_that_no_copy_has_is_nobodys(scene):
    plain = load_trigger_set(scene.vault, scene.base).images(scene.base.secret)
    every = np.arange(len(plain)) < 6

    for index, made in mark_triggers(plain, every, scene.base.secret, bytes(range(32))):
        read = scene.reader.read(made.image)
        assert (read.recipients, read.trigger_index) == ((), index)
        assert (read.outcome, read.reason) == (Outcome.NOBODY, None)


def test_key_images_of_another_secret_are_not_read(scene):
    plain = load_trigger_set(scene.vault, scene.base).images(scene.base.secret)
    (record,) = scene.vault.copies(recipient="alice")

    for _, made in mark_triggers(plain, np.arange(6) < 6, bytes(32), scene.vault.copy_key(record)):
        assert not scene.reader.read(made.image).recipients


def test_a_mixture_of_two_recipients_images_names_no_third(scene):
    numbers = [{path.name for path in scene.sets[name]} for name in NAMES[:2]]
    for name in sorted(numbers[0] & numbers[1]):
        one, two = (np.asarray(Image.open(scene.root / f"{who}_set" / name), float) for who in NAMES[:2])
        read = scene.reader.read(np.rint((one + two) / 2).astype(np.uint8))

        assert set(read.recipients) <= set(NAMES[:2])


def test_other_capacities_are_read_as_they_were_written(scene, tmp_path):
    export_key_images(None, "carol", scene.vault, tmp_path / "set", 64)
    path = sorted((tmp_path / "set").glob("*.png"))[0]

    read = identify_key_image(path, scene.vault, bits=64)
    assert (read.recipients, read.bits) == (("carol",), 64)
    assert -19 < read.log10_false_match < -18
    assert not scene.reader.read(path).recipients


def test_what_is_no_image_is_not_readable_and_says_why(scene, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = scene.sets["alice"][0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (MIN_IMAGE_SIZE - 1, 500)).save(tmp_path / "small.png")
    for name, said in [
        ("text.png", "can't be read as an image"),
        ("cut.png", "can't be read as an image"),
        ("nowhere.png", "nowhere.png does not exist"),
        ("small.png", "too small"),
        (".", "can't be read as an image"),
    ]:
        read = scene.reader.read(tmp_path / name)
        assert (read.outcome, read.recipients, read.trigger_index) == (Outcome.NOT_READABLE, (), None)
        assert said in read.reason and read.reason.endswith(".")
    assert "not an image" in refused(scene.reader.read, np.zeros((224, 224), np.uint8))
    assert "too small" in scene.reader.read(np.zeros((20, 224, 3), np.uint8)).reason


def test_so_few_bits_that_innocents_would_be_named_are_refused(scene):
    assert "choose 24 or more" in refused(KeyImageIdentifier, scene.vault, None, 16, error=CodeError)
    assert "multiple of 8" in refused(KeyImageIdentifier, scene.vault, None, 33, error=CodeError)


def test_vaults_that_cannot_say_are_refused(scene, tmp_path):
    assert "passphrase" in refused(KeyImageIdentifier, Vault(scene.vault.folder))
    bare = new_vault(tmp_path / "vault")
    bare.unlock(PASSPHRASE)
    assert "hf-fingerprint triggers" in refused(KeyImageIdentifier, bare, error=VaultError)
    known = register(scene.root / "base", bare, SETTINGS)
    bare.add_trigger_set(known, scene.vault.trigger_set(scene.base))
    assert "it has no copies" in refused(KeyImageIdentifier, bare, known.base_id, error=VaultError)


def test_key_images_of_every_record_are_read_at_once(tmp_path):
    """Of two records of the same weights and a third of others, with other classes."""
    records = records_with_triggers(tmp_path, copies=2)
    vault = records.vault
    other = register(save_plain(tmp_path / "other", plain_arrays(seed=3)), vault, PLAIN_SETTINGS)
    add_trigger_set(vault, other, classes=12, count=4)
    add_copy(vault, other, "eve")
    bases = (*records.bases, other)
    reader, similar_cover_images = KeyImageIdentifier(vault), KeyImageIdentifier(vault, records.model)

    assert (reader.copies, similar_cover_images.copies) == (5, 4)
    for base in bases:
        plain = load_trigger_set(vault, base).images(base.secret)
        (*_, record) = vault.copies(base.base_id)
        for index, made in mark_triggers(plain, np.arange(2) < 2, base.secret, vault.copy_key(record)):
            read = reader.read(made.image)
            assert (read.recipients, read.base_id, read.trigger_index) == ((record.recipient,), base.base_id, index)
            assert read.copies == 5
            expected = Outcome.NOT_COMPARABLE if base == other else Outcome.ACCUSED
            assert similar_cover_images.read(made.image).outcome is expected


def test_nobody_is_named_at_an_alpha_that_is_too_large(scene, monkeypatch):
    for alpha in (0.99, float("nan"), 0):
        monkeypatch.setattr(Vault, "bases", lambda vault, alpha=alpha: [replace(scene.base, alpha=alpha)])
        assert "alpha" in refused(KeyImageIdentifier, scene.vault, error=CodeError)


def test_reading_leaves_no_trace(scene):
    assert names_in(scene.root / "alice_set") == [*(path.name for path in scene.sets["alice"]), "index.json"]
    assert not any(secret.hex() in repr(vars(scene.reader)) for secret in [scene.base.secret])
