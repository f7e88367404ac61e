"""The one place where a picture is opened: of a known format, no larger than its limits, or refused in one sentence.

A picture may be damaged in more ways than its format's reader has errors for, and a small file may unpack to more
pixels than memory holds. So its bytes, its size in pixels and what else a reader works on are looked at before the
reader makes pixels of them.
"""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints.limits import MAX_ASPECT, MAX_IMAGE, MAX_PIXELS, MAX_SCANS, read_bounded
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
_TILE = (322, 323)  # TIFF's tags: width and length of a tile, each of which is unpacked whole


def open_image(
    source: Path | bytes,
    mode: str | None = "RGB",
    name: str | None = None,
    apply_orientation: bool = False,
    formats: tuple[str, ...] = FORMATS,
    pixels: int = MAX_PIXELS,
) -> "Image.Image":
    """A picture, unpacked; of an animated one the first frame.

    Args:
        source (`Path` or `bytes`): a file, or what it holds.
        mode (`str`, *optional*, defaults to `"RGB"`): Pillow's, that it is converted to; `None` for its own.
        name (`str`, *optional*): what to call it in errors; by default the file's path.
        apply_orientation (`bool`, *optional*, defaults to `False`): whether it is turned as its camera says.
        formats (`tuple[str, ...]`, *optional*): Pillow's names of those that are read.
        pixels (`int`, *optional*): how many it may have.

    Raises:
        [`FingerprintError`]: if it is not there, is too large, or can't be read as an image.
    """
    from PIL import Image, ImageOps

    where = printable(str(source) if isinstance(source, Path) else "an image") if name is None else name
    try:
        content = read_bounded(source, MAX_IMAGE, "an image", FingerprintError) if isinstance(source, Path) else source
        if content.startswith(_JPEG) and content.count(_SCAN) > MAX_SCANS:
            raise FingerprintError(f"{where} is drawn in more than {MAX_SCANS} scans: save it anew, or remove it.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd about it
            with Image.open(BytesIO(content), formats=formats) as image:
                _check_size(image, where, pixels)
                upright = ImageOps.exif_transpose(image) if apply_orientation else image
                return upright.convert(mode or upright.mode)
    except FingerprintError:
        raise
    except FileNotFoundError:
        raise FingerprintError(f"{where} is not there: name an image.") from None
    except Exception:  # a damaged file makes Pillow raise whatever its bytes happen to mean
        raise FingerprintError(f"{where} can't be read as an image: remove or replace it.") from None


def _check_size(image: Any, where: str, pixels: int) -> None:
    """Refuses what takes too much memory to unpack, or grows without end when it is scaled by its shorter side."""
    width, height = image.size
    tile = [_number(getattr(image, "tag_v2", {}).get(tag, 0)) for tag in _TILE]
    if width * height > pixels or tile[0] * tile[1] > max(pixels, MAX_PIXELS):
        raise FingerprintError(
            f"{where} has {width} x {height} pixels, and an image of up to {pixels / 1e6:g} megapixels is read: scale "
            f"it down, or remove it."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise FingerprintError(
            f"{where} has {width} x {height} pixels, and an image is read whose sides differ by up to a factor of "
            f"{MAX_ASPECT}: crop it, or remove it."
        )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
