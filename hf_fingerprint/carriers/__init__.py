"""The weights that carry the mark: which tensors, at what amplitude, and the keyed projection that embeds it."""

from hf_fingerprint.carriers.amplitude import row_rms, spend_budget
from hf_fingerprint.carriers.deltas import Delta, DenseDelta, MarkDelta, TensorUpdate
from hf_fingerprint.carriers.projection import TensorProjection, fold, keyed_offset, position_counts
from hf_fingerprint.carriers.selection import can_carry, select_by_name, select_from_model


__all__ = [
    "Delta",
    "DenseDelta",
    "MarkDelta",
    "TensorProjection",
    "TensorUpdate",
    "can_carry",
    "fold",
    "keyed_offset",
    "position_counts",
    "row_rms",
    "select_by_name",
    "select_from_model",
    "spend_budget",
]
