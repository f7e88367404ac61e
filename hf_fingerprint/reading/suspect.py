"""A suspect read against a base: match, align, weigh, and add up to V numbers.

Alignment, the undoing of what leaves the function unchanged (permuted channels, rescaled rows), has its place between
matching and weighing: it changes which rows of the suspect are compared, by the base alone.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.reading.matching import match_tensors
from hf_fingerprint.reading.weighing import read_tensor
from hf_fingerprint.vault import Base


POSITION_CLIP = 2.0
DESCENDS = 0.2


@dataclass(frozen=True)
class Lineage:
    """Whether the suspect's weights descend from the base at all. A description: no accusation depends on it.

    Attributes:
        descends (`bool`): whether the matched weights correlate with the base's (cosine of 0.2 or more; models trained
            apart are at 0).
        cosine (`float`): over all weights read.
        drift (`float`): norm of the difference, relative to the base's weights.
    """

    descends: bool
    cosine: float
    drift: float


@dataclass(frozen=True)
class Reading:
    """What a suspect's weights say.

    Attributes:
        values (`np.ndarray` of shape `(V,)`): y, weighted sums, clipped position by position.
        mass (`np.ndarray` of shape `(V,)`): the weight behind each position; a whole mark reads as `mass * b`.
        tensors_matched (`int`): carriers found in the suspect.
        weights_read (`int`): weights compared.
        weights_dropped (`int`): weights left out because they are exactly 0 or not finite.
        lineage ([`Lineage`]): whether the weights descend from the base's.
    """

    values: np.ndarray
    mass: np.ndarray
    tensors_matched: int
    weights_read: int
    weights_dropped: int
    lineage: Lineage


def read_suspect(
    base: Base, original: Checkpoint, suspect: Checkpoint, advance: Callable[[int], None] | None = None
) -> Reading:
    """Reads a suspect.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): the base's open files, checked against the record while they are read.
        suspect ([`Checkpoint`]): the open suspect.
        advance (callable, *optional*): told the weights done.

    Raises:
        [`CheckpointError`]: if the files given for the base aren't what was registered.
    """
    check_base_layout(base, original)
    matches = match_tensors(base, original, suspect)
    values, mass = np.zeros(base.length), np.zeros(base.length)
    kept = dropped = 0
    products, distance = np.zeros(3), 0.0
    with ThreadPoolExecutor(1) as pool:
        for carrier in base.carriers:
            if carrier.name not in matches:
                continue
            part = read_tensor(base, carrier, original, suspect, matches[carrier.name], pool)
            if part.digest != base.tensors[carrier.name].digest:
                raise CheckpointError(
                    f"{original.source.name}: tensor {carrier.name} is not the one that was registered: give the "
                    f"base itself."
                )
            values += part.weight * part.sums
            mass += part.weight * part.counts
            kept, dropped = kept + part.kept, dropped + part.dropped
            products, distance = products + part.products, distance + part.distance
            if advance is not None:
                advance(part.kept + part.dropped)
    cosine = products[0] / np.sqrt(products[1] * products[2]) if products[1] > 0 and products[2] > 0 else 0.0
    drift = float(np.sqrt(distance / products[2])) if products[2] > 0 else 0.0
    lineage = Lineage(bool(cosine >= DESCENDS), float(cosine), drift)
    return Reading(clip_positions(values, mass), mass, len(matches), kept, dropped, lineage)


def clip_positions(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Clips each position at the mark's amplitude or twice the usual size, whichever is more, so that pirates who
    make out a position can't blow it up."""
    strength = np.divide(values, mass, out=np.zeros_like(values), where=mass > 0)
    limit = max(1.0, POSITION_CLIP * float(np.sqrt(np.mean(strength**2))))
    return np.clip(strength, -limit, limit) * mass


def check_base_layout(base: Base, original: Checkpoint) -> None:
    """Refuses files that don't have the registered base's carriers."""
    for carrier in base.carriers:
        info, record = original.tensors.get(carrier.name), base.tensors[carrier.name]
        if info is None or (info.dtype, info.shape) != (record.dtype, record.shape):
            raise CheckpointError(
                f"{original.source.name} is not base {base.base_id}: its tensor {carrier.name} is missing or "
                f"differs; give the base."
            )
