"""A view of a suspect in which permuted, rescaled and rotated tensors are aligned with the base's."""

from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.alignment.activation_matching import zero_unusable
from hf_fingerprint.vault import Base


CACHED_TENSORS = 4
Transform = Callable[[np.ndarray], np.ndarray]  # from the suspect's `(rows, channels in, kernel)` to the base's


class AlignedWeights:
    """A suspect with its tensors aligned with the base's, where that makes them more similar.

    Attributes:
        source ([`Source`]): the suspect's source.
        tensors (`dict[str, TensorInfo]`): the suspect's tensors; aligned ones are `float32` in the carrier's shape.
        aligned_tensors (`dict[str, TensorInfo]`): the aligned tensors, by carrier.
    """

    def __init__(self, base: Base, suspect: TensorReader, found: dict[str, tuple[TensorInfo, Transform]]):
        self.source, self.tensors = suspect.source, dict(suspect.tensors)
        self.aligned_tensors: dict[str, TensorInfo] = {}
        self._suspect = suspect
        self._transforms = {info.name: (info, transform) for info, transform in found.values()}
        self._cache: dict[str, np.ndarray] = {}
        self._lock = Lock()
        for carrier, (info, _) in found.items():
            shape = base.tensors[carrier].shape
            aligned_info = replace(info, dtype="F32", shape=shape, nbytes=4 * int(np.prod(shape)))
            self.tensors[info.name] = self.aligned_tensors[carrier] = aligned_info

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, written to `out` if given."""
        if info.name not in self._transforms:
            return self._suspect.read(info, start, stop, out)
        values = self._transformed_bytes(info.name)
        piece = values[start:stop]
        if out is not None:
            out[: len(piece)] = piece
        return piece if out is None else out[: len(piece)]

    def _transformed_bytes(self, name: str) -> np.ndarray:
        """A tensor's bytes. The last few tensors are cached, since callers read them in pieces."""
        with self._lock:
            if name not in self._cache:
                info, transform = self._transforms[name]
                values = np.ascontiguousarray(transform(load_tensor(self._suspect, info)), np.float32)
                self._cache[name] = values.reshape(-1).view(np.uint8)
            kept = self._cache[name]
            for oldest in list(self._cache)[:-CACHED_TENSORS]:
                del self._cache[oldest]
            return kept


def load_tensor(checkpoint: TensorReader, info: TensorInfo) -> np.ndarray:
    """A whole tensor as `float32`, `(rows, channels in, kernel)`; values that are not finite, or huge, become 0."""
    return zero_unusable(to_float32(checkpoint.read(info), info.dtype)).reshape(info.shape[0], info.shape[1], -1)


def load_rows(checkpoint: TensorReader, info: TensorInfo, chosen: list[int]) -> np.ndarray:
    """Some rows as `float32`, `(rows, columns)`; values that are not finite, or huge, become 0."""
    raw = [checkpoint.read(info, row * info.row_bytes, (row + 1) * info.row_bytes) for row in chosen]
    return zero_unusable(np.stack([to_float32(row, info.dtype) for row in raw]))
