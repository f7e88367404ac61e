"""Presents a suspect whose residual stream was sliced in the base's shapes: SliceGPT.

Each segment of the stream was rotated by its own matrix, of which the last columns were deleted (S. Ashkboos et al.,
"SliceGPT", ICLR 2024, arXiv 2401.15024, section 3). What is left of the matrix is fitted to the weights of the layers
that touch the segment, and these are rotated back. In the directions that are gone, weights are taken from the base,
so they differ by nothing and count as not read.

Nothing here sees a codeword, so a wrong fit can lose evidence but can't create any.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.errors import BuildError
from hf_fingerprint.extraction.alignment.activation_matching import zero_unusable
from hf_fingerprint.extraction.alignment.aligned import load_tensor
from hf_fingerprint.extraction.alignment.procrustes import SliceEquation, fit_stream_slice
from hf_fingerprint.extraction.alignment.residual_rotation import RotationTransform, StreamSide
from hf_fingerprint.extraction.alignment.stream_segments import StreamSegment, find_segments
from hf_fingerprint.extraction.narrower import may_be_narrower
from hf_fingerprint.extraction.placed import Piece, PlacedWeights, Placement, TensorView
from hf_fingerprint.vault import Base


MIN_ROWS = 2  # of a segment's layers, as a multiple of its channels: fewer could be fitted to any weights
MIN_COSINE = 0.8  # of a layer rotated back; least squares attain the root of 1 / MIN_ROWS with unrelated weights
PROBED_SEGMENTS = 3  # if none of so many segments of all depths fits, the models are unrelated
_TINY = 1e-20


class SlicedStream(NamedTuple):
    """A suspect whose sliced layers have the base's shapes.

    Attributes:
        suspect ([`TensorReader`]): the suspect; unchanged if no layer was sliced.
        shares (`dict[str, float]`): by carrier that was sliced, the share of its directions that are left.
    """

    suspect: TensorReader
    shares: dict[str, float]


def restore_stream(base: Base, original: Checkpoint, suspect: TensorReader) -> SlicedStream:
    """A suspect whose stream was sliced, or rotated segment by segment, in the base's shapes and bases.

    Layers are found by the base's names, and the segments by running the base, which timm or transformers must build.

    Args:
        base, original, suspect: see [`extract`].
    """
    named = Namesakes(suspect.tensors)
    if len(suspect.tensors) <= len(original.tensors) and _has_all_shapes(base, named):
        return SlicedStream(suspect, {})  # there is no place for the matrices of skip connections
    if not _may_be_sliced(base, named):
        return SlicedStream(suspect, {})
    try:
        segments = find_segments(original)
    except BuildError:
        return SlicedStream(suspect, {})
    carriers = base.carrier_shapes
    placements: dict[str, Placement] = {}
    transforms: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    shares: dict[str, float] = {}
    first = range(0, len(segments), 1 + len(segments) // PROBED_SEGMENTS)
    for number in [*first, *(number for number in range(len(segments)) if number not in first)]:
        if number not in first and not placements:
            break
        for sliced in _restore_segment(original, suspect, named, segments[number]):
            name = sliced.name
            if name in carriers:
                shape = original.tensors[name].shape
                placements[name] = Placement(shape, (Piece(TensorView.whole(sliced.info), sliced.axis, 0),))
                transforms[name], shares[name] = sliced, sliced.share
    return SlicedStream(PlacedWeights(suspect, placements, transforms) if placements else suspect, shares)


def _has_all_shapes(base: Base, named: Namesakes) -> bool:
    """Whether all of the base's tensors have a namesake of their shape."""
    shapes = {name: record.shape for name, record in base.tensors.items()}
    return len(named.find_shaped(shapes)) == len(shapes)


def _may_be_sliced(base: Base, named: Namesakes) -> bool:
    """Whether half of the carriers have a namesake with all channels on one side, and enough on the other."""
    pairs = [(named.find(name), shape) for name, shape in base.carrier_shapes.items()]
    fits = [
        may_be_narrower(info.shape, shape) and any(a == b for a, b in zip(info.shape, shape, strict=True))
        for info, shape in pairs
        if info is not None
    ]
    return 2 * sum(fits) >= len(base.carriers)


