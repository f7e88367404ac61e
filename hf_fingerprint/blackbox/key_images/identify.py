"""Identifies the recipient of a key image: reads its fingerprint and compares it with every recipient's.

identify_key_image("found.jpg", vault).recipients
"""

from collections.abc import Iterator
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
from hf_fingerprint.tables import PrintableResult, one_line_repr
from hf_fingerprint.vault import Vault, find_unusable_rows, inconclusive_reasons, open_copies


MIN_IMAGE_SIZE = int(BAND[1] * MIN_SIZE)  # pixels; smaller images lack frequencies that carry bits
THUMBNAIL_SIZE, MAX_TRIED = 28, 3  # pixels; the number of most similar covers that are tried
MIN_CORRELATION = 0.5  # of the thumbnails of an image and its cover


@dataclass(frozen=True)
class KeyImageMatch(PrintableResult):
    """The recipient of a key image.

    Attributes:
        name (`str`): the image's file, or its size.
        trigger_index (`int` or `None`): the trigger it was made from; `None` if no fingerprint was read.
        recipients (`tuple[str, ...]`): the recipients whose fingerprint equals the one read; empty if there is none.
        bits (`int`): the length of the fingerprint.
        copies (`int`): the number of copies it was compared with.
        log10_false_match (`float`): decimal logarithm of the probability that an innocent's fingerprint is equal.
        outcome ([`Outcome`]): accused; nobody, if the fingerprint is no recipient's; not comparable, if the image
            resembles no trigger image; not readable, if it is no image, or resembles one and no fingerprint is read.
        reason (`str` or `None`): why it is not readable or comparable.
        base_id (`str` or `None`): the base of the trigger; `None` if no fingerprint was read.
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
        """The match as JSON types."""
        return {**asdict(self), "outcome": str(self.outcome)}

    @property
    def line(self) -> str:
        """The result in one line."""
        if self.recipients:
            return f"{self.name}: a key image of {', '.join(self.recipients)}"
        if self.reason is None:
            return f"{self.name}: a fingerprint of no recipient in the vault"
        return f"{self.outcome}: {self.reason}"

    def blocks(self) -> Iterator[str]:
        """The lines that show the match."""
        yield self.line
        compared = f"{self.copies:,} {'copy' if self.copies == 1 else 'copies'}"
        yield (
            f"{self.bits} bits compared with {compared}; an innocent's bits match with probability at most "
            f"10^{self.log10_false_match:.0f}"
        )

    def __repr__(self) -> str:
        found = {"outcome": str(self.outcome), "recipients": self.recipients}
        return one_line_repr(self, name=self.name, **found, log10_false_match=self.log10_false_match)


class CoverMatcher:
    """Reads fingerprints from images by comparison with their covers.

    Args:
        cover_images (`np.ndarray` of shape `(n, height, width, 3)`): `uint8`; the trigger images of a base.
        secret (`bytes`): the model secret.
        bits (`int`, *optional*, defaults to 304): the length of the fingerprint.
    """

    def __init__(self, cover_images: np.ndarray, secret: bytes, bits: int = DEFAULT_BITS):
        coded_bits(bits)
        self._cover_images, self._key, self.bits = cover_images, placement_key(secret), bits
        self._thumbnails = np.stack([_thumbnail(cover) for cover in cover_images])

    def similar_cover_images(self, image: np.ndarray) -> list[int]:
        """The indices of the covers that an image, of any size and not cropped, may be made from, by similarity."""
        correlations = self._thumbnails @ _thumbnail(image)
        most_similar = np.argsort(-correlations, kind="stable")[:MAX_TRIED].tolist()
        return [index for index in most_similar if correlations[index] >= MIN_CORRELATION]

    def read(self, image: np.ndarray) -> tuple[int, bytes] | None:
        """The index of an image's cover, and its fingerprint; `None` if no fingerprint can be read."""
        for index in self.similar_cover_images(image):
            payload = extract_payload(image, self._cover_images[index], self._key, index, self.bits)
            if payload is not None:
                return index, payload
        return None


