"""A carrier in the open files of the base, the suspect and the ancestor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.vault import Base, Carrier


MAX_DIFFERENCE = 1e6  # amplitudes
MIN_VARIANCE = 0.1  # squared amplitudes: no weight counts for more, however little it moved


@dataclass(frozen=True)
class TensorPlace:
    """A carrier and its counterparts.

    Attributes:
        base ([`Base`]): the base.
        carrier ([`Carrier`]): the carrier.
        original ([`TensorReader`]): the base's open files.
        base_info ([`TensorInfo`]): the base's tensor.
        suspect ([`TensorReader`]): the open suspect.
        info ([`TensorInfo`]): the suspect's tensor, of the same shape.
        ancestor (pair of [`TensorReader`] and [`TensorInfo`], *optional*): the ancestor's, of the same shape.
        rows (`slice`): the rows to read; both ends are multiples of 8, or the tensor's end.
        scale (`float`, *optional*, defaults to 1): what the suspect's weights are divided by; see [`common_scale`].
    """

    base: Base
    carrier: Carrier
    original: TensorReader
    base_info: TensorInfo
    suspect: TensorReader
    info: TensorInfo
    ancestor: tuple[TensorReader, TensorInfo] | None
    rows: slice
    scale: float = 1.0

    @cached_property
    def inverse(self) -> np.ndarray:
        """One over the mark's amplitude in each row, or 0 where there is none, `float32` of shape `(rows,)`."""
        amplitude = self.carrier.amplitude
        return np.divide(1, amplitude, out=np.zeros_like(amplitude), where=amplitude > 0)

    def load_pair(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Some rows of the base's tensor and of the suspect's, `float32` of shape `(rows, columns)`."""
        theirs = _load_rows(self.suspect, self.info, rows)
        return _load_rows(self.original, self.base_info, rows), self.rescaled(theirs)

    def rescaled(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's weights, divided by their scale; the same array if that is 1."""
        if self.scale == 1:
            return theirs
        with np.errstate(over="ignore", invalid="ignore"):
            return theirs / np.float32(self.scale)

    def load_ancestor(self, rows: slice) -> np.ndarray | None:
        """Some rows of the ancestor's tensor, in the same form, if it is known."""
        return None if self.ancestor is None else _load_rows(*self.ancestor, rows)

    def load_sample(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some rows of the base's tensor and of the suspect's, and which of their weights are kept; others are 0.

        Returns:
            `(ours, theirs, kept)`: `float64`, `float64` and `bool` of shape `(len(rows), columns)`.
        """
        ours = _load_sample(self.original, self.base_info, rows)
        theirs = self.rescaled(_load_sample(self.suspect, self.info, rows))
        kept = ~dropped_mask(theirs)
        return *(np.where(kept, each, 0).astype(np.float64) for each in (ours, theirs)), kept  # type: ignore[return-value]


def _load_rows(checkpoint: TensorReader, info: TensorInfo, rows: slice) -> np.ndarray:
    """Some rows of a tensor, `float32` of shape `(rows, columns)`."""
    raw = checkpoint.read(info, rows.start * info.row_bytes, rows.stop * info.row_bytes)
    with np.errstate(invalid="ignore", over="ignore"):
        return to_float32(raw, info.dtype).reshape(-1, info.columns)


def _load_sample(checkpoint: TensorReader, info: TensorInfo, rows: Sequence[int]) -> np.ndarray:
    """Some rows of a tensor, each read by itself, `float32` of shape `(len(rows), columns)`."""
    size = info.row_bytes
    raw = np.empty((len(rows), size), np.uint8)
    for row, out in zip(rows, raw, strict=True):
        checkpoint.read(info, row * size, (row + 1) * size, out)
    with np.errstate(invalid="ignore", over="ignore"):
        return to_float32(raw.reshape(-1), info.dtype).reshape(len(rows), -1)


def dropped_mask(values: np.ndarray) -> np.ndarray:
    """Whether each weight is dropped: exactly 0 (pruned), or not finite."""
    return (values == 0) | ~np.isfinite(values)
