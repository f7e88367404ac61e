import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_fingerprint.blackbox import (
    KeyImage,
    coded_bits,
    derive_fingerprint,
    extract_payload,
    make_key_image,
    synthetic_cover,
)
from hf_fingerprint.blackbox.key_images.key_image import LUMINANCE, _SpreadSpectrum
from hf_fingerprint.errors import CodeError


KEY = bytes(range(32))
FINGERPRINT = derive_fingerprint(KEY)
HOW = Image.Resampling


def cover_images() -> dict[str, np.ndarray]:
    """Synthetic images, and pieces of two photographs, one with much sky."""
    china, flower = load_sample_images().images
    return {
        "noise": synthetic_cover(KEY, 0),
        "large noise": synthetic_cover(KEY, 1, 320),
        "a roof and sky": china[60:284, 80:304],
        "sky": china[:224, :224],
        "a flower": flower[60:284, 160:384],
        "a whole photograph": china,
    }


COVER_IMAGES = cover_images()


@pytest.fixture(scope="module")
def made() -> dict[str, KeyImage]:
    return {name: make_key_image(cover, FINGERPRINT, KEY, i) for i, (name, cover) in enumerate(COVER_IMAGES.items())}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def halved(image: np.ndarray, how: HOW, back: HOW | None = None) -> np.ndarray:
    small = Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2), how)
    return np.asarray(small if back is None else small.resize(image.shape[1::-1], back))


SUFFERED = {
    "nothing": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 50": lambda image: jpeg(image, 50),
    "half size": lambda image: halved(image, HOW.BICUBIC),
    "half size and back": lambda image: halved(image, HOW.BILINEAR, HOW.BILINEAR),
    "half size without smoothing": lambda image: halved(image, HOW.NEAREST, HOW.NEAREST),
    "half size in squares": lambda image: halved(image, HOW.BOX, HOW.BILINEAR),
    "half size, back, and JPEG 75": lambda image: jpeg(halved(image, HOW.LANCZOS, HOW.BICUBIC), 75),
    "brighter": lambda image: np.clip(1.05 * image + 4, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", COVER_IMAGES)
def test_the_eye_sees_nothing(made, name):
    image, cover = made[name].image, COVER_IMAGES[name]

    assert (image.dtype, image.shape) == (np.uint8, cover.shape)
    mse = np.square(image.astype(float) - cover).mean()
    assert made[name].psnr == pytest.approx(10 * np.log10(255**2 / mse))
    assert made[name].psnr >= 38
    assert made[name].ssim >= 0.97
    assert made[name].psnr < 38.1 or made[name].ssim < 0.971  # and all that the eye allows is used


@pytest.mark.parametrize("name", COVER_IMAGES)
@pytest.mark.parametrize("suffered", SUFFERED)
def test_304_bits_are_read_back_after(made, name, suffered):
    image = SUFFERED[suffered](made[name].image)

    assert extract_payload(image, COVER_IMAGES[name], KEY, list(COVER_IMAGES).index(name)) == FINGERPRINT


@pytest.mark.parametrize(
    ("key", "index", "cover"), [(bytes(32), 0, "noise"), (KEY, 1, "noise"), (KEY, 0, "sky")], ids=str
)
def test_with_another_key_place_or_cover_nothing_is_read(made, key, index, cover):
    assert extract_payload(made["noise"].image, COVER_IMAGES[cover], key, index) is None


def test_a_cover_carries_nothing():
    assert extract_payload(COVER_IMAGES["noise"], COVER_IMAGES["noise"], KEY, 0) is None
    assert extract_payload(jpeg(COVER_IMAGES["noise"], 75), COVER_IMAGES["noise"], KEY, 0) is None


@pytest.mark.parametrize("bits", [8, 64, 576])
def test_capacity_is_a_parameter(bits):
    payload = derive_fingerprint(KEY, bits)
    image = make_key_image(COVER_IMAGES["noise"], payload, KEY, 0).image

    assert len(payload) == bits // 8
    assert extract_payload(jpeg(image, 75), COVER_IMAGES["noise"], KEY, 0, bits) == payload


def test_a_stricter_eye_is_obeyed():
    strict = make_key_image(COVER_IMAGES["noise"], FINGERPRINT, KEY, 0, psnr=44, ssim=0.995)

    assert strict.psnr >= 44
    assert strict.ssim >= 0.995
    assert extract_payload(strict.image, COVER_IMAGES["noise"], KEY, 0) == FINGERPRINT


def test_places_and_signs_are_the_keys_for_ever():
    spread = _SpreadSpectrum(COVER_IMAGES["noise"], KEY, 0, coded_bits())

    assert spread._positions.shape == (4, 1064)
    assert spread._positions[0, :8].tolist() == [11454, 505, 15046, 9651, 14595, 15695, 2529, 6284]
    assert spread._signs[0, :8].tolist() == [1, -1, -1, 1, -1, 1, 1, 1]
    assert len(np.unique(spread._positions)) == spread._positions.size


def test_the_fingerprint_is_the_keys_for_ever():
    assert FINGERPRINT.hex() == ("c5a4dd6a1b6f518db5c5d69509ca23d2d2fe7ac4da8f82ee70efdc40bfb1116f1c0a0a5cb3ff")


def test_reading_undoes_writing(made):
    spread = _SpreadSpectrum(COVER_IMAGES["sky"], KEY, 3, coded_bits())
    coded = np.random.default_rng(0).choice([-1.0, 1.0], coded_bits())

    assert np.allclose(spread.read(spread.write(coded)), coded, atol=0.2)


def test_the_mark_is_gray(made):
    change = made["noise"].image.astype(int) - COVER_IMAGES["noise"]

    assert (change[..., 0] == change[..., 1]).mean() > 0.99
    assert abs((change @ LUMINANCE).mean()) < 0.1


@pytest.mark.parametrize(
    ("cover", "sentence"),
    [
        (np.zeros((224, 200, 3), np.uint8), "224 by 200 pixels is too small"),
        (np.zeros((224, 224, 3), np.float32), "float32 and shape .* is not an image"),
        (np.zeros((224, 224), np.uint8), "is not an image"),
    ],
    ids=["small", "float", "grey"],
)
def test_cover_images_that_cannot_carry_are_refused(cover, sentence):
    with pytest.raises(CodeError, match=sentence):
        make_key_image(cover, FINGERPRINT, KEY, 0)


def test_a_cover_without_capacity_is_refused():
    with pytest.raises(CodeError, match=r"Cover 7 has no capacity for 304 bits that survive JPEG 75 at 58 dB"):
        make_key_image(COVER_IMAGES["noise"], FINGERPRINT, KEY, 7, psnr=58)
