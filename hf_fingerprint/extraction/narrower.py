"""Presents a suspect whose channels were pruned away in the base's shapes, with zeros for those that are missing.

Weights that are exactly 0 are left out when the signal is extracted, so what is missing costs evidence and adds none.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import canonical_name
from hf_fingerprint.extraction.alignment.activation_matching import zero_unusable
from hf_fingerprint.extraction.alignment.aligned import load_tensor
from hf_fingerprint.extraction.channel_search import ChannelSearch, LayerShapes, Widths
from hf_fingerprint.extraction.channel_similarity import KeptChannels
from hf_fingerprint.extraction.layouts import Shape
from hf_fingerprint.extraction.placed import Piece, PlacedWeights, Placement, ScatteredPlacement, TensorView
from hf_fingerprint.vault import Base


MIN_KEPT = 0.25  # of the channels on one side of a layer
MAX_SHAPES, MAX_FREE, MAX_PAIRS = 1 << 12, 1 << 12, 1 << 14  # shapes, layers and pairs of them that are considered
MAX_SUGGESTED, MAX_SUGGESTED_WIDTH = 64, 1 << 11  # normalizations that suggest orders, and their channels
MAX_SUGGESTED_WORK = 1 << 34  # steps of their assignments
_TINY = 1e-9
Index = tuple[np.ndarray | slice, ...]
_NUMBER = re.compile(r"(\d+)")


def may_be_narrower(theirs: Shape, ours: Shape) -> bool:
    """Whether a tensor may be one of the base's, with all channels or without some: layers alone."""
    if len(theirs) != len(ours) or len(ours) < 2 or theirs[2:] != ours[2:]:
        return False
    return prod(theirs) > 0 and all(MIN_KEPT * b <= a <= b for a, b in zip(theirs[:2], ours[:2], strict=True))


def pair_narrower(base: Base, suspect: TensorReader) -> dict[str, TensorInfo]:
    """The carriers that a suspect may hold without some of their channels, or whole, according to its headers.

    Tensors of the same names are paired. If names are unknown, those of fitting shapes are, if these are enough for
    half of the carriers: what is left of any model fits some.

    Args:
        base, suspect: see [`extract`].

    Returns:
        `dict[str, TensorInfo]`: the suspect's tensors by carrier; none, unless some are narrower.
    """
    if named := _narrower_namesakes(base, suspect):
        return named
    shapes = base.carrier_shapes
    names = {canonical_name(name) for name in suspect.tensors}
    if 2 * sum(canonical_name(name) in names for name in shapes) >= len(shapes):
        return {}
    by_shape: dict[Shape, list[TensorInfo]] = defaultdict(list)
    for info in suspect.tensors.values():
        if info.dtype in READABLE:
            by_shape[info.shape].append(info)
    by_shape = dict(sorted(by_shape.items(), key=lambda each: -len(each[1]))[:MAX_SHAPES])
    pairs: dict[str, TensorInfo] = {}
    for name in sorted(shapes, key=lambda each: (-prod(shapes[each]), each)):
        fits = [shape for shape, infos in by_shape.items() if infos and may_be_narrower(shape, shapes[name])]
        if fits:
            pairs[name] = by_shape[max(fits, key=prod)].pop()
    is_narrower = any(info.shape != shapes[name] for name, info in pairs.items())
    return pairs if is_narrower and 2 * len(pairs) >= len(shapes) else {}


def _narrower_namesakes(base: Base, suspect: TensorReader) -> dict[str, TensorInfo]:
    """The namesakes of carriers that may be these without some channels, or whole; none, unless some are narrower."""
    shapes, namesakes = base.carrier_shapes, Namesakes(suspect.tensors)
    same = {name: info for name in shapes if (info := namesakes.find(name)) is not None}
    pairs = {name: info for name, info in same.items() if may_be_narrower(info.shape, shapes[name])}
    return pairs if any(info.shape != shapes[name] for name, info in pairs.items()) else {}


def restore_channels(
    base: Base, original: Checkpoint, suspect: TensorReader, named: bool = True
) -> tuple[TensorReader, bool]:
    """A narrower suspect in the base's shapes, as far as its channels are found; other suspects unchanged.

    Args:
        base, original, suspect: see [`extract`].
        named (`bool`, *optional*, defaults to `True`): whether names tell which layers are compared, where shapes
            allow it; otherwise all are that have fitting shapes.

    Returns:
        `(suspect, complete)`: the suspect, and whether all layers that may be the base's were compared.
    """
    carriers = _narrower_namesakes(base, suspect) if named else pair_narrower(base, suspect)
    if not carriers:
        return suspect, True
    layers, complete = _pair_layers(original, suspect, named)

    def load(name: str, counterpart: str) -> tuple[np.ndarray, np.ndarray]:
        return load_tensor(original, original.tensors[name]), load_tensor(suspect, suspect.tensors[counterpart])

    search = ChannelSearch(layers, load)
    search.run()
    if 2 * len(search.found) < len(layers):
        for widths, order in _suggest_orders(original, suspect):
            search.suggest(widths, order)
        search.run()
    placements: dict[str, Placement] = {}
    for name, (counterpart, kept) in search.found.items():
        info, shape = suspect.tensors[counterpart], original.tensors[name].shape
        if not _is_unchanged(kept, shape) or canonical_name(counterpart) != canonical_name(name):
            placements[name] = _scatter(info, shape, _index(kept))
    if not any(name in placements for name in carriers):
        return suspect, complete and search.complete
    placements |= _place_vectors(original, suspect, search)
    return PlacedWeights(suspect, placements), complete and search.complete


