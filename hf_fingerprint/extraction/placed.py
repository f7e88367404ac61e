"""Presents a suspect under the base's tensor names and in its shapes, whatever the layouts of its files.

```python
piece = Piece(TensorView.whole(info).laid_out(layout, shape), 0, 0)
placed = PlacedWeights(suspect, {"blocks.0.attn.proj.weight": Placement(shape, (piece,))})
```

Where the weights are in the base's order in the file, their bytes are passed on unchanged. Others are computed when
they are first read, one tensor at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from threading import Lock
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import SIZES, to_float32
from hf_fingerprint.extraction.codes import stored_name
from hf_fingerprint.extraction.layouts import PLAIN, Layout, Shape


CACHED_TENSORS = 4
_BLOCK_BYTES = 1 << 24
Bounds = tuple[tuple[int, int], ...]  # begin and end along each axis


@dataclass(frozen=True)
class TensorView:
    """A part of a suspect's tensor in another layout.

    Attributes:
        info ([`TensorInfo`]): the tensor.
        bounds (`Bounds`): the part: begin and end along each axis of the tensor.
        layout ([`Layout`]): how to bring the part into the shape.
        shape (`tuple[int, ...]`): the shape.
    """

    info: TensorInfo
    bounds: Bounds
    layout: Layout
    shape: Shape

    @classmethod
    def whole(cls, info: TensorInfo) -> "TensorView":
        """A whole tensor, unchanged."""
        return cls(info, full_bounds(info.shape), PLAIN, info.shape)

    def byte_range(self) -> tuple[int, int] | None:
        """Begin and end of the part's bytes in the tensor, or `None` if they are apart or in another order."""
        if not self.layout.is_plain:
            return None
        first, last = 0, 0
        for size, (begin, end) in zip(self.info.shape, self.bounds, strict=True):
            first, last = first * size + begin, last * size + end - 1
        if last + 1 - first != prod(self.shape):
            return None
        size = SIZES[self.info.dtype]
        return first * size, (last + 1) * size

    def load(self, suspect: TensorReader) -> np.ndarray:
        """The part as `float32`, in its shape."""
        info, (rows, *others) = self.info, self.bounds or ((0, 1),)
        columns = tuple(slice(begin, end) for begin, end in others)
        extents = (rows[1] - rows[0], *(end - begin for begin, end in others))
        found = np.empty(extents, np.float32)
        step = max(1, _BLOCK_BYTES // max(info.row_bytes, 1))
        for start in range(*rows, step):
            stop = min(start + step, rows[1])
            raw = suspect.read(info, start * info.row_bytes, stop * info.row_bytes)
            block = to_float32(raw, info.dtype).reshape(stop - start, *info.shape[1:])
            found[start - rows[0] : stop - rows[0]] = block[(slice(None), *columns)]
        return self.layout.apply(found, self.shape)


class Piece(NamedTuple):
    """A slice of a carrier along one axis, and where the suspect has it."""

    view: TensorView
    axis: int
    start: int


@dataclass(frozen=True)
class Placement:
    """Where a suspect has the weights of a tensor of the base.

    Attributes:
        shape (`tuple[int, ...]`): the tensor's shape.
        pieces (`tuple[Piece, ...]`): the pieces. What lies between them is read as 0, as if it were pruned.
    """

    shape: Shape
    pieces: tuple[Piece, ...]

    def byte_ranges(self) -> list[tuple[TensorInfo, int, int]] | None:
        """The bytes of the suspect's tensors that are this tensor's bytes, or `None` if they must be computed."""
        found, done = [], 0
        for piece in self.pieces:
            held = piece.view.byte_range()
            if held is None or piece.axis or piece.start != done or piece.view.shape[1:] != self.shape[1:]:
                return None
            found.append((piece.view.info, *held))
            done += piece.view.shape[0] if piece.view.shape else 1
        whole = done == (self.shape[0] if self.shape else 1)
        return found if whole and len({info.dtype for info, _, _ in found}) == 1 else None

    def load(self, suspect: TensorReader) -> np.ndarray:
        """The tensor as `float32`."""
        if len(self.pieces) == 1 and self.pieces[0].view.shape == self.shape:
            return self.pieces[0].view.load(suspect)
        found = np.zeros(self.shape, np.float32)
        for view, axis, start in self.pieces:
            chosen = (slice(None),) * axis + (slice(start, start + view.shape[axis]),)
            found[chosen] = view.load(suspect)
        return found


@dataclass(frozen=True)
class _IndexedPlacement(Placement):
    """A placement of one piece by an index.

    Attributes:
        index (`tuple` of `np.ndarray` or `slice`): indices along the first axes, which broadcast together.
    """

    index: tuple[np.ndarray | slice, ...] = ()

    def byte_ranges(self) -> None:
        """`None`: the tensor's bytes must be computed."""
        return


@dataclass(frozen=True)
class ScatteredPlacement(_IndexedPlacement):
    """Where a suspect has some channels of a tensor of the base: `index` is where the one piece's weights are in the
    tensor. The others are read as 0, as if they were pruned."""

    def load(self, suspect: TensorReader) -> np.ndarray:
        """The tensor as `float32`."""
        found = np.zeros(self.shape, np.float32)
        found[self.index] = self.pieces[0].view.load(suspect)
        return found


@dataclass(frozen=True)
class SelectedPlacement(_IndexedPlacement):
    """Where a suspect has all channels of a tensor of the base, among others: `index` is which of the one piece's
    weights are the tensor's."""

    def load(self, suspect: TensorReader) -> np.ndarray:
        """The tensor as `float32`."""
        return self.pieces[0].view.load(suspect)[self.index]


class PlacedWeights:
    """A suspect under the base's tensor names and in its shapes.

    Args:
        suspect ([`TensorReader`]): the open suspect.
        placements (mapping of `str` to [`Placement`]): by the base's names. A tensor of the suspect that is placed is
            left out under its own name.
        scaled (mapping of `str` to a callable, *optional*): from the codes that a tensor's placement gives to its
            weights, both `float32` in its shape.

    Attributes:
        source ([`Source`]): the suspect's source.
        tensors (`dict[str, TensorInfo]`): its tensors by the base's names, or by their own if the base has none.
        placements (mapping of `str` to [`Placement`]): the placements.
    """

    def __init__(
        self,
        suspect: TensorReader,
        placements: Mapping[str, Placement],
        scaled: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    ):
        self.source, self.placements = suspect.source, placements
        self._suspect, self._scaled = suspect, scaled or {}
        self._cache: dict[str, np.ndarray] = {}
        self._lock = Lock()
        self._ranges = {n: None if n in self._scaled else each.byte_ranges() for n, each in placements.items()}
        used = {stored_name(piece.view.info.name) for each in placements.values() for piece in each.pieces}
        self.tensors = {name: info for name, info in suspect.tensors.items() if name not in used}
        for name, each in placements.items():
            first = each.pieces[0].view.info
            dtype = "F32" if self._ranges[name] is None else first.dtype
            info = replace(first, name=name, dtype=dtype, shape=each.shape, nbytes=prod(each.shape) * SIZES[dtype])
            self.tensors[name] = info

    @property
    def used(self) -> tuple[str, ...]:
        """The names, in the suspect's files, of tensors that are placed."""
        inner: tuple[str, ...] = getattr(self._suspect, "used", ())
        own = (stored_name(piece.view.info.name) for each in self.placements.values() for piece in each.pieces)
        return tuple(dict.fromkeys((*inner, *own)))

    @property
    def left_out(self) -> Mapping[str, str]:
        """The suspect's unreadable tensors, with reasons."""
        found: Mapping[str, str] = getattr(self._suspect, "left_out", {})
        return found

    def held_in(self, name: str) -> set[str]:
        """The tensors of the suspect's files that hold one of `tensors`."""
        placement = self.placements.get(name)
        names = [name] if placement is None else [piece.view.info.name for piece in placement.pieces]
        return held_in(self._suspect, names)

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, written to `out` if given."""
        if info.name not in self.placements:
            return self._suspect.read(info, start, stop, out)
        stop = info.nbytes if stop is None else stop
        ranges = self._ranges[info.name]
        if ranges is None:
            found = self._computed_bytes(info.name)[start:stop]
            if out is None:
                return found
            out[: len(found)] = found
            return out[: len(found)]
        out = np.empty(stop - start, np.uint8) if out is None else out
        begin = 0
        for part, first, last in ranges:
            low, high = max(start - begin, 0), min(stop - begin, last - first)
            if low < high:
                target = slice(begin + low - start, begin + high - start)
                out[target] = self._suspect.read(part, first + low, first + high)
            begin += last - first
        return out[: stop - start]

    def _computed_bytes(self, name: str) -> np.ndarray:
        """A tensor's bytes. The last few tensors are cached, since callers read them in pieces."""
        with self._lock:
            if name not in self._cache:
                values = self.placements[name].load(self._suspect)
                if name in self._scaled:
                    values = self._scaled[name](values)
                values = np.ascontiguousarray(values, np.float32)
                self._cache[name] = values.reshape(-1).view(np.uint8)
            kept = self._cache[name]
            for oldest in list(self._cache)[:-CACHED_TENSORS]:
                del self._cache[oldest]
            return kept


def held_bounds(placed: TensorReader, names: Iterable[str]) -> dict[str, list[Bounds]]:
    """The parts of a suspect's tensors that hold some of its placed tensors."""
    found: dict[str, list[Bounds]] = {}
    for name in names:
        placement = placed.placements.get(name) if isinstance(placed, PlacedWeights) else None
        for piece in () if placement is None else placement.pieces:
            found.setdefault(piece.view.info.name, []).append(piece.view.bounds)
    return found


def free_slices(shape: Shape, held: Sequence[Bounds]) -> list[tuple[int, int, int]]:
    """Axis, begin and end of what is left of a tensor besides some slices along one axis."""
    cut = [[i for i, (size, each) in enumerate(zip(shape, one, strict=True)) if each != (0, size)] for one in held]
    axes = {axis for each in cut for axis in each}
    if len(axes) != 1 or not all(cut):
        return []
    (axis,), found, done = axes, [], 0
    for begin, end in sorted(one[axis] for one in held):
        if begin > done:
            found.append((axis, done, begin))
        done = max(done, end)
    return [*found, (axis, done, shape[axis])] if done < shape[axis] else found


def held_in(suspect: TensorReader, names: Iterable[str]) -> set[str]:
    """The tensors of a suspect's files that hold some of its tensors, which may have been placed."""
    inner: Callable[[str], set[str]] = getattr(suspect, "held_in", lambda name: {name})
    return set().union(*map(inner, names))


def full_bounds(shape: Shape) -> Bounds:
    """The bounds of a whole tensor."""
    return tuple((0, size) for size in shape)


def overlap(one: Bounds, other: Bounds) -> bool:
    """Whether two slices of one tensor have weights in common."""
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))
