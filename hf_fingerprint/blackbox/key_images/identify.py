"""Whose key image is it? The fingerprint of an image that turned up somewhere, read against the question it was made
from and compared with every recipient's.

    read_image("found.jpg", vault).recipients
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.blackbox.key_images.export import check_bits, log10_false_match, placement_key
from hf_fingerprint.blackbox.key_images.key_image import BAND, derive_fingerprint, extract_payload
from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS, coded_bits
from hf_fingerprint.blackbox.querying.candidates import find_candidates
from hf_fingerprint.blackbox.trigger_set.covers import MIN_SIZE, load_image
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Vault, find_unusable_rows, inconclusive_reasons, open_copies


MIN_IMAGE_SIZE = int(
    BAND[1] * MIN_SIZE
)  # pixels; in fewer than these not all the frequencies that carry bits are left
THUMBNAIL_SIZE, MAX_COVERS_TRIED = 28, 3  # pixels by which covers are told apart; how many of the likest are tried
MIN_CORRELATION = 0.5  # correlation in these; what is less alike was not made from a cover


@dataclass(frozen=True)
class KeyImageMatch:
    """What an image carries.

    Attributes:
        name (`str`): the image's.
        trigger_index (`int` or `None`): which question it was made from; `None` if no fingerprint could be read.
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
    trigger_index: int | None
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


class CoverMatcher:
    """Reads images against the covers that they may have been made from.

    Args:
        cover_images (`np.ndarray` of shape `(n, height, width, 3)`): `uint8`; a base's questions.
        secret (`bytes`): the model secret.
        bits (`int`, *optional*, defaults to 304): of the fingerprint.
    """

    def __init__(self, cover_images: np.ndarray, secret: bytes, bits: int = DEFAULT_BITS):
        coded_bits(bits)
        self._cover_images, self._key, self.bits = cover_images, placement_key(secret), bits
        self._thumbnail = np.stack([_thumbnail(cover) for cover in cover_images])

    def similar_covers(self, image: np.ndarray) -> list[int]:
        """The covers that an image may have been made from, the likest first.

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`): `uint8`, of any size: whole, not a part.
        """
        similar_covers = self._thumbnail @ _thumbnail(image)
        return [
            i
            for i in np.argsort(-similar_covers, kind="stable")[:MAX_COVERS_TRIED].tolist()
            if similar_covers[i] >= MIN_CORRELATION
        ]

    def read(self, image: np.ndarray) -> tuple[int, bytes] | None:
        """The cover's index and the fingerprint of an image, as for `similar_covers`; `None` if there is none to be read."""
        for index in self.similar_covers(image):
            payload = extract_payload(image, self._cover_images[index], self._key, index, self.bits)
            if payload is not None:
                return index, payload
        return None


class KeyImageIdentifier:
    """Reads images for a vault: one for many images is faster than [`identify_key_image`] for each.

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

    def __init__(self, vault: Vault | str | Path, base: str | Path | None = None, bits: int = DEFAULT_BITS):
        vault = vault if isinstance(vault, Vault) else Vault(vault)
        found, _ = find_candidates(vault, base, same_classes=False)
        coded_bits(bits)
        self.bits, self.copies = bits, sum(len(each.copies) for each in found)
        check_bits(bits, self.copies, min(each.base.alpha for each in found))
        self._hiding_faults = inconclusive_reasons(find_unusable_rows(vault))
        self._matchers: list[tuple[str, CoverMatcher, dict[bytes, list[str]]]] = []
        for each in found:
            recipients_by_fingerprint: dict[bytes, list[str]] = {}
            opened = open_copies(vault, each.copies)
            for copy, key in zip(opened.copies, opened.keys, strict=True):
                recipients_by_fingerprint.setdefault(derive_fingerprint(key, bits), []).append(copy.recipient)
            secret, count = each.base.secret, each.trigger_set.count
            self._matchers.append(
                (
                    each.base.base_id,
                    CoverMatcher(each.trigger_set.images(secret)[:count], secret, bits),
                    recipients_by_fingerprint,
                )
            )

    def read(self, image: np.ndarray | str | Path) -> KeyImageMatch:
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
                pixels = load_image(Path(image))
            except FingerprintError as error:
                return self._read(name, Outcome.NOT_READABLE, str(error))
        if min(pixels.shape[:2]) < MIN_IMAGE_SIZE:
            too_small = f"{name} is too small to carry a fingerprint: key images are read from {MIN_IMAGE_SIZE} pixels upwards."
            return self._read(name, Outcome.NOT_READABLE, too_small)
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for base_id, matcher, recipients_by_fingerprint in self._matchers:
            if (read := matcher.read(pixels)) is not None:
                found.append((base_id, read[0], tuple(dict.fromkeys(recipients_by_fingerprint.get(read[1], ())))))
        if found:
            base_id, trigger_index, recipients = max(found, key=lambda each: len(each[2]) > 0)
            if recipients or not self._hiding_faults:
                outcome = Outcome.ACCUSED if recipients else Outcome.NOBODY
                return self._read(name, outcome, None, trigger_index, recipients, base_id)
            nobodys = f"{name} carries a fingerprint of nobody whose record can be used, and {self._hiding_faults[0]}."
            return self._read(name, Outcome.NOT_READABLE, nobodys, trigger_index, (), base_id)
        if any(matcher.similar_covers(pixels) for _, matcher, _ in self._matchers):
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
        trigger_index: int | None = None,
        recipients: tuple[str, ...] = (),
        base_id: str | None = None,
    ) -> KeyImageMatch:
        odds = log10_false_match(self.bits, self.copies)
        return KeyImageMatch(name, trigger_index, recipients, self.bits, self.copies, odds, outcome, reason, base_id)


def identify_key_image(
    image: np.ndarray | str | Path, vault: Vault | str | Path, base: str | Path | None = None, bits: int = DEFAULT_BITS
) -> KeyImageMatch:
    """Whose key image it is; see [`KeyImageIdentifier`]."""
    return KeyImageIdentifier(vault, base, bits).read(image)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """A small grey picture of an image, `(SMALL * SMALL,)`: mean 0, length 1."""
    from PIL import Image

    small = np.asarray(
        Image.fromarray(image).convert("L").resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX), np.float64
    )
    centered = (small - small.mean()).reshape(-1)
    return centered / max(np.linalg.norm(centered), np.finfo(np.float64).tiny)
