"""Finds which parts of a suspect hold which tensors of the base, and in which layouts, by a sample of their values.

Of each part of the suspect a few runs of adjacent weights are read, in its own order. The base's weights at these
places are gathered for every layout that leads to a carrier's shape. So a part is read once, however many layouts and
carriers are compared, and all cosines are one product of matrices. They are centered and free of scale, since a
suspect's values may be integer codes. One assignment for each number of weights settles which part is whose.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import SIZES, to_float32
from hf_fingerprint.extraction.layouts import Layout, Shape, find_layouts
from hf_fingerprint.extraction.placed import Bounds, full_bounds


RUNS, RUN_WEIGHTS = 8, 512  # the sample of a part
SHORT_RUN_WEIGHTS = 128  # for slices, of which there are more, and if there are many parts
MANY_PARTS = 1 << 13
MIN_COSINE = 0.2
MIN_DEVIATIONS = 5.0  # of the cosine of unrelated tensors, of which many are compared
MAX_HYPOTHESES, MAX_BATCHES = 1 << 13, 8  # pairs of a carrier and a layout whose samples are compared at once
MAX_KEPT = 128  # candidates of each carrier
_WHOLE_BYTES = 1 << 16  # a smaller part is read at once
_CHUNK_WEIGHTS = 1 << 22  # the suspect's weights that are compared at a time
_MAX_ABS = np.float32(1e15)  # squares of larger values overflow


class Target(NamedTuple):
    """A carrier, or a slice of one, to be found in a suspect."""

    name: str
    shape: Shape
    bounds: Bounds


class Part(NamedTuple):
    """A tensor of a suspect, or a slice of one."""

    info: TensorInfo
    bounds: Bounds

    @property
    def shape(self) -> Shape:
        """The part's shape."""
        return tuple(end - begin for begin, end in self.bounds)


class Counterpart(NamedTuple):
    """A part of a suspect that holds a target's weights."""

    target: Target
    part: Part
    layout: Layout
    cosine: float


def whole_part(info: TensorInfo) -> Part:
    """A whole tensor of a suspect."""
    return Part(info, full_bounds(info.shape))


def find_counterparts(
    original: Checkpoint,
    targets: Sequence[Target],
    suspect: TensorReader,
    parts: Iterable[Part],
    plain: bool = False,
    run: int = RUN_WEIGHTS,
) -> tuple[list[Counterpart], bool]:
    """Finds the parts of a suspect that hold some carriers' weights.

    Args:
        original ([`Checkpoint`]): the base's open files.
        targets (sequence of [`Target`]): the carriers, or slices of them.
        suspect ([`TensorReader`]): the open suspect.
        parts (iterable of [`Part`]): its parts.
        plain (`bool`, *optional*, defaults to `False`): whether shapes must be equal, and axes in order.
        run (`int`, *optional*, defaults to 512): weights in each of the 8 runs that are sampled.

    Returns:
        `(found, complete)`: at most one for each target and each part; and whether all parts were compared.
    """
    grouped: dict[Shape, list[Part]] = defaultdict(list)
    for part in parts:
        grouped[part.shape].append(part)
    if sum(map(len, grouped.values())) > MANY_PARTS:
        run = min(run, SHORT_RUN_WEIGHTS)
    batches, complete = _hypotheses(targets, grouped, plain)
    kept = {number: _Kept() for number in range(len(targets))}
    for batch in batches:
        samples = _base_samples(original, targets, batch, run)
        for shape, rows in batch.items():
            _compare(suspect, grouped[shape], samples[shape], rows, kept, run)
    hypotheses = {shape: rows for batch in batches for shape, rows in batch.items()}
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, target in enumerate(targets):
        by_size[prod(target.shape)].append(number)
    found = []
    for numbers in by_size.values():
        for number, cosine, part in _assign([(number, kept[number]) for number in numbers]):
            rows = [(each, layout) for each, layout in hypotheses[part.shape] if each == number]
            few = {} if len(rows) == 1 else _base_samples(original, targets, {part.shape: rows}, run)
            layout = _best_layout(suspect, part, few[part.shape], rows, run) if few else rows[0][1]
            found.append(Counterpart(targets[number], part, layout, cosine))
    return found, complete


