"""Cover images from the owner's photographs.

Synthetic covers are drawn anew from the model secret. Photographs can't be, so the vault stores them as PNG files.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from hf_fingerprint.blackbox.trigger_set.covers import MIN_SIZE, load_image
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.models import image_files, open_image


def load_photographs(folder: str | Path, count: int, secret: bytes) -> tuple[bytes, ...]:
    """Photographs from a folder and its subfolders, cropped to centered squares and scaled to 224 pixels.

    The choice and the order depend on the model secret, so that neither distinguishes trigger images from decoys.

    Args:
        folder (`str` or `Path`): the folder. Images below 224 pixels and duplicates are skipped.
        count (`int`): the number of photographs.
        secret (`bytes`): the model secret.

    Returns:
        `tuple[bytes, ...]`: PNG files of `(224, 224, 3)`, 8 bits.

    Raises:
        [`FingerprintError`]: if there are too few photographs, or one can't be read.
    """
    from PIL import Image, ImageOps

    paths = image_files(Path(folder))
    order = np.argsort(Stream(derive(secret, "own_covers")).take(8 * len(paths)).view("<u8"), kind="stable")
    found: dict[bytes, None] = {}
    for index in order.tolist():
        if len(found) == count:
            break
        pixels = load_image(paths[index])
        if min(pixels.shape[:2]) >= MIN_SIZE:
            square = ImageOps.fit(Image.fromarray(pixels), (MIN_SIZE, MIN_SIZE), Image.Resampling.LANCZOS)
            file = BytesIO()
            square.save(file, "PNG", optimize=True)
            found[file.getvalue()] = None
    if len(found) < count:
        problem = f"{folder} holds {len(found)} different photographs of {MIN_SIZE} pixels or more"
        remedy = "add some, or choose fewer trigger images"
        raise FingerprintError(f"{problem}, and {count} are needed as covers: {remedy}.")
    return tuple(found)


def decode_photographs(cover_images: Sequence[bytes]) -> np.ndarray:
    """The pixels of PNG files that [`load_photographs`] returned, `(n, 224, 224, 3)`, `uint8`.

    Raises:
        [`VaultError`]: if one is damaged.
    """

    def pixels(cover: bytes) -> np.ndarray:
        return np.asarray(open_image(cover, None, "a cover", formats=("PNG",), pixels=MIN_SIZE**2))

    try:
        found = [pixels(cover) for cover in cover_images]
    except FingerprintError:
        found = []
    if not found or any(each.shape != (MIN_SIZE, MIN_SIZE, 3) or each.dtype != np.uint8 for each in found):
        damaged = "The cover images of the trigger set in the vault are damaged"
        raise VaultError(f"{damaged}: restore a backup of the vault.")
    return np.stack(found)
