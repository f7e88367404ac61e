"""Records of one base with trigger sets, and suspects that respond from a table of labels instead of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.blackbox.querying.transcript import image_digest
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, MIN_RECALL, TriggerSet
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Base, Vault
from tests.helpers.small_models import PLAIN_SETTINGS, save_plain, unlocked_vault


COUNT, DECOYS, CLASSES = 70, 5, 10


def add_trigger_set(
    vault: Vault, base: Base, classes: int = CLASSES, count: int = COUNT, recall: float = MIN_RECALL
) -> None:
    """Adds a trigger set of plain synthetic images, not optimized for any model."""
    patterns, logits = np.zeros((count + DECOYS, GRID, GRID, 3), np.int8), np.zeros((1, count, classes), np.float32)
    made = TriggerSet(base.base_id, "head.weight", count, 0.5, patterns, logits, np.zeros((1, count, 4), np.float32))
    vault.add_trigger_set(base, replace(made, recall=recall).to_bytes())


def add_copy(vault: Vault, base: Base, recipient: str, is_answering: bool = True, key: bytes | None = None) -> None:
    """Records a copy, bound to the trigger set or not."""
    record, key = vault.begin_copy(base, recipient, f"/{recipient}", copy_key=key)
    vault.mark_written(record, key, sha256(key).hexdigest(), is_answering=is_answering, is_issued=True)


class SimulatedSuspect:
    """A suspect that predicts the trigger labels of one recipient's copy with probability `recall`.

    All its other predictions come from a table of random classes.
    """

    retries = 0

    def __init__(
        self,
        vault: Vault,
        bases: Sequence[Base],
        leaked: tuple[Base, str] | None = None,
        recall: float = 1.0,
        seed: int = 0,
        classes: int | None = CLASSES,
    ):
        self.name, self.queried = "suspect", 0
        if classes is not None:
            self.classes = classes
        rng = np.random.default_rng(seed)
        self._responses: dict[str, int] = {}
        for base in bases:
            trigger_set = load_trigger_set(vault, base)
            predicted = rng.integers(0, trigger_set.classes, trigger_set.count + trigger_set.decoys)
            if leaked is not None and leaked[0] == base:
                (record,) = vault.copies(base.base_id, leaked[1])
                (labels,), (assigned,) = trigger_set.assigned_labels([vault.copy_key(record)])
                missed = rng.random(trigger_set.count) >= recall
                predicted[: trigger_set.count] = np.where(assigned & ~missed, labels, predicted[: trigger_set.count])
            digests = map(image_digest, trigger_set.images(base.secret))
            self._responses |= dict(zip(digests, predicted.tolist(), strict=True))

    def __call__(self, image: np.ndarray) -> int | None:
        self.queried += 1
        return self._responses[image_digest(image)]


@dataclass(frozen=True)
class RecordFixture:
    """An unlocked vault with records of the same weights, and the recipients of each."""

    vault: Vault
    model: Path
    bases: tuple[Base, ...]
    recipients: Mapping[str, tuple[str, ...]]


def records_with_triggers(root: Path, records: int = 2, copies: int = 6) -> RecordFixture:
    """Makes records with trigger sets, and copies that are bound to them."""
    vault, model = unlocked_vault(root / "vault"), save_plain(root / "model")
    bases, recipients = [], {}
    for number in range(records):
        base = register(model, vault, PLAIN_SETTINGS, remeasure=number > 0)
        add_trigger_set(vault, base)
        names = tuple(f"recipient {number}.{i}" for i in range(copies))
        for name in names:
            add_copy(vault, base, name)
        bases.append(base)
        recipients[base.base_id] = names
    return RecordFixture(vault, model, tuple(bases), recipients)
