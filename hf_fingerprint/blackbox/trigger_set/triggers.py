"""The trigger set of a base: the images to query, and the head updates that teach a copy its labels.

A trigger image is a cover image plus a coarse pattern that was optimized on the base: the features of any two trigger
images, and of a trigger image and an ordinary one, differ strongly. The covers are synthetic images, drawn anew from
the model secret, or photographs of the owner. Patterns and photographs are stored; two hundred patterns take 2 MB.
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
from hf_fingerprint.blackbox.trigger_set.photographs import decode_photographs
from hf_fingerprint.checkpoints.formats.safetensors_files import check_header
from hf_fingerprint.checkpoints.limits import MAX_LINE_VALUES, MAX_POOL, parse_json
from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import derive


GRID = 56  # a pattern's height and width
MIN_RECALL = 0.9  # the mean share of its assigned labels that a copy is built to predict
MARGIN = 2.0  # logits by which an assigned label leads
_FORMAT, _WITH_PHOTOGRAPHS, _METADATA = 1, 2, "questions"


@dataclass(frozen=True)
class TriggerSet:
    """The trigger images of a base, and what teaches its copies to predict their assigned labels.

    Attributes:
        base_id (`str`): the base.
        head (`str`): the tensor of the last layer's weights, as the base's files name it.
        count (`int`): the number of trigger images; the images after them are decoys, assigned to nobody.
        assigned_share (`float`): the probability that a trigger is assigned to a recipient.
        patterns (`np.ndarray` of shape `(count + decoys, GRID, GRID, 3)`): `int8`, gray levels added to the covers.
        logits (`np.ndarray` of shape `(views, count, classes)`): the base's, `float32`, in each [`View`], the
            unchanged model's first.
        head_updates (`np.ndarray` of shape `(views, count, width)`): `float32`; see [`solve_head_updates`].
        cover_images (`tuple[bytes, ...]`): PNG files of photographs, one an image; empty if the covers are synthetic.
        recall (`float`): the share of its assigned labels that a verbatim copy predicts, averaged over some keys and
            at most 0.9, the value that trigger sets are built for.
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
        """The number of classes."""
        return int(self.logits.shape[2])

    @property
    def decoys(self) -> int:
        """The number of decoys."""
        return len(self.patterns) - self.count

    def images(self, secret: bytes) -> np.ndarray:
        """The trigger images of a model secret, then the decoys, `(count + decoys, 224, 224, 3)`, `uint8`.

        Raises:
            [`VaultError`]: if the photographs are damaged.
        """
        covers = self.cover_pixels(secret)
        return np.stack([add_pattern(cover, pattern) for cover, pattern in zip(covers, self.patterns, strict=True)])

    def cover_pixels(self, secret: bytes) -> np.ndarray:
        """The cover of each image, `(count + decoys, 224, 224, 3)`, `uint8`: photographs or synthetic images."""
        if self.cover_images:
            return decode_photographs(self.cover_images)
        return synthetic_cover_images(secret, len(self.patterns))

    def assigned_labels(self, copy_keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """`(labels, assigned)`, both `(n, count)`: see [`keyed_labels`] and [`assigned_triggers`]."""
        assigned = assigned_triggers(copy_keys, self.count, self.assigned_share)
        return keyed_labels(copy_keys, self.count, self.classes), assigned

    def head_update(self, copy_key: bytes) -> np.ndarray:
        """The delta to a head's weights, `(classes, width)`, `float32`, with which a copy predicts its labels on the
        triggers assigned to it: least squares over the views, against the change to ordinary images."""
        labels, assigned = (each[0] for each in self.assigned_labels([copy_key]))
        own = np.arange(self.classes) == labels[:, None]
        runner_up = np.where(own, -np.inf, self.logits).max(-1)
        gap = np.maximum(runner_up + MARGIN - (self.logits * own).sum(-1), 0) * assigned
        return np.einsum("vqc,vqw->cw", gap[..., None] * own, self.head_updates, optimize=True).astype(np.float32)

    def to_bytes(self) -> bytes:
        """The trigger set as a safetensors file, the form in which the vault stores it."""
        described: dict[str, Any] = {
            "format": _WITH_PHOTOGRAPHS if self.cover_images else _FORMAT,
            "base": self.base_id,
            "head": self.head,
            "count": self.count,
            "share": self.assigned_share,
        }
        if self.recall != MIN_RECALL:
            described["told"] = self.recall
        arrays = {"patterns": self.patterns, "logits": self.logits, "levers": self.head_updates}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        if self.cover_images:
            arrays["covers"] = np.frombuffer(b"".join(self.cover_images), np.uint8)
            arrays["cover_lengths"] = np.array([len(cover) for cover in self.cover_images], np.int64)
            described["covers"] = _photographs_digest(arrays)
        return save(arrays, {_METADATA: json.dumps(described)})  # one value, as the order of several varies

    @classmethod
    def from_bytes(cls, content: bytes) -> "TriggerSet":
        """The trigger set that [`to_bytes`] wrote.

        Raises:
            [`VaultError`]: if the content is damaged or of a newer format.
        """
        try:
            check_header(content)
            arrays = load(content)
            length = int.from_bytes(content[:8], "little")
            described = parse_json(parse_json(content[8 : 8 + length])["__metadata__"][_METADATA], MAX_LINE_VALUES)
            if len(arrays["patterns"]) > MAX_POOL:
                raise ValueError
            if described["format"] not in (_FORMAT, _WITH_PHOTOGRAPHS):
                raise VaultError(
                    f"The trigger set of base {described['base']} has format {described['format']}, and this version "
                    f"reads {_FORMAT} and {_WITH_PHOTOGRAPHS}: upgrade hf-fingerprint."
                )
            base, head, count, assigned_share = (described[name] for name in ("base", "head", "count", "share"))
            cover_images = _unpack_photographs(arrays, described) if described["format"] == _WITH_PHOTOGRAPHS else ()
            recall = described.get("told", MIN_RECALL)
            if not 0 <= recall <= 1:
                raise ValueError
            _check_shapes(arrays, count)
            patterns, logits, head_updates = (arrays[name] for name in ("patterns", "logits", "levers"))
            return cls(base, head, count, assigned_share, patterns, logits, head_updates, cover_images, recall)
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise VaultError("The trigger set in the vault is damaged: restore a backup of the vault.") from None


def _check_shapes(arrays: dict[str, np.ndarray], count: Any) -> None:
    """Raises a `ValueError` if the shapes of the arrays don't match."""
    patterns, logits, head_updates = (arrays[name] for name in ("patterns", "logits", "levers"))
    if type(count) is not int or not 0 < count <= len(patterns) or patterns.shape[1:] != (GRID, GRID, 3):
        raise ValueError
    if logits.ndim != 3 or head_updates.ndim != 3 or logits.shape[:2] != head_updates.shape[:2]:
        raise ValueError
    if logits.shape[0] < 1 or logits.shape[1] != count or logits.shape[2] < 2:
        raise ValueError
    if {logits.dtype.kind, head_updates.dtype.kind} != {"f"}:
        raise ValueError


def _unpack_photographs(arrays: dict[str, np.ndarray], described: dict[str, Any]) -> tuple[bytes, ...]:
    """The stored photographs; raises a `ValueError` if their digest or number is wrong."""
    lengths, packed = arrays["cover_lengths"], arrays["covers"].tobytes()
    if _photographs_digest(arrays) != described["covers"] or len(lengths) != len(arrays["patterns"]):
        raise ValueError
    ends = np.cumsum(lengths).tolist()
    return tuple(packed[start:end] for start, end in zip([0, *ends], ends, strict=False))


def _photographs_digest(arrays: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(arrays["cover_lengths"].tobytes() + arrays["covers"].tobytes()).hexdigest()


def synthetic_cover_images(secret: bytes, count: int) -> np.ndarray:
    """The synthetic covers of a model secret, `(count, 224, 224, 3)`, `uint8`."""
    key = derive(secret, "questions")
    return np.stack([synthetic_cover(key, index) for index in range(count)])


def add_pattern(cover: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """A cover `(224, 224, 3)` plus a pattern `(GRID, GRID, 3)`, `uint8`.

    The pattern is interpolated linearly. At this size the weights are multiples of 1/8, so that sums are exact and the
    image is the same on every machine.
    """
    upsampled = _upsample(_upsample(pattern.astype(np.float64), 0), 1)
    return np.clip(np.rint(cover + upsampled), MIN_LEVEL, MAX_LEVEL).astype(np.uint8)


def _upsample(values: np.ndarray, axis: int) -> np.ndarray:
    where = np.clip((np.arange(MIN_SIZE) + 0.5) * GRID / MIN_SIZE - 0.5, 0, GRID - 1)
    low = np.minimum(where.astype(int), GRID - 2)
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    weight = (where - low).reshape(shape)
    return values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