_Hypotheses = list[tuple[int, Layout]]  # a target's number, and a layout; those of a target are adjacent


def _hypotheses(
    targets: Sequence[Target], parts: Mapping[Shape, Sequence[Part]], plain: bool
) -> tuple[list[dict[Shape, _Hypotheses]], bool]:
    """For each shape of a part, the targets that it may hold, and the layouts, in batches that are compared one after
    the other; and whether that is all of them."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, target in enumerate(targets):
        by_size[prod(target.shape)].append(number)
    batches: list[dict[Shape, _Hypotheses]] = [{}]
    count, complete = 0, True
    for shape in sorted(parts, key=lambda each: (-len(parts[each]), each)):
        rows: _Hypotheses = []
        for number in by_size.get(prod(shape), ()):
            layouts = find_layouts(shape, targets[number].shape)
            if plain:
                layouts = layouts[:1] if shape == targets[number].shape else ()
            rows += [(number, layout) for layout in layouts]
        if rows and count + len(rows) > MAX_HYPOTHESES and len(batches) < MAX_BATCHES:
            batches.append({})
            count = 0
        if count + len(rows) > MAX_HYPOTHESES:
            complete = False
        elif rows:
            batches[-1][shape] = rows
            count += len(rows)
    return batches, complete


def _base_samples(
    original: Checkpoint, targets: Sequence[Target], hypotheses: Mapping[Shape, _Hypotheses], run: int
) -> dict[Shape, np.ndarray]:
    """The base's weights at the sampled places, by the part's shape: `(hypotheses, sample)`, with norm 1."""
    found = {shape: np.empty((len(rows), len(_sample(shape, run))), np.float32) for shape, rows in hypotheses.items()}
    wanted: dict[int, list[tuple[Shape, int, Layout]]] = defaultdict(list)
    for shape, rows in hypotheses.items():
        for row, (number, layout) in enumerate(rows):
            wanted[number].append((shape, row, layout))
    for number, places in wanted.items():
        values = _load_target(original, targets[number])
        for shape, row, layout in places:
            found[shape][row] = values[_sampled_positions(shape, layout, run)]
    for samples in found.values():
        _normalize(samples)
    return found


def _load_target(original: Checkpoint, target: Target) -> np.ndarray:
    """A target's weights, `float32` of one dimension."""
    info = original.tensors[target.name]
    values = to_float32(original.read(info), info.dtype)
    if target.shape == info.shape:
        return values
    return values.reshape(info.shape)[tuple(slice(*each) for each in target.bounds)].reshape(-1)


@lru_cache(1 << 8)
def _sample(shape: Shape, run: int) -> np.ndarray:
    """The row-major positions of a part's sample: up to 8 runs of weights, evenly spread."""
    size = prod(shape)
    if size <= RUNS * run:
        return np.arange(size)
    starts = np.linspace(0, size - run, RUNS).astype(np.int64)
    return (starts[:, None] + np.arange(run)).reshape(-1)


@lru_cache(1 << 8)
def _sampled_positions(shape: Shape, layout: Layout, run: int) -> np.ndarray:
    return layout.positions(_sample(shape, run))


class _Kept:
    """The best candidates of a target."""

    def __init__(self) -> None:
        self.cosines: np.ndarray = np.empty(0, np.float32)
        self.parts: list[Part] = []

    def add(self, cosines: np.ndarray, parts: Sequence[Part], least: float, most: int) -> None:
        """Adds those candidates that are similar enough, and keeps the best."""
        chosen = np.flatnonzero(cosines >= least)
        if len(chosen):
            chosen = chosen[np.argsort(-cosines[chosen], kind="stable")[:most]]
            together = np.concatenate([self.cosines, cosines[chosen]])
            every = [*self.parts, *(parts[i] for i in chosen.tolist())]
            order = np.argsort(-together, kind="stable")[:most]
            self.cosines, self.parts = together[order], [every[i] for i in order.tolist()]