def _pair_layers(
    original: Checkpoint, suspect: TensorReader, by_name: bool
) -> tuple[dict[str, Sequence[tuple[str, LayerShapes]]], bool]:
    """The base's layers in their order, each with the suspect's that may be its counterpart: its namesake if that
    fits, or all others; and whether these are all pairs."""
    theirs = {name: info for name, info in suspect.tensors.items() if info.dtype in READABLE and len(info.shape) > 1}
    namesakes = Namesakes(theirs)
    ours = {name: info for name, info in original.tensors.items() if info.dtype in READABLE and len(info.shape) > 1}
    same = {name: info for name in ours if by_name and (info := namesakes.find(name)) is not None}
    paired = {name: info for name, info in same.items() if may_be_narrower(info.shape, ours[name].shape)}
    taken = {info.name for info in paired.values()}
    free = sorted((info for name, info in theirs.items() if name not in taken), key=lambda info: _natural(info.name))
    found: dict[str, Sequence[tuple[str, LayerShapes]]] = {}
    complete, left = len(free) <= MAX_FREE, MAX_PAIRS
    for name in sorted(ours, key=_natural):
        infos = [paired[name]] if name in paired else free[:MAX_FREE]
        pairs = [each for each in infos if may_be_narrower(each.shape, ours[name].shape)]
        found[name] = [(each.name, LayerShapes(_three(ours[name].shape), _three(each.shape))) for each in pairs[:left]]
        left -= len(found[name])
    return found, complete and left > 0


def _suggest_orders(original: Checkpoint, suspect: TensorReader) -> Iterator[tuple[Widths, np.ndarray]]:
    """Yields orders of channels by their biases and statistics alone, for suspects whose first layer is another."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    modules: dict[str, list[tuple[TensorInfo, TensorInfo]]] = defaultdict(list)
    namesakes = Namesakes(suspect.tensors)
    for name, ours in original.tensors.items():
        info = namesakes.find(name)
        if info is not None and ours.dtype in READABLE and len(ours.shape) == len(info.shape) == 1:
            modules[name.rpartition(".")[0]].append((ours, info))
    some = [pairs for pairs in modules.values() if len(pairs) > 1][:MAX_SUGGESTED]
    work = 0
    for pairs in some:
        (widths, *others) = {(theirs.shape[0], ours.shape[0]) for ours, theirs in pairs}
        if others or not 0 < widths[0] < widths[1] <= MAX_SUGGESTED_WIDTH:
            continue
        work += widths[0] ** 2 * widths[1]
        if work > MAX_SUGGESTED_WORK:
            return
        one, two = (
            np.stack([_load_vector(where, pair[side]) for pair in pairs], 1)
            for side, where in enumerate((original, suspect))
        )
        scale = np.maximum(one.std(0), _TINY)
        yield widths, linear_sum_assignment(cdist(two / scale, one / scale, "cityblock"))[1]


def _load_vector(checkpoint: TensorReader, info: TensorInfo) -> np.ndarray:
    return zero_unusable(TensorView.whole(info).load(checkpoint)).astype(np.float64)


def _place_vectors(original: Checkpoint, suspect: TensorReader, search: ChannelSearch) -> dict[str, Placement]:
    """Placements of biases, normalizations and embeddings along their one narrower axis."""
    namesakes = Namesakes(suspect.tensors)
    rows = {name.rpartition(".")[0]: kept.rows for name, (_, kept) in search.found.items()}
    placements: dict[str, Placement] = {}
    for name, ours in original.tensors.items():
        info = namesakes.find(name)
        if name in search.found or info is None or ours.dtype not in READABLE or len(info.shape) != len(ours.shape):
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(info.shape, ours.shape, strict=True)) if a != b]
        if len(axes) != 1:
            continue
        own = rows.get(name.rpartition(".")[0])
        widths = info.shape[axes[0]], ours.shape[axes[0]]
        orders = [own] if own is not None and len(own) == widths[0] else search.known_orders(widths)
        if orders:
            order = _most_similar(original, ours, suspect, info, axes[0], orders)
            placements[name] = _scatter(info, ours.shape, (*[slice(None)] * axes[0], order))
    return placements


def _most_similar(
    original: Checkpoint,
    ours: TensorInfo,
    suspect: TensorReader,
    theirs: TensorInfo,
    axis: int,
    orders: Sequence[np.ndarray],
) -> np.ndarray:
    """The order of one axis in which a tensor is most similar to the base's."""
    if len(orders) == 1:
        return orders[0]
    one, two = (
        np.moveaxis(zero_unusable(TensorView.whole(info).load(where)), axis, 0)
        for where, info in ((original, ours), (suspect, theirs))
    )
    return min(orders, key=lambda order: float(np.square(one[order].astype(np.float64) - two).sum()))


def _scatter(info: TensorInfo, shape: Shape, index: Index) -> ScatteredPlacement:
    return ScatteredPlacement(shape, (Piece(TensorView.whole(info), 0, 0),), index)


def _index(kept: KeptChannels) -> Index:
    return kept.rows[:, None], kept.columns


def _is_unchanged(kept: KeptChannels, shape: Shape) -> bool:
    """Whether all channels are left, in the base's order."""
    orders = zip((kept.rows, kept.columns), shape[:2], strict=True)
    return all(each.shape == (count,) and np.array_equal(each, np.arange(count)) for each, count in orders)


def _three(shape: Shape) -> tuple[int, int, int]:
    return shape[0], shape[1], prod(shape[2:])


def _natural(name: str) -> list[str]:
    """A key that sorts block 10 after block 2."""
    return [part.rjust(12, "0") if part.isdigit() else part for part in _NUMBER.split(name)]
