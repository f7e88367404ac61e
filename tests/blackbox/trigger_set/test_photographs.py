import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_fingerprint import issue
from hf_fingerprint.blackbox.key_images.export import export_key_images
from hf_fingerprint.blackbox.key_images.identify import KeyImageIdentifier
from hf_fingerprint.blackbox.querying.query import load_trigger_set, query
from hf_fingerprint.blackbox.trigger_set.build import build_trigger_set, make_trigger_set
from hf_fingerprint.blackbox.trigger_set.photographs import decode_photographs, load_photographs
from hf_fingerprint.blackbox.trigger_set.triggers import add_pattern
from hf_fingerprint.registration import register
from tests.helpers.error_checks import refused
from tests.helpers.small_models import SETTINGS, save_vit, unlocked_vault
from tests.helpers.trigger_models import COUNT, DECOYS, STEPS, ModelSuspect, built, names_of


pytestmark = pytest.mark.integration
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with pieces of two photographs, some larger than others, one too small and one there twice."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    for name, whole in zip(("china", "flower"), load_sample_images().images, strict=True):
        for piece in range(COUNT // 2 + DECOYS // 2 + 1):
            top, left, wide = 8 * (piece % 10), 24 * piece % 320, 300 if piece % 2 else 240
            place = folder / ("more" if piece % 3 else "") / f"{name}{piece}.{'jpg' if piece % 4 else 'png'}"
            Image.fromarray(whole[top : top + 260, left : left + wide]).save(place)
    (folder / "notes.txt").write_text("not a photograph")
    Image.new("RGB", (223, 400)).save(folder / "small.png")
    (folder / "twice.png").write_bytes((folder / "china0.png").read_bytes())
    return folder


def test_photographs_are_cropped_and_scaled(photographs):
    cover_images = load_photographs(photographs, 30, SECRET)
    pixels = decode_photographs(cover_images)

    assert (pixels.shape, pixels.dtype) == ((30, 224, 224, 3), np.uint8)
    assert len({cover.tobytes() for cover in pixels}) == 30
    whole = np.asarray(Image.open(photographs / "china0.png"))
    assert whole.shape == (260, 240, 3)
    middle = np.asarray(Image.fromarray(whole[10:250]).resize((224, 224), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels.astype(int) - middle).mean((1, 2, 3)).min() <= 0.2


def test_which_are_taken_and_their_order_hang_on_the_secret(photographs):
    one, again, other = (load_photographs(photographs, 20, secret) for secret in (SECRET, SECRET, bytes(32)))

    assert one == again
    assert set(one) != set(other)
    assert one != tuple(sorted(one))
    assert load_photographs(photographs, 28, SECRET)[:20] == one


def test_too_few_are_refused(photographs, tmp_path):
    said = refused(load_photographs, photographs, 31, SECRET)
    assert "holds 30 different photographs of 224 pixels or more, and 31 are needed" in said
    assert "holds no images" in refused(load_photographs, tmp_path / "nowhere", 1, SECRET)
    (tmp_path / "broken.jpg").write_text("no image")
    assert "broken.jpg can't be read" in refused(load_photographs, tmp_path, 1, SECRET)


@pytest.fixture(scope="module")
def issued(tmp_path_factory, photographs):
    """A base with a trigger set of photographs, and a copy of it."""
    root = tmp_path_factory.mktemp("own_covers")
    folder, vault = save_vit(root / "base", hidden_size=128), unlocked_vault(root / "vault")
    base = register(folder, vault, SETTINGS)
    made = make_trigger_set(base.base_id, vault, count=COUNT, decoys=DECOYS, steps=STEPS, cover_images=photographs)
    return vault, base, made, [issue(folder, name, vault, root / name) for name in ("alice", "bob")]


def test_triggers_and_decoys_are_photographs_and_come_back_unchanged(issued, photographs):
    vault, base, made, _ = issued
    kept = load_trigger_set(vault, base)
    images = kept.images(base.secret)

    assert len(kept.cover_images) == COUNT + DECOYS
    assert kept.to_bytes() == made.to_bytes()
    cover_images = decode_photographs(load_photographs(photographs, COUNT + DECOYS, base.secret))
    assert np.array_equal(images, [add_pattern(*each) for each in zip(cover_images, made.patterns, strict=True)])


def test_copies_answer_them_and_their_key_images_name_their_recipients(issued, tmp_path):
    vault, _, _, copies = issued
    result = query(ModelSuspect(copies[0].path), vault, alpha=1e-3)
    assert [score.recipient for score in result.accused] == ["alice"]

    made = export_key_images(None, "bob", vault, tmp_path / "set")
    reader = KeyImageIdentifier(vault)
    paths = sorted((tmp_path / "set").glob("*.png"))
    assert len(paths) == made.images and made.psnr >= 38
    assert all(reader.read(path).recipients == ("bob",) for path in paths)


def test_too_few_photographs_are_refused_before_anything_is_made(photographs, tmp_path):
    folder = save_vit(tmp_path / "base")
    model = built(folder)
    steps = []

    def make():
        build_trigger_set(
            model,
            names_of(folder, model),
            SECRET,
            "0123456789ab",
            progress=lambda *step: steps.append(step),
            cover_images=photographs,
        )

    assert "180 are needed as covers" in refused(make)
    assert not steps
