"""Samples of a tensor's rows, evenly spread, since adjacent rows may differ from the others alike."""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo


if TYPE_CHECKING:
    from hf_fingerprint.checkpoints.ranges import TensorReader


def sample_row_indices(rows: int, count: int) -> list[int]:
    """Indices of up to `count` rows, evenly spread."""
    return sorted({int(row) for row in np.linspace(0, rows - 1, min(rows, count))})


def load_sampled_rows(checkpoint: "TensorReader", info: TensorInfo, count: int) -> np.ndarray:
    """Up to `count` evenly spread rows, `float32` of shape `(weights,)`; values that are not finite become 0."""
    size = info.row_bytes
    rows = [] if info.rows <= count else sample_row_indices(info.rows, count)
    raw = [checkpoint.read(info, row * size, (row + 1) * size) for row in rows] or [checkpoint.read(info)]
    return np.nan_to_num(np.concatenate([to_float32(each, info.dtype) for each in raw]), posinf=0, neginf=0)
