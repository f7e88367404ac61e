"""Records of one base's weights with questions of their own, without a model: what answers is a table of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from hf_fingerprint.blackbox.querying.query import questions_of
from hf_fingerprint.blackbox.querying.transcript import image_digest
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, TOLD, Questions
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Base, Vault
from tests.helpers.small_models import PLAIN_SETTINGS, save_plain, unlocked_vault


COUNT, DECOYS, CLASSES = 70, 5, 10


def add_questions(vault: Vault, base: Base, classes: int = CLASSES, count: int = COUNT, told: float = TOLD) -> None:
    """Lays down questions that no model was looked at for: clouds as they are."""
    patterns, logits = np.zeros((count + DECOYS, GRID, GRID, 3), np.int8), np.zeros((1, count, classes), np.float32)
    made = Questions(base.base_id, "head.weight", count, 0.5, patterns, logits, np.zeros((1, count, 4), np.float32))
    vault.add_questions(base, replace(made, told=told).to_bytes())


def add_copy(vault: Vault, base: Base, recipient: str, bound: bool = True, key: bytes | None = None) -> None:
    """A copy on record, made to answer questions or not."""
    record, key = vault.begin_copy(base, recipient, f"/{recipient}", copy_key=key)
    vault.mark_written(record, key, sha256(key).hexdigest(), bound=bound, placed=True)


class Answering:
    """A suspect that knows every image of some records: it tells the labels of one recipient's copy, as often as is
    said, and otherwise, and to all else, what a table of random classes holds."""

    retries = 0

    def __init__(
        self,
        vault: Vault,
        bases: Sequence[Base],
        leaked: tuple[Base, str] | None = None,
        told: float = 1.0,
        seed: int = 0,
        classes: int | None = CLASSES,
    ):
        self.name, self.asked = "suspect", 0
        if classes is not None:
            self.classes = classes
        rng = np.random.default_rng(seed)
        self._answers: dict[str, int] = {}
        for base in bases:
            pool = questions_of(vault, base)
            answers = rng.integers(0, pool.classes, pool.count + pool.decoys)
            if leaked is not None and leaked[0] == base:
                (record,) = vault.copies(base.base_id, leaked[1])
                (labels,), (owned,) = pool.answers([vault.copy_key(record)])
                lost = rng.random(pool.count) >= told
                answers[: pool.count] = np.where(owned & ~lost, labels, answers[: pool.count])
            digests = map(image_digest, pool.images(base.secret))
            self._answers |= dict(zip(digests, answers.tolist(), strict=True))

    def __call__(self, image: np.ndarray) -> int | None:
        self.asked += 1
        return self._answers[image_digest(image)]


@dataclass(frozen=True)
class Records:
    """An unlocked vault with records of the same weights, and who has copies of each."""

    vault: Vault
    model: Path
    bases: tuple[Base, ...]
    recipients: Mapping[str, tuple[str, ...]]


def asked_records(root: Path, records: int = 2, copies: int = 6) -> Records:
    """Records with questions, and copies that answer them."""
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    bases, recipients = [], {}
    for number in range(records):
        base = register(model, vault, PLAIN_SETTINGS, remeasure=number > 0)
        add_questions(vault, base)
        names = tuple(f"recipient {number}.{i}" for i in range(copies))
        for name in names:
            add_copy(vault, base, name)
        bases.append(base)
        recipients[base.base_id] = names
    return Records(vault, model, tuple(bases), recipients)
