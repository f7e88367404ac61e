"""Reads the mark from what an attacker kept of a copy's delta to its ancestor, the public model it was tuned from.

With the ancestor's weights A, the owner's delta D = base - A is known, and so is what the suspect kept of it: the mark
M was added to D, and whatever was done to D + M was done to both. With E = suspect - A:

* Truncated to its leading singular directions, E holds what is inside their subspaces; see `truncated_delta.py`.
* Scaled, trimmed, thinned out, rounded or reduced to signs, E = F(D + M) weight by weight; see `delta_response.py`.

None of it looks at a codeword. Subspaces are those of the weights in their own unit, in which the attacker truncated.
"""

from typing import NamedTuple

import numpy as np

from hf_fingerprint.extraction.delta_response import read_response, tuned_channels, usual_channels
from hf_fingerprint.extraction.truncated_delta import may_be_truncated, read_truncated


MIN_SHRINKAGE = 0.1  # squared amplitudes per weight
MIN_GAIN = 1.05  # in information, over a reading without the ancestor


class DeltaReading(NamedTuple):
    """What a suspect's delta says about the mark.

    Attributes:
        values (`np.ndarray` of shape `(m, n)`): the mark times `gains`, plus noise of variance 1.
        gains (`np.ndarray` of shape `(m, n)`): the share of the mark in each value.
        is_projected (`bool`): whether it was read in the subspace of a truncated delta.
    """

    values: np.ndarray
    gains: np.ndarray
    is_projected: bool


def read_delta(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray, whole: bool = True
) -> DeltaReading | None:
    """Reads a tensor's mark from the suspect's and the owner's deltas to the ancestor.

    Args:
        suspect, owner (`np.ndarray` of shape `(m, n)`): E and D, `float32`, finite, in the weights' own unit.
        inverse (`np.ndarray` of shape `(m,)`): one over the mark's amplitude in each row, or 0.
        kept (`np.ndarray` of shape `(m, n)`): which weights may hold a mark.
        whole (`bool`, *optional*, defaults to `True`): whether these are all rows of the tensor. Of a part, U is not
            known, so only what P_V keeps is read.

    Returns:
        [`DeltaReading`] or `None`: `None` if nothing can be read.
    """
    rows, columns = usual_channels(suspect, owner, kept)
    if not (rows.all() and columns.all()):
        usual = rows[:, None] & columns
        suspect, owner, kept = suspect * usual, owner * usual, kept & usual
    shrank = _shrinkage(suspect, owner, inverse) > MIN_SHRINKAGE
    if np.mean(kept & (suspect != 0)) > 1 / 2 and (shrank or may_be_truncated(suspect, owner, inverse)):
        projected = read_truncated(suspect, owner, inverse, whole)
        if projected is not None:
            return DeltaReading(projected[0], projected[1] * kept, True)
    found = _read_weights(suspect, owner, inverse, kept, MIN_GAIN if whole else 0.0)
    return None if found is None else DeltaReading(*found, False)


def _read_weights(
    suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray, kept: np.ndarray, least_gain: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Reads weight by weight, with a response of its own for channels that the owner hardly tuned."""
    rows, columns = tuned_channels(owner, inverse, kept)
    if rows.all() and columns.all():
        return read_response(suspect, owner, inverse, kept, least_gain)
    tuned = rows[:, None] & columns
    one, other = (read_response(suspect, owner, inverse, kept & part, least_gain) for part in (tuned, ~tuned))
    if one is None or other is None:
        return other if one is None else one
    return one[0] + other[0], one[1] + other[1]


def _shrinkage(suspect: np.ndarray, owner: np.ndarray, inverse: np.ndarray) -> float:
    """How much of the owner's delta is gone along itself, in squared amplitudes per weight. Truncated, it is what was
    lost, less the little that the mark adds along its leading directions."""
    shared, own = (np.einsum("mn,mn->m", each, owner) for each in (suspect, owner))
    return float((own - shared) @ np.square(inverse, dtype=np.float64)) / owner.size
