"""Whose key image is it? The fingerprint of an image that turned up somewhere, read against the question it was made
from and compared with every recipient's.

    read_image("found.jpg", vault).recipients
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.key_images.export import check_bits, log10_false_match, places_key
from hf_fingerprint.blackbox.key_images.key_image import BAND, fingerprint_of, read_key_image
from hf_fingerprint.blackbox.key_images.payload import USUAL_BITS, coded_bits
from hf_fingerprint.blackbox.querying.candidates import candidates
from hf_fingerprint.blackbox.trigger_set.covers import LEAST_SIZE, read_picture
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Vault, hiding, open_copies, unused_rows


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
        outcome ([`Outcome`]): accused; nobody, if a fingerprint was read that is no recipient's; not comparable, if
            the image is like none of the questions; not readable, if it is like one and carries no fingerprint that
            can be read, or is no picture.
        reason (`str` or `None`): why nothing could be read.
        base_id (`str` or `None`): the base whose question it was made from; `None` if no fingerprint could be read.
    """

    name: str
    question: int | None
    recipients: tuple[str, ...]
    bits: int
    copies: int
    log10_false_match: float
    outcome: Outcome
    reason: str | None = None
    base_id: str | None = None

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

    def alike(self, image: np.ndarray) -> list[int]:
        """The covers that an image may have been made from, the likest first.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`): `uint8`, of any size: whole, not a part.
        """
        alike = self._small @ _small(image)
        return [i for i in np.argsort(-alike, kind="stable")[:TRIED].tolist() if alike[i] >= LEAST_ALIKE]

    def read(self, image: np.ndarray) -> tuple[int, bytes] | None:
        """The cover's index and the fingerprint of an image, as for `alike`; `None` if there is none to be read."""
        for index in self.alike(image):
            payload = read_key_image(image, self._covers[index], self._key, index, self.bits)
            if payload is not None:
                return index, payload
        return None


class KeyImageReader:
    """Reads images for a vault: one for many images is faster than [`read_image`] for each.

    Args:
        vault ([`Vault`], `str` or `Path`): the vault; it must be unlocked.
        base (`str` or `Path`, *optional*): which base: by its id that record alone, by its place all records of its
            weights; by default all that have questions and copies.
        bits (`int`, *optional*, defaults to 304): of the fingerprint, as it was exported with.

    Attributes:
        bits, copies (`int`): of the fingerprint; how many copies it is compared with.

    Raises:
        [`FingerprintError`]: if there are no questions or copies, the vault is locked, or so few bits would name
            innocents.
    """

    def __init__(self, vault: Vault | str | Path, base: str | Path | None = None, bits: int = USUAL_BITS):
        vault = vault if isinstance(vault, Vault) else Vault(vault)
        found, _ = candidates(vault, base, same_classes=False)
        coded_bits(bits)
        self.bits, self.copies = bits, sum(len(each.copies) for each in found)
        check_bits(bits, self.copies, min(each.base.alpha for each in found))
        self._hidden = hiding(unused_rows(vault))
        self._readers: list[tuple[str, CoverReader, dict[bytes, list[str]]]] = []
        for each in found:
            whose: dict[bytes, list[str]] = {}
            opened = open_copies(vault, each.copies)
            for copy, key in zip(opened.copies, opened.keys, strict=True):
                whose.setdefault(fingerprint_of(key, bits), []).append(copy.recipient)
            secret, count = each.base.secret, each.questions.count
            self._readers.append(
                (each.base.base_id, CoverReader(each.questions.images(secret)[:count], secret, bits), whose)
            )

    def read(self, image: np.ndarray | str | Path) -> ReadImage:
        """Whose key image it is. A file that can't be read as a picture is not readable, and no error.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`, `str` or `Path`): `uint8`, or a file; the whole image,
                in whatever size and however compressed.

        Raises:
            [`FingerprintError`]: if an array is no picture.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise FingerprintError(
                    f"An array of {image.dtype} and shape {image.shape} is no picture: give (height, width, 3) uint8."
                )
            name, pixels = f"{image.shape[1]} x {image.shape[0]} pixels", image
        else:
            name = str(image)
            try:
                pixels = read_picture(Path(image))
            except FingerprintError as error:
                return self._read(name, Outcome.NOT_READABLE, str(error))
        if min(pixels.shape[:2]) < LEAST_READ:
            too_small = (
                f"{name} is too small to carry a fingerprint: key images are read from {LEAST_READ} pixels upwards."
            )
            return self._read(name, Outcome.NOT_READABLE, too_small)
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for base_id, reader, whose in self._readers:
            if (read := reader.read(pixels)) is not None:
                found.append((base_id, read[0], tuple(dict.fromkeys(whose.get(read[1], ())))))
        if found:
            base_id, question, recipients = max(found, key=lambda each: len(each[2]) > 0)
            if recipients or not self._hidden:
                outcome = Outcome.ACCUSED if recipients else Outcome.NOBODY
                return self._read(name, outcome, None, question, recipients, base_id)
            nobodys = f"{name} carries a fingerprint of nobody whose record can be used, and {self._hidden[0]}."
            return self._read(name, Outcome.NOT_READABLE, nobodys, question, (), base_id)
        if any(reader.alike(pixels) for _, reader, _ in self._readers):
            unread = (
                f"{name} looks like a question, and no fingerprint can be read from it: look for the whole picture, "
                f"less compressed, or give the --bits that it was exported with."
            )
            return self._read(name, Outcome.NOT_READABLE, unread)
        unlike = f"{name} is like none of the questions: it was not made from one, or was cropped or turned since."
        return self._read(name, Outcome.NOT_COMPARABLE, unlike)

    def _read(
        self,
        name: str,
        outcome: Outcome,
        reason: str | None,
        question: int | None = None,
        recipients: tuple[str, ...] = (),
        base_id: str | None = None,
    ) -> ReadImage:
        odds = log10_false_match(self.bits, self.copies)
        return ReadImage(name, question, recipients, self.bits, self.copies, odds, outcome, reason, base_id)


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
