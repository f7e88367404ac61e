"""An open checkpoint under other tensor names, such as those that a base is recorded with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo
from hf_fingerprint.checkpoints.reader import Checkpoint
from hf_fingerprint.checkpoints.views import CheckpointView


class RenamedCheckpoint(CheckpointView):
    """A view of some tensors of an open checkpoint under other names. Closing it closes the checkpoint.

    Args:
        stored ([`Checkpoint`]): the open checkpoint.
        names (mapping of `str` to `str`): the names in the checkpoint by the new names.
    """

    def __init__(self, stored: Checkpoint, names: Mapping[str, str]):
        super().__init__(stored)
        self.tensors = {new: replace(stored.tensors[old], name=new) for new, old in names.items()}
        first = {old: new for new, old in reversed(dict(names).items())}
        roots = {new: first.get(stored.tied.get(old, old), new) for new, old in names.items()}
        self.tied = {new: root for new, root in roots.items() if new != root}
        self._names = dict(names)

    @property
    def stored(self) -> Checkpoint:
        """The model under the names that its files give its tensors."""
        return self._stored

    def reopen(self) -> Checkpoint:
        """The same model, opened as a base is: all of its tensors must be readable."""
        return RenamedCheckpoint(self._stored.reopen(), self._names)

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`. With `out`, which must be large enough, a view of it."""
        return self._stored.read(self._stored.tensors[self._names[info.name]], start, stop, out)


class RemainingTensors(RenamedCheckpoint):
    """A view of an open checkpoint without some of its tensors, such as those that were read. Closing it closes the
    checkpoint.

    Args:
        checkpoint ([`Checkpoint`]): the open checkpoint.
        read (collection of `str`): the tensors to leave out.
        slices (mapping of `str` to a sequence of `(int, int, int)`, *optional*): axis, begin and end of what to keep
            of them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        read: Collection[str],
        slices: Mapping[str, Sequence[tuple[int, int, int]]] | None = None,
    ):
        super().__init__(checkpoint, {name: name for name in checkpoint.tensors if name not in read})
        self.left_out = {name: reason for name, reason in self.left_out.items() if reason != EMPTY}
        self._slices: dict[str, tuple[TensorInfo, int, int, int]] = {}
        self._last: tuple[str, np.ndarray] | None = None
        for name, kept in (slices or {}).items():
            info = checkpoint.tensors[name]
            for axis, begin, end in kept:
                part = f"{name}[{axis}:{begin}:{end}]"
                shape = (*info.shape[:axis], end - begin, *info.shape[axis + 1 :])
                nbytes = info.nbytes // info.shape[axis] * (end - begin)
                if part not in self.tensors:
                    self.tensors[part] = replace(info, name=part, shape=shape, nbytes=nbytes)
                    self._slices[part] = info, axis, begin, end

    @property
    def cut(self) -> Collection[str]:
        """The tensors that are slices of the checkpoint's."""
        return self._slices.keys()

    @property
    def stored(self) -> Checkpoint:
        """These tensors: the model that was read can't be run with their weights."""
        return self

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`. With `out`, which must be large enough, a view of it."""
        if info.name not in self._slices:
            return super().read(info, start, stop, out)
        last = self._last
        if last is None or last[0] != info.name:
            whole, axis, begin, end = self._slices[info.name]
            values = self._stored.read(whole).reshape(*whole.shape, -1)
            kept = values[(slice(None),) * axis + (slice(begin, end),)]
            self._last = last = info.name, np.ascontiguousarray(kept).reshape(-1)
        found = last[1][start : info.nbytes if stop is None else stop]
        if out is None:
            return found
        out[: len(found)] = found
        return out[: len(found)]
