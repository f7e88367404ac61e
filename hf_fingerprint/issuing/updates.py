"""What distinguishes a copy from its base: the mark in the carriers, and the head's update for trigger labels."""

from collections.abc import Callable, Mapping
from functools import partial

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.carriers import Delta, DenseDelta, MarkDelta, TensorUpdate
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.codes import Codebook
from hf_fingerprint.vault import Base


class CopyUpdates:
    """Makes the updates of one base's copies.

    Args:
        base ([`Base`]): the base.
        checkpoint ([`Checkpoint`]): its open weights.
        names (mapping of `str` to `str`): the checkpoint's tensor names by the base's.
        trigger_set ([`TriggerSet`] or `None`): the base's trigger set.
    """

    def __init__(
        self, base: Base, checkpoint: Checkpoint, names: Mapping[str, str], trigger_set: TriggerSet | None = None
    ):
        self._base, self._checkpoint, self._names, self._trigger_set = base, checkpoint, names, trigger_set
        self._codebook: Codebook = base.codebook()

    def make(self, copy_key: bytes) -> dict[str, TensorUpdate]:
        """The update of each tensor that differs in a copy, by the checkpoint's names: the carriers, the head if there
        is a trigger set, and the tensors tied to them."""
        base, tied = self._base, self._checkpoint.tied
        codeword = self._codebook.packed([copy_key])[0]
        deltas: list[tuple[str, Callable[[], Delta]]] = []
        if self._trigger_set is not None:
            deltas.append((self._trigger_set.head, partial(DenseDelta, self._trigger_set.head_update(copy_key))))
        for each in base.carriers:
            deltas.append((each.name, partial(MarkDelta, base.secret, each.name, each.amplitude, codeword)))
        by_storage: dict[str, list[tuple[str, Callable[[], Delta]]]] = {}
        for name, make_delta in deltas:
            theirs = self._names[name]
            by_storage.setdefault(tied.get(theirs, theirs), []).append((name, make_delta))
        return {
            name: TensorUpdate(copy_key, found[0][0], info.dtype, info.columns, [make() for _, make in found])
            for name, info in self._checkpoint.tensors.items()
            if (found := by_storage.get(tied.get(name, name)))
        }
