"""Places a suspect's tensors onto the base's carriers: by names where they tell, else by shapes and values.

Nothing here sees a codeword, so a wrong placement can lose evidence but can't create any.
"""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.extraction.base_names import to_base_names
from hf_fingerprint.extraction.blocks import to_base_blocks
from hf_fingerprint.extraction.codes import CodeTensors
from hf_fingerprint.extraction.fused_branches import find_fused_branches
from hf_fingerprint.extraction.match import match_names, match_similar
from hf_fingerprint.extraction.narrower import restore_channels
from hf_fingerprint.extraction.padding import strip_padding
from hf_fingerprint.extraction.placed import PlacedWeights, Placement, TensorView
from hf_fingerprint.extraction.placement_search import PlacementSearch, whole_placement
from hf_fingerprint.extraction.scales import ScaleFit, fit_scales
from hf_fingerprint.extraction.sliced_stream import restore_stream
from hf_fingerprint.vault import Base


MIN_CODE_COSINE = 0.4  # of integers, whose scales are then fitted to the base's weights


class PlacedSuspect(NamedTuple):
    """A suspect whose tensors were placed onto the carriers.

    Attributes:
        suspect ([`TensorReader`]): the suspect under the base's names and in its shapes.
        matches (`dict[str, TensorInfo]`): its tensors there by the carriers' names.
        used (`tuple[str, ...]`): the tensors of its files that were moved to other names or shapes.
        complete (`bool`): whether all of its tensors of floats were compared, as wholes, with the carriers that were
            not found by name.
        interference (`float`): the variance of other carriers' marks in a weight, in units of its own mark's, where
            the suspect fused carriers.
        shares (mapping of `str` to `float`): by carrier that was sliced, the share of its directions that are left.
    """

    suspect: TensorReader
    matches: dict[str, TensorInfo]
    used: tuple[str, ...] = ()
    complete: bool = True
    interference: float = 0.0
    shares: Mapping[str, float] = MappingProxyType({})


def place_tensors(base: Base, original: Checkpoint, suspect: TensorReader) -> PlacedSuspect:
    """Presents a suspect under the base's names and in its shapes, as far as its tensors are found.

    A carrier is matched to its namesake if that has its shape and is similar to it. The others are searched by values:
    among whole tensors in any layout, then among slices of tensors, and in several tensors that each hold a slice.
    Those left get their namesakes, if these are free. Padding is stripped, channels that
    were pruned away are restored as zeros, and a sliced stream is rotated back.

    Args:
        base, original, suspect: see [`extract`].
    """
    named = to_base_names(base, suspect)
    stripped = strip_padding(base, named)
    if stripped is not named:
        suspect = named = stripped
    restored, complete = restore_channels(base, original, named)
    similar = match_similar(base, original, restored)
    shares: dict[str, float] = {}
    if 2 * len(similar) < len(base.carriers):
        sliced = restore_stream(base, original, named)
        if len(sliced.shares) > len(similar):
            restored, shares = sliced
            similar = match_similar(base, original, restored)
    found = _place_whole(base, original, suspect if restored is named else restored, restored, similar)
    if 2 * len(found.matches) < len(base.carriers):
        restored, complete = restore_channels(base, original, named, named=False)
        if restored is not named:
            similar = match_similar(base, original, restored)
            found, shares = _place_whole(base, original, restored, restored, similar), {}
    return found._replace(complete=found.complete and complete, shares=shares)


def place_blocks(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    named: TensorReader,
    similar: dict[str, TensorInfo] | None = None,
) -> tuple[TensorReader, dict[str, TensorInfo]]:
    """Presents a suspect under the base's names, with its blocks in the base's places.

    Args:
        base, original, suspect: see [`extract`].
        named ([`TensorReader`]): the suspect under the base's names, as [`to_base_names`] returns it.
        similar (`dict[str, TensorInfo]`, *optional*): the namesakes of carriers that are similar to them, if known.

    Returns:
        `(suspect, matches)`: the suspect, `named` itself if its blocks are in their places; and those of its tensors
        that are similar to their namesakes among the carriers.
    """
    matches = match_similar(base, original, named) if similar is None else similar
    placed = to_base_blocks(base, original, suspect, named, matches)
    return placed, matches if placed is named else match_similar(base, original, placed)


def _place_whole(
    base: Base, original: Checkpoint, suspect: TensorReader, named: TensorReader, similar: dict[str, TensorInfo]
) -> PlacedSuspect:
    """Places tensors that have all of the carriers' weights, or slices of them.

    Args:
        base, original, suspect: see [`extract`].
        named ([`TensorReader`]): the suspect under the base's names.
        similar (`dict[str, TensorInfo]`): the namesakes of carriers that are similar to them.
    """
    suspect, matches = place_blocks(base, original, suspect, named, similar)
    missing = [carrier.name for carrier in base.carriers if carrier.name not in matches]
    if not missing:
        return PlacedSuspect(suspect, matches, _used(suspect))
    taken = {info.name for info in matches.values()}
    fused = find_fused_branches(base, original, suspect, missing, taken)
    missing = [name for name in missing if name not in fused.placements]
    taken |= {piece.view.info.name for each in fused.placements.values() for piece in each.pieces}
    floats = [info for info in suspect.tensors.values() if info.dtype in READABLE]
    search = PlacementSearch(base, original, suspect, floats, missing, taken)
    placements = search.run() | fused.placements
    left = [name for name in missing if name not in placements]
    codes, scaled = CodeTensors(suspect, {prod(base.tensors[name].shape) for name in left}), dict(fused.weights)
    if codes.codes:
        integers = PlacementSearch(base, original, codes, codes.codes.values(), left, set())
        found = integers.run(MIN_CODE_COSINE)
        scaled |= {name: _Scaling(original, original.tensors[name]) for name in found}
        placements |= found
        search.complete &= integers.complete
    free = {name: info for name, info in match_names(base, suspect).items() if name not in matches | placements}
    matches |= {name: info for name, info in free.items() if info.name not in search.taken}
    placements |= search.place_namesakes([name for name in missing if name not in matches | placements])
    if not placements:
        return PlacedSuspect(suspect, matches, _used(suspect), search.complete)
    placed = PlacedWeights(codes, placements | _moved(matches, placements), scaled)
    matches |= {name: placed.tensors[name] for name in placed.placements}
    return PlacedSuspect(placed, matches, placed.used, search.complete, fused.interference)


def _used(suspect: TensorReader) -> tuple[str, ...]:
    return suspect.used if isinstance(suspect, PlacedWeights) else ()


class _Scaling:
    """Turns a carrier's codes into weights, with scales that are fitted when they are first needed."""

    def __init__(self, original: Checkpoint, info: TensorInfo):
        self._original, self._info = original, info
        self._fit: ScaleFit | None = None

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        if self._fit is None:
            ours = to_float32(self._original.read(self._info), self._info.dtype).reshape(self._info.shape)
            self._fit = fit_scales(codes, ours)
        return self._fit(codes)


def _moved(matches: Mapping[str, TensorInfo], placements: Mapping[str, Placement]) -> dict[str, Placement]:
    """Placements of matched tensors whose own names other tensors get."""
    return {
        name: whole_placement(info.shape, TensorView.whole(info))
        for name, info in matches.items()
        if info.name in placements and info.name != name
    }