class KeyImageIdentifier:
    """Identifies the recipients of key images. For many images it is faster than [`identify_key_image`].

    Args:
        vault ([`Vault`], `str` or `Path`): the vault; it must be unlocked.
        base (`str` or `Path`, *optional*): a base's id, for that record alone; or a path or Hub id, for all records of
            these weights. By default all that have a trigger set and copies.
        bits (`int`, *optional*, defaults to 304): the length of the fingerprint, as in [`export_key_images`].

    Attributes:
        copies (`int`): the number of copies that fingerprints are compared with.

    Raises:
        [`FingerprintError`]: if no base has triggers and copies, the vault is locked, or `bits` is too low for alpha.
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
            matcher = CoverMatcher(each.trigger_set.images(secret)[:count], secret, bits)
            self._matchers.append((each.base.base_id, matcher, recipients_by_fingerprint))

    def read(self, image: np.ndarray | str | Path) -> KeyImageMatch:
        """Identifies the recipient of a key image. A file that is not an image has the outcome "not readable".

        Args:
            image (`np.ndarray` of shape `(height, width, 3)`, `str` or `Path`): `uint8`, or a file. The image may be
                resized and compressed, but not cropped.

        Raises:
            [`FingerprintError`]: if an array is not an image.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                array = f"An array of {image.dtype} and shape {image.shape}"
                raise FingerprintError(f"{array} is not an image: give (height, width, 3) uint8.")
            name, pixels = f"{image.shape[1]} x {image.shape[0]} pixels", image
        else:
            name = str(image)
            try:
                pixels = load_image(Path(image))
            except FingerprintError as error:
                return self._match(name, Outcome.NOT_READABLE, str(error))
        if min(pixels.shape[:2]) < MIN_IMAGE_SIZE:
            too_small = f"{name} is too small to carry a fingerprint: give one of {MIN_IMAGE_SIZE} pixels or more."
            return self._match(name, Outcome.NOT_READABLE, too_small)
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for base_id, matcher, recipients_by_fingerprint in self._matchers:
            if (read := matcher.read(pixels)) is not None:
                found.append((base_id, read[0], tuple(dict.fromkeys(recipients_by_fingerprint.get(read[1], ())))))
        if found:
            base_id, trigger_index, recipients = max(found, key=lambda each: len(each[2]) > 0)
            if recipients or not self._hiding_faults:
                outcome = Outcome.ACCUSED if recipients else Outcome.NOBODY
                return self._match(name, outcome, None, trigger_index, recipients, base_id)
            unknown = f"{name} carries a fingerprint that no usable record has, and {self._hiding_faults[0]}."
            return self._match(name, Outcome.NOT_READABLE, unknown, trigger_index, (), base_id)
        if any(matcher.similar_cover_images(pixels) for _, matcher, _ in self._matchers):
            unread = (
                f"{name} resembles a trigger image, and no fingerprint can be read from it: give the whole image, "
                f"less compressed, or the --bits that it was exported with."
            )
            return self._match(name, Outcome.NOT_READABLE, unread)
        unlike = f"{name} resembles no trigger image: it was not made from one, or is cropped or rotated."
        return self._match(name, Outcome.NOT_COMPARABLE, unlike)

    def _match(
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
    """The recipient of a key image; see [`KeyImageIdentifier`]."""
    return KeyImageIdentifier(vault, base, bits).read(image)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """A gray thumbnail of an image, `(THUMBNAIL_SIZE^2,)`: mean 0, norm 1."""
    from PIL import Image

    size = THUMBNAIL_SIZE, THUMBNAIL_SIZE
    gray = np.asarray(Image.fromarray(image).convert("L").resize(size, Image.Resampling.BOX), np.float64)
    centered = (gray - gray.mean()).reshape(-1)
    return centered / max(np.linalg.norm(centered), np.finfo(np.float64).tiny)
