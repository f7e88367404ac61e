"""Presents a suspect without the rows and columns of zeros that its tensors were padded with, wherever they are.

Padding at the end alone is found by [`find_padded`], also in tensors without names.
"""

from math import prod

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.extraction.layouts import Shape
from hf_fingerprint.extraction.placed import Piece, PlacedWeights, Placement, SelectedPlacement, TensorView
from hf_fingerprint.vault import Base


MAX_PADDED = 4.0  # the weights of a padded tensor, as a multiple of the base's


def strip_padding(base: Base, suspect: TensorReader) -> TensorReader:
    """The suspect without padding in the namesakes of the base's tensors, or unchanged if none is padded.

    Args:
        base, suspect: see [`extract`].
    """
    namesakes = Namesakes(suspect.tensors)
    placements: dict[str, Placement] = {}
    for name, record in base.tensors.items():
        info = namesakes.find(name)
        if info is not None and _may_be_padded(info.shape, record.shape):
            index = _find_content(suspect, info, record.shape)
            if index is not None:
                placements[name] = SelectedPlacement(record.shape, (Piece(TensorView.whole(info), 0, 0),), index)
    return PlacedWeights(suspect, placements) if placements else suspect


def _may_be_padded(theirs: Shape, ours: Shape) -> bool:
    if len(theirs) != len(ours) or theirs == ours or theirs[2:] != ours[2:] or not prod(ours):
        return False
    return all(a >= b for a, b in zip(theirs, ours, strict=True)) and prod(theirs) <= MAX_PADDED * prod(ours)


def _find_content(suspect: TensorReader, info: TensorInfo, shape: Shape) -> tuple[np.ndarray, ...] | None:
    """The rows and columns that aren't zero, as indices of a tensor; `None` if these are not as many as the base's."""
    used = TensorView.whole(info).load(suspect) != 0
    found = []
    for axis, count in enumerate(shape[:2]):
        others = tuple(other for other in range(used.ndim) if other != axis)
        kept = np.flatnonzero(used.any(others)) if info.shape[axis] > count else np.arange(count)
        if len(kept) != count:
            return None
        found.append(kept)
    return np.ix_(*found)
