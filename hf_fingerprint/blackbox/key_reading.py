"""Whose key image is it? The fingerprint of an image that turned up somewhere, read against the question it was made
from and compared with every recipient's.

    read_image("found.jpg", vault).recipients
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.covers import LEAST_SIZE, read_picture
from hf_fingerprint.blackbox.key_images import BAND, fingerprint_of, read_key_image
from hf_fingerprint.blackbox.key_sets import check_bits, log10_false_match, places_key
from hf_fingerprint.blackbox.payload import USUAL_BITS, coded_bits
from hf_fingerprint.blackbox.querying import asked_of
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.vault import Vault


LEAST_READ = int(BAND[1] * LEAST_SIZE)  # pixels; in fewer than these not all the frequencies that carry bits are left
SMALL, TRIED = 28, 3  # pixels by which covers are told apart; how many of the likest are tried
LEAST_ALIKE = 0.5  # correlation in these; what is less alike was not made from a cover


@dataclass(frozen=True)
class ReadImage:
    """What an image carries.

    Attributes:
        name (`str`): the image's.
        question (`int` or `None`): which question it was made from; `None` if no fingerprint could be read.
        recipients (`tuple[str, ...]`): whose fingerprint it is, equal in every bit; empty if it is nobody's.
        bits (`int`): that were read and compared.
        copies (`int`): whose fingerprints they were compared with.
        log10_false_match (`float`): decimal logarithm of the odds that an innocent's would have been equal.
    """

    name: str
    question: int | None
    recipients: tuple[str, ...]
    bits: int
    copies: int
    log10_false_match: float

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


class CoverReader:
    """Reads images against the covers that they may have been made from.

    Args:
        covers (`np.ndarray` of shape `(n, height, width, 3)`): `uint8`; a base's questions.
        secret (`bytes`): the model secret.
        bits (`int`, *optional*, defaults to 304): of the fingerprint.
    """

    def __init__(self, covers: np.ndarray, secret: bytes, bits: int = USUAL_BITS):
        coded_bits(bits)
        self._covers, self._key, self.bits = covers, places_key(secret), bits
        self._small = np.stack([_small(cover) for cover in covers])

    def read(self, image: np.ndarray) -> tuple[int, bytes] | None:
        """The cover's index and the fingerprint, `None` if there is none to be read.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`): `uint8`, of any size: whole, not a part.
        """
        alike = self._small @ _small(image)
        for index in np.argsort(-alike, kind="stable")[:TRIED].tolist():
            if alike[index] < LEAST_ALIKE:
                break
            payload = read_key_image(image, self._covers[index], self._key, index, self.bits)
            if payload is not None:
                return index, payload
        return None


class KeyImageReader:
    """Reads images for a vault: one for many images is faster than [`read_image`] for each.

    Args:
        vault ([`Vault`], `str` or `Path`): the vault; it must be unlocked.
        base (`str` or `Path`, *optional*): which base, if several have questions.
        bits (`int`, *optional*, defaults to 304): of the fingerprint, as it was exported with.

    Raises:
        [`FingerprintError`]: if there are no questions or copies, the vault is locked, or so few bits would name
            innocents.
    """

    def __init__(self, vault: Vault | str | Path, base: str | Path | None = None, bits: int = USUAL_BITS):
        vault = vault if isinstance(vault, Vault) else Vault(vault)
        known, questions = asked_of(vault, base)
        copies = vault.copies(known.base_id, begun=False)
        if not copies:
            raise VaultError(f"{vault.folder} has no copies of base {known.base_id}: there is nobody to name.")
        coded_bits(bits)
        check_bits(bits, len(copies), known.alpha)
        self.bits, self.copies = bits, len(copies)
        self._whose: dict[bytes, list[str]] = {}
        for copy, key in zip(copies, vault.copy_keys(copies), strict=True):
            self._whose.setdefault(fingerprint_of(key, bits), []).append(copy.recipient)
        self._reader = CoverReader(questions.images(known.secret)[: questions.count], known.secret, bits)

    def read(self, image: np.ndarray | str | Path) -> ReadImage:
        """Whose key image it is.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`, `str` or `Path`): `uint8`, or a file; the whole image,
                in whatever size and however compressed.

        Raises:
            [`FingerprintError`]: if it is no image, or too small to carry anything.
        """
        name = f"{image.shape[1]} x {image.shape[0]} pixels" if isinstance(image, np.ndarray) else str(image)
        pixels = image if isinstance(image, np.ndarray) else read_picture(Path(image))
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise FingerprintError(
                f"An array of {pixels.dtype} and shape {pixels.shape} is no picture: give (height, width, 3) uint8."
            )
        if min(pixels.shape[:2]) < LEAST_READ:
            raise FingerprintError(
                f"{name} is too small to carry a fingerprint: key images are read from {LEAST_READ} pixels upwards."
            )
        read = self._reader.read(pixels)
        question, payload = (None, b"") if read is None else read
        whose = tuple(dict.fromkeys(self._whose.get(payload, ())))
        return ReadImage(name, question, whose, self.bits, self.copies, log10_false_match(self.bits, self.copies))


def read_image(
    image: np.ndarray | str | Path, vault: Vault | str | Path, base: str | Path | None = None, bits: int = USUAL_BITS
) -> ReadImage:
    """Whose key image it is; see [`KeyImageReader`]."""
    return KeyImageReader(vault, base, bits).read(image)


def _small(image: np.ndarray) -> np.ndarray:
    """A small grey picture of an image, `(SMALL * SMALL,)`: mean 0, length 1."""
    from PIL import Image

    small = np.asarray(Image.fromarray(image).convert("L").resize((SMALL, SMALL), Image.Resampling.BOX), np.float64)
    apart = (small - small.mean()).reshape(-1)
    return apart / max(np.linalg.norm(apart), np.finfo(np.float64).tiny)
