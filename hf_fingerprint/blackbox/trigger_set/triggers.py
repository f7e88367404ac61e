"""The questions of a base: images that all its copies are asked, and what binding a copy's answers to them takes.

An image is a synthetic cloud, drawn from the model secret, under a coarse pattern that was fitted to the base, so that
the features of no two questions, and of no question and an ordinary image, are alike. Patterns are kept and clouds are
drawn anew: two hundred images take two megabytes. Where the owner's photographs lie under the patterns, they are kept
too.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hf_fingerprint.blackbox.trigger_set.covers import BRIGHTEST, DARKEST, LEAST_SIZE, synthetic_cover
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels, owned_questions
from hf_fingerprint.blackbox.trigger_set.owner_covers import pixels_of
from hf_fingerprint.checkpoints.formats.safetensors_files import check_header
from hf_fingerprint.checkpoints.limits import MAX_LINE_VALUES, MAX_POOL, parse_json
from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import derive


GRID = 56  # a pattern's height and width
TOLD = 0.9  # of its own labels that a copy is made to tell, in the mean
MARGIN = 2.0  # by which a copy's own label is to lead, in logits
_FORMAT, _WITH_COVERS, _METADATA = 1, 2, "questions"


@dataclass(frozen=True)
class Questions:
    """What a base's copies are asked, and how they are made to answer.

    Attributes:
        base_id (`str`): the base.
        head (`str`): its last layer's weights, by their name in its files.
        count (`int`): how many questions; the images after them are decoys, which nobody owns.
        share (`float`): the odds that a recipient owns a question.
        patterns (`np.ndarray` of shape `(count + decoys, GRID, GRID, 3)`): `int8`, grey levels over the clouds.
        logits (`np.ndarray` of shape `(views, count, classes)`): what the base says, as it is and as thieves may
            change it or its input, `float32`.
        levers (`np.ndarray` of shape `(views, count, width)`): the head's change for one logit more, `float32`.
        covers (`tuple[bytes, ...]`): PNG files of the owner's photographs under the patterns, one for each; empty for
            clouds.
        told (`float`): the share of its own labels that a verbatim copy tells, in the mean over some keys, as far as
            that was measured when the questions were made; 0.9 is what they are made for.
    """

    base_id: str
    head: str
    count: int
    share: float
    patterns: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    levers: np.ndarray = field(repr=False)
    covers: tuple[bytes, ...] = field(default=(), repr=False)
    told: float = TOLD

    @property
    def classes(self) -> int:
        """Of the model."""
        return int(self.logits.shape[2])

    @property
    def decoys(self) -> int:
        """How many images are decoys."""
        return len(self.patterns) - self.count

    def images(self, secret: bytes) -> np.ndarray:
        """Questions, then decoys.

        Args:
            secret (`bytes`): the model secret.

        Returns:
            `np.ndarray` of shape `(count + decoys, 224, 224, 3)`: `uint8`.

        Raises:
            [`VaultError`]: if the photographs under the patterns are damaged.
        """
        plain = self.plain_images(secret)
        return np.stack([under(cover, pattern) for cover, pattern in zip(plain, self.patterns, strict=True)])

    def plain_images(self, secret: bytes) -> np.ndarray:
        """What lies under the patterns, of the same shape: photographs or clouds."""
        return pixels_of(self.covers) if self.covers else question_clouds(secret, len(self.patterns))

    def answers(self, copy_keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Of each recipient `(labels, owned)`, both `(n, count)`: see [`keyed_labels`] and [`owned_questions`]."""
        return (
            keyed_labels(copy_keys, self.count, self.classes),
            owned_questions(copy_keys, self.count, self.share),
        )

    def head_change(self, copy_key: bytes) -> np.ndarray:
        """What is added to the head's weights so that a copy answers its own questions by its labels, and others as
        the base does: least squares over what thieves may do, against what it changes for ordinary images.

        Returns:
            `np.ndarray` of shape `(classes, width)`: `float32`.
        """
        labels, owned = (each[0] for each in self.answers([copy_key]))
        own = np.arange(self.classes) == labels[:, None]
        rivals = np.where(own, -np.inf, self.logits).max(-1)
        needed = np.maximum(rivals + MARGIN - (self.logits * own).sum(-1), 0) * owned
        wanted = needed[..., None] * own
        return np.einsum("vqc,vqw->cw", wanted, self.levers, optimize=True).astype(np.float32)

    def to_bytes(self) -> bytes:
        """In the safetensors format: what the vault keeps."""
        described: dict[str, Any] = {
            "format": _WITH_COVERS if self.covers else _FORMAT,
            "base": self.base_id,
            "head": self.head,
            "count": self.count,
            "share": self.share,
        }
        if self.told != TOLD:
            described["told"] = self.told
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("patterns", "logits", "levers")}
        if self.covers:
            arrays["covers"] = np.frombuffer(b"".join(self.covers), np.uint8)
            arrays["cover_lengths"] = np.array([len(cover) for cover in self.covers], np.int64)
            described["covers"] = _digest(arrays)
        return save(arrays, {_METADATA: json.dumps(described)})  # of several values the order would differ by chance

    @classmethod
    def from_bytes(cls, content: bytes) -> "Questions":
        """What [`to_bytes`] gave.

        Raises:
            [`VaultError`]: if it is damaged, or of a newer format.
        """
        try:
            check_header(content)
            arrays = load(content)
            length = int.from_bytes(content[:8], "little")
            described = parse_json(parse_json(content[8 : 8 + length])["__metadata__"][_METADATA], MAX_LINE_VALUES)
            if len(arrays["patterns"]) > MAX_POOL:
                raise ValueError
            if described["format"] not in (_FORMAT, _WITH_COVERS):
                raise VaultError(
                    f"The questions of base {described['base']} have format {described['format']} and this version "
                    f"reads {_FORMAT} and {_WITH_COVERS}: upgrade hf-fingerprint."
                )
            base, head, count, share = (described[name] for name in ("base", "head", "count", "share"))
            covers = _covers(arrays, described) if described["format"] == _WITH_COVERS else ()
            told = described.get("told", TOLD)
            if not 0 <= told <= 1:
                raise ValueError
            _check_shapes(arrays, count)
            return cls(base, head, count, share, arrays["patterns"], arrays["logits"], arrays["levers"], covers, told)
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise VaultError("The questions in the vault are damaged: restore a backup of it.") from None


