from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.inputs import LazyImages, lazy_synthetic_images, synthetic_images
from hf_fingerprint.models.inputs import user_images as lazy_user_images
from tests.helpers.small_models import build, save_timm, save_vit


def shaped(channels: int, height: int, width: int, mean: float = 0.5, std: float = 0.5) -> BuiltModel:
    return BuiltModel(torch.nn.Identity(), (channels, height, width), (mean,) * channels, (std,) * channels, None)


def user_images(*arguments: object, **options: object) -> torch.Tensor:
    """All of them in memory."""
    return torch.cat(list(lazy_user_images(*arguments, **options).batches(32)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that come with a preprocessing."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        timm=build(save_timm(root / "timm", "test_vit")),
        vit=build(save_vit(root / "vit")),
        grayscale_timm=build(save_timm(root / "grayscale_timm", "test_resnet", in_chans=1)),
        grayscale_vit=build(save_vit(root / "grayscale_vit", num_channels=1)),
    )


@pytest.fixture
def folder(tmp_path):
    """Images of several kinds and sizes, in a folder and a subfolder, next to a file that is no image."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for i, (name, mode) in enumerate(
        [("a.png", "RGB"), ("b.PNG", "L"), ("more/c.jpg", "RGB"), ("more/d.png", "RGBA")]
    ):
        channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
        pixels = rng.integers(0, 255, (40 + i, 50, channels), np.uint8)
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(tmp_path / "images" / name)
    (tmp_path / "images" / "labels.txt").write_text("not an image")
    return tmp_path / "images"


@pytest.mark.parametrize("form", ["timm", "vit", "grayscale_timm", "grayscale_vit"])
def test_a_users_images_go_through_the_models_preprocessing(models, folder, form):
    model = getattr(models, form)

    images = user_images(folder, model)

    assert images.shape == (4, *model.size)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert -1 <= images.min() < images.max() <= 1
    assert len({image.numpy().tobytes() for image in images}) == 4
    with torch.no_grad():
        model.module(images)


def test_the_preprocessing_is_the_models_own(models, folder):
    first = Image.open(folder / "a.png").convert("RGB")

    assert torch.equal(user_images(folder, models.timm)[0], models.timm.preprocess(first))


def test_of_many_images_some_are_picked_evenly(models, tmp_path):
    for i in range(50):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i:02}.png")

    images = user_images(tmp_path, models.vit, count=5)

    picked = ((images[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().int().tolist()
    assert picked == [0, 12, 24, 36, 49]
    assert len(user_images(tmp_path, models.vit)) == 32


@pytest.mark.parametrize("what", ["empty", "missing", "no images"])
def test_a_folder_without_images_is_refused_in_one_sentence(models, tmp_path, what):
    place = tmp_path / "images"
    if what != "missing":
        place.mkdir()
    if what == "no images":
        (place / "a.txt").write_text("x")

    with pytest.raises(FingerprintError, match="holds no images") as caught:
        user_images(place, models.timm)

    assert len(str(caught.value).splitlines()) == 1
    assert str(place) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(50), "half"])
def test_an_unreadable_image_is_named_in_one_sentence(models, folder, content):
    broken = folder / "more" / "broken.png"
    broken.write_bytes((folder / "a.png").read_bytes()[:3000] if content == "half" else content)

    with pytest.raises(FingerprintError, match=r"broken\.png can't be read as an image") as caught:
        user_images(folder, models.timm)

    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_named_like_an_image_is_refused_or_ignored(models, folder):
    (folder / "folder.png").mkdir()

    try:
        assert len(user_images(folder, models.timm)) == 4
    except FingerprintError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("size", [(3, 160, 160), (1, 28, 28), (3, 33, 47), (4, 16, 16)])
def test_synthetic_images_have_the_models_shape(size):
    images = synthetic_images(shaped(*size), count=6)

    assert images.shape == (6, *size)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < images.max() <= 1


def test_synthetic_images_are_the_same_for_the_same_seed_and_differ_otherwise():
    model = shaped(3, 32, 32)

    assert torch.equal(synthetic_images(model), synthetic_images(model))
    assert not torch.equal(synthetic_images(model), synthetic_images(model, seed=1))
    assert len({image.numpy().tobytes() for image in synthetic_images(model)}) == 32


def test_synthetic_images_are_in_the_models_normalization():
    plain = synthetic_images(shaped(3, 32, 32, mean=0.0, std=1.0))
    normal = synthetic_images(BuiltModel(None, (3, 32, 32), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0), None))

    assert 0 <= plain.min() < plain.max() <= 1
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 2.0])[:, None, None]
    assert torch.allclose(normal, (plain - mean) / std, atol=1e-6)
    assert 0.3 < plain.mean() < 0.7
    assert 0.1 < plain.std() < 0.4


def test_synthetic_images_have_the_spectrum_of_photographs():
    images = synthetic_images(shaped(1, 64, 64, 0.0, 1.0), count=64).numpy()[:, 0]

    spectrum = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))).mean(0)
    low, high = spectrum[0, 2:5].mean(), spectrum[0, 16:24].mean()
    slope = np.log(low / high) / np.log(20 / 3)
    assert slope == pytest.approx(1, abs=0.25)


def test_the_channels_of_synthetic_images_are_correlated_but_not_equal():
    images = synthetic_images(shaped(3, 32, 32, 0.0, 1.0), count=32).numpy()

    together = [np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1] for image in images]
    assert 0.2 < np.mean(together) < 0.98
    assert not np.allclose(images[:, 0], images[:, 1])


def test_lazy_synthetic_images_begin_with_those_of_the_seed():
    model = shaped(3, 8, 8)

    images = torch.cat(list(lazy_synthetic_images(model, 70, seed=3).batches(70)))

    assert torch.equal(images[:32], synthetic_images(model, 32, seed=3))
    assert len({image.numpy().tobytes() for image in images}) == 70


def test_sets_of_synthetic_images_of_two_seeds_have_none_in_common():
    model = shaped(3, 8, 8)

    sets = [
        {image.numpy().tobytes() for image in lazy_synthetic_images(model, 70, seed).batches(1)} for seed in (0, 1)
    ]

    assert len(sets[0]) == len(sets[1]) == 70
    assert not sets[0] & sets[1]


@pytest.mark.parametrize("count", [1, 7, 32, 33, 64, 70, 100])
def test_batches_have_the_requested_size_and_the_last_the_rest(count):
    model = shaped(1, 4, 4)
    images = lazy_synthetic_images(model, 70)

    batches = list(images.batches(count))

    assert len(images) == 70
    assert [len(batch) for batch in batches[:-1]] == [count] * (70 // count - (70 % count == 0))
    assert torch.equal(torch.cat(batches), torch.cat(list(images.batches(70))))


def test_lazy_images_of_a_tensor():
    pixels = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()

    images = LazyImages.of(pixels)

    assert (len(images), images.size, images.pixels) == (2, (3, 4, 5), 20)
    assert [batch.tolist() for batch in images.batches(1)] == [pixels[:1].tolist(), pixels[1:].tolist()]
