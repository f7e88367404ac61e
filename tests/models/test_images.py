"""Images are opened in one place, and every kind of damage is one error that names the image."""

from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples.benchmarks.fuzz_inputs import of_bytes, png
from hf_fingerprint.checkpoints.limits import MAX_IMAGE, MAX_PIXELS, MAX_SCANS
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models import open_image
from hf_fingerprint.models.images import _check_size
from tests.helpers.error_checks import refused


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
KINDS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_read_from_a_file_or_bytes(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(saved(kind))

    for source in (path, path.read_bytes()):
        opened = open_image(source)
        assert (opened.mode, opened.size) == ("RGB", (32, 24))
    assert open_image(path, "L").mode == "L"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_images_of_every_mode_are_read(mode):
    content = saved("TIFF", Image.fromarray(PIXELS).convert("L").convert("I").convert(mode))

    assert open_image(content).mode == "RGB"


def test_the_orientation_is_applied_on_request():
    exif = Image.Exif()
    exif[274] = 6
    content = saved("JPEG", exif=exif)

    assert open_image(content, apply_orientation=True).size == (24, 32)
    assert open_image(content).size == (32, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_read_or_refused_by_name_and_nothing_else(tmp_path, kind):
    path, whole = tmp_path / "image.x", saved(kind)
    for seed in range(60):
        path.write_bytes(of_bytes(whole, np.random.default_rng(seed)))
        try:
            open_image(path, apply_orientation=True)
        except FingerprintError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", saved("ICO", Image.fromarray(PIXELS)), saved("PPM")]
)
def test_an_unknown_image_format_is_refused(content):
    assert "a cover can't be read as an image" in refused(partial(open_image, name="a cover"), content)


def test_more_pixels_than_memory_holds_are_refused_before_they_are_unpacked(tmp_path):
    bomb = png(13_300, 13_300)
    assert len(bomb) < MAX_IMAGE and MAX_PIXELS < 13_300**2

    assert "13300 x 13300 pixels" in refused(partial(open_image, name="cover 1"), bomb)
    assert "megapixels" in refused(partial(open_image, name="cover 1", pixels=224**2), png(300, 300))
    assert "crop it" in refused(open_image, png(10_000, 3))


def test_a_large_tile_of_a_small_image_is_not_decoded():
    small = SimpleNamespace(size=(32, 24), tag_v2={322: 30_000, 323: 30_000})  # width and length of a tile

    assert "megapixels" in refused(_check_size, small, "a.tif", MAX_PIXELS)


def test_an_image_with_endless_scans_is_refused():
    scans = b"\xff\xda\0\x08\1\1\0\0\x3f\0\0" * (MAX_SCANS + 1)
    progressive = saved("JPEG", progressive=True)

    assert open_image(progressive).size == (32, 24)
    assert "scans" in refused(open_image, progressive[:-2] + scans + b"\xff\xd9")


def test_a_file_that_is_too_large_or_no_file_is_refused(tmp_path):
    large = tmp_path / "large.png"
    with large.open("wb") as stream:
        stream.truncate(MAX_IMAGE + 1)

    assert "an image may have 64 MB" in refused(open_image, large)
    assert "not a regular file" in refused(open_image, Path("/dev/zero"))
    assert "does not exist" in refused(open_image, tmp_path / "missing.png")
    assert "can't be read as an image" in refused(open_image, tmp_path)


def test_a_name_with_terminal_controls_is_shown_on_one_line(tmp_path):
    path = tmp_path / "\x1b[2J\nx.png"
    path.write_bytes(b"no")

    assert "\x1b" not in refused(open_image, path)