def _check_shapes(arrays: dict[str, np.ndarray], count: Any) -> None:
    """A `ValueError` if arrays don't have the shapes that go together."""
    patterns, logits, levers = (arrays[name] for name in ("patterns", "logits", "levers"))
    if type(count) is not int or not 0 < count <= len(patterns) or patterns.shape[1:] != (GRID, GRID, 3):
        raise ValueError
    if logits.ndim != 3 or levers.ndim != 3 or logits.shape[:2] != levers.shape[:2] or logits.shape[1] != count:
        raise ValueError
    if logits.shape[0] < 1 or logits.shape[2] < 2 or {logits.dtype.kind, levers.dtype.kind} != {"f"}:
        raise ValueError


def _covers(arrays: dict[str, np.ndarray], described: dict[str, Any]) -> tuple[bytes, ...]:
    """The photographs, if they are as they were laid down; a `ValueError` if not."""
    lengths, packed = arrays["cover_lengths"], arrays["covers"].tobytes()
    if _digest(arrays) != described["covers"] or len(lengths) != len(arrays["patterns"]):
        raise ValueError
    ends = np.cumsum(lengths).tolist()
    return tuple(packed[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(arrays["cover_lengths"].tobytes() + arrays["covers"].tobytes()).hexdigest()


def question_clouds(secret: bytes, count: int) -> np.ndarray:
    """The clouds of a model secret, `(count, 224, 224, 3)`, `uint8`."""
    key = derive(secret, "questions")
    return np.stack([synthetic_cover(key, index) for index in range(count)])


def under(cloud: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """A cloud `(224, 224, 3)` under a pattern `(GRID, GRID, 3)`, `uint8`.

    Between the pattern's places lies a straight line; at this size its steps are eighths, so that sums are exact and
    the image is the same on every machine.
    """
    spread = _lines(_lines(pattern.astype(np.float64), 0), 1)
    return np.clip(np.rint(cloud + spread), DARKEST, BRIGHTEST).astype(np.uint8)


def _lines(values: np.ndarray, axis: int) -> np.ndarray:
    where = np.clip((np.arange(LEAST_SIZE) + 0.5) * GRID / LEAST_SIZE - 0.5, 0, GRID - 1)
    low = np.minimum(where.astype(int), GRID - 2)
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    weight = (where - low).reshape(shape)
    return values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
