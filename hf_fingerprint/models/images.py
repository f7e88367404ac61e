"""Open untrusted images: known formats within limits, or one error. The only place in the package that opens them.

A damaged image may raise any exception, and a small file may decode to more pixels than memory holds, so all costs are
checked before an image is decoded.
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
_TILE = (322, 323)  # TIFF tags: width and length of a tile, which is decoded as a whole


def open_image(
    source: Path | bytes,
    mode: str | None = "RGB",
    name: str | None = None,
    apply_orientation: bool = False,
    formats: tuple[str, ...] = FORMATS,
    pixels: int = MAX_PIXELS,
) -> "Image.Image":
    """A decoded image; the first frame of an animation.

    Args:
        source (`Path` or `bytes`): a file, or its content.
        mode (`str`, *optional*, defaults to `"RGB"`): Pillow mode to convert to; `None` keeps the image's own.
        name (`str`, *optional*): the image's name in errors; by default the file's path.
        apply_orientation (`bool`, *optional*, defaults to `False`): whether to apply the EXIF orientation.
        formats (`tuple[str, ...]`, *optional*): accepted formats, by Pillow's names.
        pixels (`int`, *optional*): maximum number of pixels.

    Raises:
        [`FingerprintError`]: if it doesn't exist, is too large, or can't be read as an image.
    """
    from PIL import Image, ImageOps

    where = printable(str(source) if isinstance(source, Path) else "an image") if name is None else name
    try:
        content = read_bounded(source, MAX_IMAGE, "an image", FingerprintError) if isinstance(source, Path) else source
        if content.startswith(_JPEG) and content.count(_SCAN) > MAX_SCANS:
            raise FingerprintError(f"{where} has more than {MAX_SCANS} scans: save it again, or remove it.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about oddities
            with Image.open(BytesIO(content), formats=formats) as image:
                _check_size(image, where, pixels)
                upright = ImageOps.exif_transpose(image) if apply_orientation else image
                return upright.convert(mode or upright.mode)
    except FingerprintError:
        raise
    except FileNotFoundError:
        raise FingerprintError(f"{where} does not exist: check the path.") from None
    except Exception:  # Pillow raises anything for a damaged file
        raise FingerprintError(f"{where} can't be read as an image: remove or replace it.") from None


def _check_size(image: Any, where: str, pixels: int) -> None:
    """Refuses an image that takes too much memory to decode, or to resize by its shorter side."""
    width, height = image.size
    tile = [_number(getattr(image, "tag_v2", {}).get(tag, 0)) for tag in _TILE]
    if width * height > pixels or tile[0] * tile[1] > max(pixels, MAX_PIXELS):
        most = f"the limit is {pixels / 1e6:g} megapixels"
        raise FingerprintError(f"{where} has {width} x {height} pixels, and {most}: scale it down, or remove it.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        most = f"sides may differ by a factor of at most {MAX_ASPECT}"
        raise FingerprintError(f"{where} has {width} x {height} pixels, and {most}: crop it, or remove it.")


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
