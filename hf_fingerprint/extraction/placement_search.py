"""Searches a suspect's tensors for carriers by values: whole, in slices, or in several pieces."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.extraction.counterparts import (
    SHORT_RUN_WEIGHTS,
    Counterpart,
    Part,
    Target,
    find_counterparts,
    whole_part,
)
from hf_fingerprint.extraction.layouts import Shape, find_layouts
from hf_fingerprint.extraction.placed import Bounds, Piece, Placement, TensorView, full_bounds, overlap
from hf_fingerprint.extraction.slices import find_padded, find_slices, find_stacked_slices
from hf_fingerprint.vault import Base


MAX_PARTS = 1 << 15  # slices of a suspect's tensors that are compared
MAX_SLICED, MAX_TARGETS = 1 << 10, 1 << 13  # shapes of a suspect's tensors that are sliced, and slices of carriers
HEAD_WIDTHS = (16, 24, 32, 40, 48, 64, 72, 80, 88, 96, 112, 128)
MAX_JOINED = 16  # tensors that hold a carrier together
CLEAR_COSINE = 0.7  # of a whole tensor; what shares a half or a third with a carrier has less
MIN_ROW_SIMILARITY = 0.8
LEAST_SCALED_WORK = 1 << 12  # what comparing a small tensor costs, in weights
MAX_SCALED_WEIGHTS = 1 << 25  # that are compared row by row
MIN_SLICE_COSINE = 0.3  # since more of them are compared


class _Candidate(NamedTuple):
    """A possible placement of a carrier.

    Attributes:
        name (`str`): the carrier.
        placement ([`Placement`]): where it may be.
        cosine (`float`): the cosine of a sample of it with the base's.
    """

    name: str
    placement: Placement
    cosine: float


class PlacementSearch:
    """Searches a suspect's tensors for carriers.

    Attributes:
        taken (`set[str]`): the suspect's tensors that are matched or placed.
        complete (`bool`): whether all whole tensors were compared.
    """

    def __init__(
        self,
        base: Base,
        original: Checkpoint,
        suspect: TensorReader,
        tensors: Iterable[TensorInfo],
        missing: Sequence[str],
        taken: set[str],
    ):
        self.taken, self.complete = taken, True
        self._tensors = list(tensors)
        self._base, self._original, self._suspect = base, original, suspect
        self._missing = list(missing)

    def run(self, least: float = 0.0) -> dict[str, Placement]:
        """The placements of those carriers that are found: the most similar first, none on what another has."""
        if not self._missing or not self._free_tensors():
            return {}
        whole = self._whole_tensors()
        clear = self._accept(each for each in whole if each.cosine >= CLEAR_COSINE)
        clear |= self._accept(self._scaled_tensors())
        free = self._free_tensors()
        candidates = [each for each in whole if each.name not in clear]
        if self._missing and free:
            candidates += [*self._slices(free), *self._joined(free), *self._stacked(free), *self._regrouped(free)]
        return clear | self._accept(each for each in candidates if each.cosine >= least)

    def _accept(self, candidates: Iterable[_Candidate]) -> dict[str, Placement]:
        """The placements of the most similar candidates, each of a carrier and of weights that no other has."""
        found: dict[str, Placement] = {}
        held: dict[str, list[Bounds]] = defaultdict(list)
        taken = frozenset(self.taken)
        for each in sorted(candidates, key=lambda one: -one.cosine):
            views = [piece.view for piece in each.placement.pieces]
            if each.name in found or any(view.info.name in taken for view in views):
                continue
            if any(overlap(v.bounds, o) for v in views for o in held[v.info.name]):
                continue
            found[each.name] = each.placement
            for view in views:
                held[view.info.name].append(view.bounds)
        self._take(found.values())
        self._missing = [name for name in self._missing if name not in found]
        return found

    def place_namesakes(self, names: Iterable[str]) -> dict[str, Placement]:
        """Placements by name of tensors that aren't similar to the base's, such as those of permuted channels."""
        by_name = {normalize_name(info.name): info for info in self._free_tensors()}
        found = {}
        for name in names:
            info, shape = by_name.get(normalize_name(name)), self._shape(name)
            if info is None:
                continue
            layouts = find_layouts(info.shape, shape)
            views = [TensorView(info, full_bounds(info.shape), layout, shape) for layout in layouts]
            if views:
                found[name] = whole_placement(shape, views[0] if len(views) == 1 else self._likeliest(name, views))
        return found

    def _likeliest(self, name: str, views: Sequence[TensorView]) -> TensorView:
        """The view whose channels have norms like the base's in any order, as permuted channels do."""
        info = self._original.tensors[name]
        ours = _sorted_norms(to_float32(self._original.read(info), info.dtype).reshape(info.shape))
        off = [float(np.abs(_sorted_norms(view.load(self._suspect)) - ours).sum()) for view in views]
        return views[int(np.argmin(off))]

    def _take(self, placements: Iterable[Placement]) -> None:
        self.taken |= {piece.view.info.name for each in placements for piece in each.pieces}

    def _free_tensors(self) -> list[TensorInfo]:
        return [info for info in self._tensors if info.name not in self.taken]

    def _shape(self, name: str) -> Shape:
        return self._base.tensors[name].shape

    def _whole_tensors(self) -> list[_Candidate]:
        return self._find(self._targets(), map(whole_part, self._free_tensors()))

    def _scaled_tensors(self) -> list[_Candidate]:
        """Whole tensors whose rows were scaled, such as small ones that a normalization was folded into."""
        by_size: dict[int, list[TensorInfo]] = defaultdict(list)
        for info in self._free_tensors():
            by_size[prod(info.shape)].append(info)
        work, found = 0, []
        for size, name in sorted((prod(self._shape(name)), name) for name in self._missing):
            shape, views = self._shape(name), []
            for info in by_size[size]:
                layouts = find_layouts(info.shape, shape)
                work += max(size, LEAST_SCALED_WORK) * len(layouts)
                if work <= MAX_SCALED_WEIGHTS:
                    views += [TensorView(info, full_bounds(info.shape), layout, shape) for layout in layouts]
            if not views:
                continue
            info = self._original.tensors[name]
            ours = to_float32(self._original.read(info), info.dtype).reshape(shape)
            scores = [row_similarity(ours, view.load(self._suspect)) for view in views]
            found += [
                _Candidate(name, whole_placement(shape, view), score)
                for view, score in zip(views, scores, strict=True)
                if score >= MIN_ROW_SIMILARITY
            ]
        return found

    def _targets(self) -> list[Target]:
        return [Target(name, self._shape(name), full_bounds(self._shape(name))) for name in self._missing]

    def _find(self, targets: Sequence[Target], parts: Iterable[Part]) -> list[_Candidate]:
        found, complete = find_counterparts(self._original, targets, self._suspect, parts)
        self.complete &= complete
        return [
            _Candidate(each.target.name, whole_placement(each.target.shape, _view(each)), each.cosine)
            for each in found
        ]

    def _find_slices(self, targets: Sequence[Target], parts: Iterable[Part]) -> list[Counterpart]:
        if not targets:
            return []
        some = list(islice(parts, MAX_PARTS))
        found, _ = find_counterparts(self._original, targets, self._suspect, some, run=SHORT_RUN_WEIGHTS)
        return [each for each in found if each.cosine >= MIN_SLICE_COSINE]

    def _slices(self, free: Sequence[TensorInfo]) -> list[_Candidate]:
        """Carriers that are slices of the suspect's tensors, or of layers that are stacked in one."""
        found: list[_Candidate] = []
        for parts in (self._sliced(free, find_slices), self._sliced(free, find_stacked_slices), self._padded(free)):
            counterparts = self._find_slices(self._targets(), parts)
            found += [_whole_candidate(each, each.target.shape) for each in counterparts]
        return found

    def _joined(self, free: Sequence[TensorInfo]) -> list[_Candidate]:
        """Carriers that several of the suspect's tensors hold together."""
        sizes = {prod(info.shape) for info in free}
        return self._join(self._find_slices(self._target_slices(sizes), map(whole_part, free)))

    def _stacked(self, free: Sequence[TensorInfo]) -> list[_Candidate]:
        """Carriers that layers of several of the suspect's tensors hold together."""
        targets = self._target_slices({prod(self._shape(name)) // n for name in self._missing for n in (2, 3)})
        sizes = {prod(target.shape) for target in targets}
        known: dict[Shape, list[Bounds]] = {}
        for info in free:
            if info.shape not in known and len(known) < MAX_SLICED:
                slices = [each for size in sizes if size < prod(info.shape) for each in find_slices(info.shape, size)]
                known[info.shape] = [each for each in slices if any(end - begin == 1 for begin, end in each)]
        parts = (Part(info, bounds) for info in free for bounds in known.get(info.shape, ()))
        return self._join(self._find_slices(targets, parts))

    def _regrouped(self, free: Sequence[TensorInfo]) -> list[_Candidate]:
        """Matrices whose inputs are an image's in another order, or whose outputs are projections of heads.

        A linear layer may read flattened channels first or last, and the rows of a fused projection may be ordered by
        projection or by head.
        """
        channels = sorted({record.shape[0] for record in self._base.tensors.values() if len(record.shape) == 4})
        targets = []
        for name in self._missing:
            shape = self._shape(name)
            if len(shape) != 2:
                continue
            rows, columns = shape
            finer: list[Shape] = [(rows, n, columns // n) for n in channels if 1 < n < columns and columns % n == 0]
            finer += [(3, rows // 3 // n, n, columns) for n in HEAD_WIDTHS if rows % (3 * n) == 0 and rows > 3 * n]
            targets += [Target(name, each, full_bounds(shape)) for each in finer]
        sizes = {prod(target.shape) for target in targets}
        parts = [whole_part(info) for info in free if prod(info.shape) in sizes][:MAX_PARTS]
        found, _ = find_counterparts(self._original, targets[:MAX_SLICED], self._suspect, parts, run=SHORT_RUN_WEIGHTS)
        similar = [each for each in found if each.cosine >= MIN_SLICE_COSINE]
        return [_whole_candidate(each, self._shape(each.target.name)) for each in similar]

    def _target_slices(self, sizes: Collection[int]) -> list[Target]:
        """Slices of the missing carriers that have one of these numbers of weights."""
        found = []
        for name in self._missing:
            shape, size = self._shape(name), prod(self._shape(name))
            for each in sorted(sizes):
                if size // MAX_JOINED <= each < size:
                    for bounds in find_slices(shape, each):
                        found.append(Target(name, tuple(end - begin for begin, end in bounds), bounds))
        return found[:MAX_TARGETS]

    def _join(self, found: Sequence[Counterpart]) -> list[_Candidate]:
        """Carriers in pieces that don't overlap."""
        by_axis: dict[tuple[str, int], list[Counterpart]] = defaultdict(list)
        for each in found:
            shape = self._shape(each.target.name)
            axis = next(i for i, (size, part) in enumerate(zip(shape, each.target.shape, strict=True)) if size != part)
            by_axis[each.target.name, axis].append(each)
        candidates = []
        for (name, axis), pieces in by_axis.items():
            chosen: list[Counterpart] = []
            for each in sorted(pieces, key=lambda one: -one.cosine):
                if not any(overlap(each.target.bounds, other.target.bounds) for other in chosen):
                    chosen.append(each)
            chosen.sort(key=lambda one: one.target.bounds[axis])
            shape = self._shape(name)
            placement = Placement(
                shape, tuple(Piece(_view(each), axis, each.target.bounds[axis][0]) for each in chosen)
            )
            cosine = sum(each.cosine * prod(each.target.shape) for each in chosen) / prod(shape)
            candidates.append(_Candidate(name, placement, cosine))
        return candidates

    def _sliced(self, free: Sequence[TensorInfo], slices: Callable[[Shape, int], Iterator[Bounds]]) -> Iterator[Part]:
        """The slices of the suspect's tensors that a carrier may lie in."""
        by_size: dict[int, set[Shape]] = defaultdict(set)
        for name in self._missing:
            by_size[prod(self._shape(name))].add(self._shape(name))
        known: dict[Shape, list[Bounds]] = {}
        for info in free:
            if info.shape not in known and len(known) < MAX_SLICED:
                known[info.shape] = [
                    bounds
                    for size, shapes in by_size.items()
                    if size < prod(info.shape)
                    for bounds in slices(info.shape, size)
                    if any(find_layouts(tuple(end - begin for begin, end in bounds), shape) for shape in shapes)
                ]
            for bounds in known.get(info.shape, ()):
                yield Part(info, bounds)

    def _padded(self, free: Sequence[TensorInfo]) -> Iterator[Part]:
        """The suspect's tensors without the padding that they may have."""
        shapes = {self._shape(name) for name in self._missing}
        known: dict[Shape, list[Bounds]] = {}
        for info in free:
            if info.shape not in known and len(known) < MAX_SLICED:
                slices = [bounds for shape in shapes for bounds in find_padded(info.shape, prod(shape), shape)]
                known[info.shape] = list(dict.fromkeys(slices))
            for bounds in known.get(info.shape, ()):
                yield Part(info, bounds)


def row_similarity(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How similar the rows of two tensors are in direction, up to scale and sign: about 0 by chance, at most 1."""
    a, b = (
        np.nan_to_num(each, posinf=0, neginf=0).reshape(len(each), -1).astype(np.float64) for each in (ours, theirs)
    )
    powers = np.einsum("rc,rc->r", a, a) * np.einsum("rc,rc->r", b, b)
    known, columns = powers > 0, a.shape[1]
    if columns < 2 or not known.any():
        return 0.0
    squares = float((np.einsum("rc,rc->r", a, b)[known] ** 2 / powers[known]).mean())
    return max(0.0, (squares - 1 / columns) / (1 - 1 / columns)) ** 0.5


def _sorted_norms(weights: np.ndarray) -> np.ndarray:
    """The norms of output channels and of input channels, each sorted and relative to their sum."""
    squares = np.square(np.nan_to_num(weights, posinf=0, neginf=0), dtype=np.float64)
    axes = [tuple(i for i in range(weights.ndim) if i != axis) for axis in range(min(2, weights.ndim))]
    norms = [np.sort(np.sqrt(squares.sum(each))) for each in axes]
    return np.concatenate([each / max(float(each.sum()), 1e-30) for each in norms])


def _whole_candidate(found: Counterpart, shape: Shape) -> _Candidate:
    """The placement of a carrier of this shape that is one part of the suspect."""
    view = TensorView(found.part.info, found.part.bounds, found.layout, shape)
    return _Candidate(found.target.name, whole_placement(shape, view), found.cosine)


def whole_placement(shape: Shape, view: TensorView) -> Placement:
    return Placement(shape, (Piece(view, 0, 0),))


def _view(found: Counterpart) -> TensorView:
    return TensorView(found.part.info, found.part.bounds, found.layout, found.target.shape)