@dataclass(frozen=True)
class _Layer:
    """A layer of the base that touches a segment, and its namesake.

    Attributes:
        name (`str`): the base's tensor.
        info ([`TensorInfo`]): the suspect's.
        axis (`int`): the axis of the stream: 1 of a layer that reads it, 0 of one that writes to it.
        side ([`StreamSide`]): the gains or scales.
        original, suspect: see [`extract`].
    """

    name: str
    info: TensorInfo
    axis: int
    side: StreamSide
    original: Checkpoint
    suspect: TensorReader

    @property
    def kept(self) -> int:
        """The channels of the stream that the suspect has."""
        return self.info.shape[self.axis]

    def ours(self) -> np.ndarray:
        """The base's weights, `float64` of shape `(rows, columns)`."""
        return _as_matrix(load_tensor(self.original, self.original.tensors[self.name]))

    def equation(self) -> SliceEquation:
        """What the layer says about the slice: its rows, or columns if it writes."""
        ours, theirs = self.side.fold_base(self.ours()), _as_matrix(load_tensor(self.suspect, self.info))
        return SliceEquation.of(ours, theirs) if self.axis else SliceEquation.of(ours.T, theirs.T)


@dataclass(frozen=True)
class _SlicedLayer(_Layer):
    """A layer whose slice was found. It gives the suspect's weights, padded with zeros to the base's shape, in the
    base's basis.

    Attributes:
        share (`float`): the share of the stream's directions that are left.
        drift (`np.ndarray`): see [`StreamSide.drift`].
    """

    share: float
    drift: np.ndarray

    def __call__(self, padded: np.ndarray) -> np.ndarray:
        transform = RotationTransform(self.side, _unchanged, self.drift, self.ours)
        return transform(zero_unusable(padded).reshape(len(padded), -1, 1)).reshape(padded.shape)


def _restore_segment(
    original: Checkpoint, suspect: TensorReader, named: Namesakes, segment: StreamSegment
) -> list[_SlicedLayer]:
    """The layers of a segment that are similar to the base's once they are rotated back.

    A layer that is not, as one whose other side was permuted, is left out of the fit, the worst first.
    """
    layers = [*_find_layers(original, suspect, named, segment)]
    counts = Counter(each.kept for each in layers)
    layers = [each for each in layers if each.kept == counts.most_common(1)[0][0]]
    equations = {each.name: each.equation() for each in layers}
    while sum(equations[each.name].rows for each in layers) >= MIN_ROWS * segment.channels:
        try:
            found, factors = fit_stream_slice([equations[each.name] for each in layers])
        except np.linalg.LinAlgError:
            break
        basis = np.zeros((segment.channels, segment.channels), np.float32)  # many are kept
        basis[: found.shape[1]] = found.T
        fits = [_rotate_back(*pair, basis) for pair in zip(layers, factors, strict=True)]
        worst = min(range(len(fits)), key=lambda index: fits[index][1])
        if fits[worst][1] >= MIN_COSINE:
            return [layer for layer, _ in fits]
        del layers[worst]
    return []


def _rotate_back(layer: _Layer, factors: np.ndarray, basis: np.ndarray) -> tuple[_SlicedLayer, float]:
    """A layer with its slice, and its cosine with the base's weights in the directions that are left."""
    inverse = np.ones(len(basis))
    inverse[: len(factors)] = 1 / factors
    gains, scales = (None if pair is None else (pair[0], inverse) for pair in (layer.side.gains, layer.side.scales))
    side = replace(layer.side, basis=basis, gains=gains, scales=scales)
    ours, theirs = side.project_base(layer.ours()), _as_matrix(load_tensor(layer.suspect, layer.info))
    padded = np.zeros(ours.shape)
    padded[: len(theirs), : theirs.shape[1]] = theirs
    back = side.align_suspect_side(padded)
    drift = side.drift(ours, back)
    names = (layer.name, layer.info, layer.axis, side, layer.original, layer.suspect)
    return _SlicedLayer(*names, share=layer.kept / len(basis), drift=drift), _cosine(back * drift, ours)


def _find_layers(
    original: Checkpoint, suspect: TensorReader, named: Namesakes, segment: StreamSegment
) -> Iterator[_Layer]:
    """Yields the layers of a segment that have a namesake with all channels on the other side."""
    for axis, factors in ((1, segment.readers), (0, segment.writers)):
        for name, own in factors.items():
            info, shape = named.find(name), original.tensors[name].shape
            if info is None or not may_be_narrower(info.shape, shape) or info.shape[1 - axis] != shape[1 - axis]:
                continue
            pair = own, np.ones(len(own))
            side = StreamSide(np.eye(len(own)), gains=pair) if axis else StreamSide(np.eye(len(own)), scales=pair)
            yield _Layer(name, info, axis, side, original, suspect)


def _as_matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.vdot(one, two)) / max(float(np.linalg.norm(one) * np.linalg.norm(two)), _TINY)


def _unchanged(weights: np.ndarray) -> np.ndarray:
    return weights