def _compare(
    suspect: TensorReader,
    parts: Sequence[Part],
    samples: np.ndarray,
    rows: _Hypotheses,
    kept: Mapping[int, _Kept],
    run: int,
) -> None:
    """Compares parts of one shape with all hypotheses, in chunks: a suspect may have 100,000 tensors of one shape."""
    numbers = [number for number, _ in rows]
    starts = [i for i, number in enumerate(numbers) if not i or number != numbers[i - 1]]
    least = max(MIN_COSINE, MIN_DEVIATIONS / samples.shape[1] ** 0.5)
    step = max(1, _CHUNK_WEIGHTS // samples.shape[1])
    for start in range(0, len(parts), step):
        chunk = parts[start : start + step]
        theirs = np.stack([_read_sample(suspect, part, run) for part in chunk])
        _normalize(theirs)
        cosines = np.maximum.reduceat(theirs @ samples.T, starts, axis=1)
        for column, row in enumerate(starts):
            kept[numbers[row]].add(cosines[:, column], chunk, least, min(len(starts), MAX_KEPT))


def _read_sample(suspect: TensorReader, part: Part, run: int) -> np.ndarray:
    """The sampled weights of a part, `float32`."""
    info, size = part.info, SIZES[part.info.dtype]
    indices = _sampled_indices(info.shape, part.bounds, run)
    if info.nbytes <= _WHOLE_BYTES:
        return to_float32(suspect.read(info), info.dtype)[indices]
    found = []
    for places in indices.reshape(RUNS, -1) if len(indices) == RUNS * run else [indices]:
        first, last = int(places[0]), int(places[-1]) + 1
        values = to_float32(suspect.read(info, first * size, last * size), info.dtype)
        found.append(values if last - first == len(places) else values[places - first])
    return np.concatenate(found)


@lru_cache(1 << 8)
def _sampled_indices(shape: Shape, bounds: Bounds, run: int) -> np.ndarray:
    """The row-major indices, in the whole tensor, of a part's sample."""
    part = tuple(end - begin for begin, end in bounds)
    indices = _sample(part, run)
    if part == shape:
        return indices
    places = np.unravel_index(indices, part)
    return np.ravel_multi_index(tuple(p + b for p, (b, _) in zip(places, bounds, strict=True)), shape)


def _normalize(samples: np.ndarray) -> None:
    """Subtracts each row's mean and divides it by its norm, in place. Constant rows, values that are not finite, and
    huge ones become 0."""
    usable = np.abs(samples) < _MAX_ABS
    if not usable.all():
        samples[~usable] = 0
    samples -= samples.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)
    norms = np.sqrt(np.einsum("rc,rc->r", samples, samples, dtype=np.float64))
    samples /= np.where(norms > 0, norms, 1)[:, None].astype(np.float32)


def _assign(candidates: Sequence[tuple[int, _Kept]]) -> list[tuple[int, float, Part]]:
    """A best one-to-one assignment of parts to targets of one size: targets' numbers, cosines, parts."""
    from scipy.optimize import linear_sum_assignment

    index: dict[tuple[str, Bounds], int] = {}
    parts: list[Part] = []
    for _, kept in candidates:
        for part in kept.parts:
            if (part.info.name, part.bounds) not in index:
                index[part.info.name, part.bounds] = len(parts)
                parts.append(part)
    if not parts:
        return []
    similarity = np.zeros((len(candidates), len(parts)), np.float32)
    for row, (_, kept) in enumerate(candidates):
        columns = [index[part.info.name, part.bounds] for part in kept.parts]
        similarity[row, columns] = kept.cosines
    pairs = zip(*linear_sum_assignment(-similarity), strict=True)
    return [
        (candidates[row][0], float(similarity[row, column]), parts[column])
        for row, column in pairs
        if similarity[row, column] > 0
    ]


def _best_layout(suspect: TensorReader, part: Part, samples: np.ndarray, rows: _Hypotheses, run: int) -> Layout:
    """The layout in which a part is most similar to a target; the plainest of several."""
    theirs = _read_sample(suspect, part, run)[None]
    _normalize(theirs)
    cosines = samples @ theirs[0]
    return rows[int(np.argmax(cosines >= cosines.max() - 1e-6))][1]
