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

from hf_fingerprint.blackbox.trigger_set.covers import MAX_LEVEL, MIN_LEVEL, MIN_SIZE, synthetic_cover
from hf_fingerprint.blackbox.trigger_set.labels import assigned_triggers, keyed_labels
from hf_fingerprint.blackbox.trigger_set.owner_covers import decode_covers
from hf_fingerprint.checkpoints.formats.safetensors_files import check_header
from hf_fingerprint.checkpoints.limits import MAX_LINE_VALUES, MAX_POOL, parse_json
from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import derive


GRID = 56  # a pattern's height and width
MIN_RECALL = 0.9  # of its own labels that a copy is made to tell, in the mean
MARGIN = 2.0  # by which a copy's own label is to lead, in logits
_FORMAT, _WITH_COVERS, _METADATA = 1, 2, "questions"


@dataclass(frozen=True)
class TriggerSet:
    """What a base's copies are asked, and how they are made to answer.

    Attributes:
        base_id (`str`): the base.
        head (`str`): its last layer's weights, by their name in its files.
        count (`int`): how many questions; the images after them are decoys, which nobody owns.
        assigned_share (`float`): the odds that a recipient owns a question.
        patterns (`np.ndarray` of shape `(count + decoys, GRID, GRID, 3)`): `int8`, grey levels over the clouds.
        logits (`np.ndarray` of shape `(views, count, classes)`): what the base says, as it is and as thieves may
            change it or its input, `float32`.
        head_updates (`np.ndarray` of shape `(views, count, width)`): the head's change for one logit more, `float32`.
        cover_images (`tuple[bytes, ...]`): PNG files of the owner's photographs under the patterns, one for each; empty for
            clouds.
        recall (`float`): the share of its own labels that a verbatim copy tells, in the mean over some keys, as far as
            that was measured when the questions were made; 0.9 is what they are made for.
    """

    base_id: str
    head: str
    count: int
    assigned_share: float
    patterns: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    head_updates: np.ndarray = field(repr=False)
    cover_images: tuple[bytes, ...] = field(default=(), repr=False)
    recall: float = MIN_RECALL

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
        plain = self.cover_pixels(secret)
        return np.stack([add_pattern(cover, pattern) for cover, pattern in zip(plain, self.patterns, strict=True)])

    def cover_pixels(self, secret: bytes) -> np.ndarray:
        """What lies under the patterns, of the same shape: photographs or clouds."""
        return (
            decode_covers(self.cover_images)
            if self.cover_images
            else synthetic_trigger_covers(secret, len(self.patterns))
        )

    def assigned_labels(self, copy_keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Of each recipient `(labels, owned)`, both `(n, count)`: see [`keyed_labels`] and [`assigned_triggers`]."""
        return (
            keyed_labels(copy_keys, self.count, self.classes),
            assigned_triggers(copy_keys, self.count, self.assigned_share),
        )

    def head_update(self, copy_key: bytes) -> np.ndarray:
        """What is added to the head's weights so that a copy answers its own questions by its labels, and others as
        the base does: least squares over what thieves may do, against what it changes for ordinary images.

        Returns:
            `np.ndarray` of shape `(classes, width)`: `float32`.
        """
        labels, assigned = (each[0] for each in self.assigned_labels([copy_key]))
        own = np.arange(self.classes) == labels[:, None]
        runner_up = np.where(own, -np.inf, self.logits).max(-1)
        logit_gap = np.maximum(runner_up + MARGIN - (self.logits * own).sum(-1), 0) * assigned
        logit_updates = logit_gap[..., None] * own
        return np.einsum("vqc,vqw->cw", logit_updates, self.head_updates, optimize=True).astype(np.float32)

    def to_bytes(self) -> bytes:
        """In the safetensors format: what the vault keeps."""
        described: dict[str, Any] = {
            "format": _WITH_COVERS if self.cover_images else _FORMAT,
            "base": self.base_id,
            "head": self.head,
            "count": self.count,
            "share": self.assigned_share,
        }
        if self.recall != MIN_RECALL:
            described["told"] = self.recall
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("patterns", "logits", "levers")}
        if self.cover_images:
            arrays["covers"] = np.frombuffer(b"".join(self.cover_images), np.uint8)
            arrays["cover_lengths"] = np.array([len(cover) for cover in self.cover_images], np.int64)
            described["covers"] = _covers_digest(arrays)
        return save(arrays, {_METADATA: json.dumps(described)})  # of several values the order would differ by chance

    @classmethod
    def from_bytes(cls, content: bytes) -> "TriggerSet":
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
            base, head, count, assigned_share = (described[name] for name in ("base", "head", "count", "share"))
            cover_images = _unpack_covers(arrays, described) if described["format"] == _WITH_COVERS else ()
            recall = described.get("told", MIN_RECALL)
            if not 0 <= recall <= 1:
                raise ValueError
            _check_shapes(arrays, count)
            return cls(
                base,
                head,
                count,
                assigned_share,
                arrays["patterns"],
                arrays["logits"],
                arrays["levers"],
                cover_images,
                recall,
            )
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise VaultError("The questions in the vault are damaged: restore a backup of it.") from None


def _check_shapes(arrays: dict[str, np.ndarray], count: Any) -> None:
    """A `ValueError` if arrays don't have the shapes that go together."""
    patterns, logits, head_updates = (arrays[name] for name in ("patterns", "logits", "levers"))
    if type(count) is not int or not 0 < count <= len(patterns) or patterns.shape[1:] != (GRID, GRID, 3):
        raise ValueError
    if (
        logits.ndim != 3
        or head_updates.ndim != 3
        or logits.shape[:2] != head_updates.shape[:2]
        or logits.shape[1] != count
    ):
        raise ValueError
    if logits.shape[0] < 1 or logits.shape[2] < 2 or {logits.dtype.kind, head_updates.dtype.kind} != {"f"}:
        raise ValueError


def _unpack_covers(arrays: dict[str, np.ndarray], described: dict[str, Any]) -> tuple[bytes, ...]:
    """The photographs, if they are as they were laid down; a `ValueError` if not."""
    lengths, packed = arrays["cover_lengths"], arrays["covers"].tobytes()
    if _covers_digest(arrays) != described["covers"] or len(lengths) != len(arrays["patterns"]):
        raise ValueError
    ends = np.cumsum(lengths).tolist()
    return tuple(packed[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _covers_digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(arrays["cover_lengths"].tobytes() + arrays["covers"].tobytes()).hexdigest()


def synthetic_trigger_covers(secret: bytes, count: int) -> np.ndarray:
    """The clouds of a model secret, `(count, 224, 224, 3)`, `uint8`."""
    key = derive(secret, "questions")
    return np.stack([synthetic_cover(key, index) for index in range(count)])


def add_pattern(cover: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """A cloud `(224, 224, 3)` under a pattern `(GRID, GRID, 3)`, `uint8`.

    Between the pattern's places lies a straight line; at this size its steps are eighths, so that sums are exact and
    the image is the same on every machine.
    """
    upsampled = _upsample(_upsample(pattern.astype(np.float64), 0), 1)
    return np.clip(np.rint(cover + upsampled), MIN_LEVEL, MAX_LEVEL).astype(np.uint8)


def _upsample(values: np.ndarray, axis: int) -> np.ndarray:
    where = np.clip((np.arange(MIN_SIZE) + 0.5) * GRID / MIN_SIZE - 0.5, 0, GRID - 1)
    low = np.minimum(where.astype(int), GRID - 2)
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    weight = (where - low).reshape(shape)
    return values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
