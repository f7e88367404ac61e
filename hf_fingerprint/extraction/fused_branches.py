"""Reads the marks of parallel branches from the one convolution that a suspect fused them into.

RepVGG (X. Ding et al., arXiv 2101.03697) and MobileOne (P. Vasu et al., arXiv 2206.04040) train several branches, each
a convolution and a normalization, and deploy their sum as one convolution. Row by row, its weights are

    fused[o] = sum_b s_b[o] * pad(w_b[o]) + t[o] * e_o,

with a scale for each branch, and t for the identity. The scales are fitted to the base's branches, so no normalization
must be known. What remains is `sum_b s_b * (w_b' - w_b)`, from which each branch's difference is estimated as if
those of the others were noise of their amplitudes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.extraction.layouts import PLAIN, Shape
from hf_fingerprint.extraction.placed import Bounds, Piece, Placement, TensorView
from hf_fingerprint.vault import Base


SAMPLED_ROWS = 16
MAX_COMPARED = 16  # tensors with a group, after all were screened
LEAST_WEIGHTS = 8  # of a row, for each scale that is fitted to it
MIN_EXPLAINED = 0.5  # of a fused tensor's energy, more than chance explains
BLOCK_WEIGHTS = 1 << 22
_RIDGE = 1e-6
_MAX_ABS = np.float32(1e15)
_BRANCH = re.compile(
    r"(?P<module>.+)\.(conv_kxk|conv_1x1|conv_scale|rbr_dense|rbr_1x1|rbr_conv|rbr_scale|large_conv|small_conv)"
    r"(\.\d+)?(\.conv)?\.weight"
)


@dataclass(frozen=True)
class BranchGroup:
    """The convolutions of one module that are added up.

    Attributes:
        names (`tuple[str, ...]`): the base's tensors.
        shapes (`tuple[Shape, ...]`): their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def shape(self) -> Shape:
        """The shape of their sum."""
        return max(self.shapes, key=prod)

    @property
    def scales(self) -> int:
        """How many scales each row has: one for each branch, and one for the identity, if there may be one."""
        return len(self.names) + (self.shape[0] == self.shape[1])

    def bounds(self, shape: Shape) -> Bounds:
        """The part of the sum that a branch of this shape is added to."""
        first = [(whole - own) // 2 for whole, own in zip(self.shape, shape, strict=True)]
        return tuple((start, start + own) for start, own in zip(first, shape, strict=True))


class FusedBranches(NamedTuple):
    """The branches that are read from fused tensors.

    Attributes:
        placements (`dict[str, Placement]`): by the carriers' names.
        weights (`dict[str, callable]`): from what a placement holds to the branch's weights.
        interference (`float`): the variance of the other branches' marks in a weight, in units of its own mark's.
    """

    placements: dict[str, Placement]
    weights: dict[str, Callable[[np.ndarray], np.ndarray]]
    interference: float


def find_fused_branches(
    base: Base, original: Checkpoint, suspect: TensorReader, missing: Collection[str], taken: Collection[str]
) -> FusedBranches:
    """Finds the carriers that a suspect has fused with others.

    Args:
        base, original, suspect: see [`extract`].
        missing (collection of `str`): the carriers that were not found by name.
        taken (collection of `str`): the suspect's tensors that hold others.
    """
    groups = [group for group in _branch_groups(base) if set(missing).intersection(group.names)]
    free: dict[Shape, list[TensorInfo]] = defaultdict(list)
    for info in suspect.tensors.values():
        if info.dtype in READABLE and info.name not in taken:
            free[info.shape].append(info)
    needed = Counter(shape for group in groups for shape in group.shapes)
    by_shape: dict[Shape, list[BranchGroup]] = defaultdict(list)
    for group in groups:
        if any(len(free[shape]) < needed[shape] for shape in group.shapes):  # else it has the branches themselves
            by_shape[group.shape].append(group)
    found, amplitudes = FusedBranches({}, {}, 0.0), {carrier.name: carrier.amplitude for carrier in base.carriers}
    interference, weights = 0.0, 0
    for shape, some in by_shape.items():
        for group, info in _assign(original, suspect, some, free[shape]):
            fused = _Fused(group, original, suspect, info, amplitudes)
            for name, own in zip(group.names, group.shapes, strict=True):
                if name in missing and name in amplitudes and fused.gains[name] > 0:
                    view = TensorView(info, group.bounds(own), PLAIN, own)
                    found.placements[name] = Placement(own, (Piece(view, 0, 0),))
                    found.weights[name] = fused.branch(name)
                    interference += prod(own) * (1 / fused.gains[name] - 1)
                    weights += prod(own)
    return found._replace(interference=interference / max(weights, 1))


def _branch_groups(base: Base) -> list[BranchGroup]:
    modules: dict[str, list[str]] = defaultdict(list)
    for name, record in base.tensors.items():
        if len(record.shape) == 4 and (match := _BRANCH.fullmatch(normalize_name(name))):
            modules[match["module"]].append(name)
    groups = (BranchGroup(tuple(names), tuple(base.tensors[n].shape for n in names)) for names in modules.values())
    return [each for each in groups if _can_be_added(each) and LEAST_WEIGHTS * each.scales <= prod(each.shape[1:])]


def _can_be_added(group: BranchGroup) -> bool:
    """Whether all branches have the same channels, and windows that lie in the middle of the largest."""
    return group.scales > 1 and all(
        own[:2] == group.shape[:2] and all(a <= b and (b - a) % 2 == 0 for a, b in zip(own, group.shape, strict=True))
        for own in group.shapes
    )


def _assign(
    original: Checkpoint, suspect: TensorReader, groups: Sequence[BranchGroup], infos: Sequence[TensorInfo]
) -> Iterator[tuple[BranchGroup, TensorInfo]]:
    """The groups with the tensors that they explain, by a sample of rows."""
    from scipy.optimize import linear_sum_assignment

    if not infos:
        return
    rows = np.array(sample_row_indices(groups[0].shape[0], SAMPLED_ROWS))
    parts = [_stack(each, [_load(original, original.tensors[n], rows) for n in each.names], rows) for each in groups]
    explained = np.zeros((len(groups), len(infos)))
    for number, candidates in enumerate(_likeliest(parts, suspect, infos, rows)):
        chance = groups[number].scales / prod(groups[number].shape[1:])
        for other in candidates:
            values = _load(suspect, infos[other], rows)
            left = values - _fitted(parts[number], _fit_scales(parts[number], values))
            energy = float(np.square(values, dtype=np.float64).sum())
            if energy > 0:
                explained[number, other] = 1 - float(np.square(left, dtype=np.float64).sum()) / energy - chance
    for row, column in zip(*linear_sum_assignment(-explained), strict=True):
        if explained[row, column] >= MIN_EXPLAINED:
            yield groups[row], infos[column]


def _likeliest(
    parts: Sequence[np.ndarray], suspect: TensorReader, infos: Sequence[TensorInfo], rows: np.ndarray
) -> list[list[int]]:
    """The tensors that are compared with each group: those of which it explains most, weights that are 0 included."""
    bases = [np.linalg.qr(each.reshape(*each.shape[:2], -1).swapaxes(1, 2))[0] for each in parts]
    explained = np.zeros((len(bases), len(infos)))
    step = max(1, BLOCK_WEIGHTS // bases[0][..., 0].size)
    for first in range(0, len(infos), step):
        some = np.stack([_load(suspect, each, rows).reshape(len(rows), -1) for each in infos[first : first + step]], 1)
        energy = np.maximum(np.square(some).sum((0, 2)), np.finfo(np.float32).tiny)
        for number, basis in enumerate(bases):
            explained[number, first : first + step] = np.square(some @ basis).sum((0, 2)) / energy
    return [np.argsort(-each, kind="stable")[:MAX_COMPARED].tolist() for each in explained]


def _load(checkpoint: TensorReader, info: TensorInfo, rows: np.ndarray) -> np.ndarray:
    """Some rows of a tensor as `float32`; values that are not finite, or huge, become 0."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    raw = [checkpoint.read(info, run[0] * info.row_bytes, (run[-1] + 1) * info.row_bytes) for run in runs]
    values = to_float32(np.concatenate(raw), info.dtype).reshape(-1, *info.shape[1:])
    return np.where(np.abs(values) < _MAX_ABS, values, np.float32(0))


def _stack(group: BranchGroup, branches: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Some rows of all branches, in the sum's window, and of the identity: `(rows, scales, *shape)`."""
    parts = np.zeros((len(rows), group.scales, *group.shape[1:]), np.float32)
    for number, values in enumerate(branches):
        _, *window = (slice(*each) for each in group.bounds((group.shape[0], *values.shape[1:])))
        np.moveaxis(parts, 1, 0)[number][(slice(None), *window)] = values
    if group.scales > len(branches):
        _, _, height, width = group.shape
        parts[np.arange(len(rows)), -1, rows, height // 2, width // 2] = 1
    return parts


def _fit_scales(parts: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """The scales of each row by least squares: `(rows, scales)`; weights that are exactly 0 don't count."""
    flat = (parts * (fused != 0)[:, None]).reshape(*parts.shape[:2], -1).astype(np.float64)
    gram = flat @ flat.swapaxes(1, 2)
    size = np.einsum("rss->rs", gram)
    ridge = _RIDGE * np.maximum(size, size.max(1, keepdims=True) * _RIDGE) + np.finfo(np.float32).tiny
    gram[:, np.arange(gram.shape[1]), np.arange(gram.shape[1])] += ridge
    products = np.einsum("rsw,rw->rs", flat, fused.reshape(len(fused), -1))
    found: np.ndarray = np.linalg.solve(gram, products[..., None])[..., 0]
    return found


def _fitted(parts: np.ndarray, scales: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("rs,rs...->r...", scales, parts)
    return found


class _Fused:
    """A fused tensor of a suspect, and the scales with which it was fused.

    Attributes:
        gains (`dict[str, float]`): for each branch with a mark, the share of it in the sum of the marks.
    """

    def __init__(
        self,
        group: BranchGroup,
        original: Checkpoint,
        suspect: TensorReader,
        info: TensorInfo,
        amplitudes: dict[str, np.ndarray],
    ):
        self._group, self._original = group, original
        scales = []
        for rows in _row_blocks(group):
            scales.append(_fit_scales(self._parts(rows), _load(suspect, info, rows)))
        self._scales = np.concatenate(scales)
        zeros = np.zeros(group.shape[0])
        self._variances = [np.square(amplitudes.get(name, zeros), dtype=np.float64) for name in group.names]
        self.gains = {name: float(self._gain(number).mean()) for number, name in enumerate(group.names)}

    def branch(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """From the fused weights in a branch's window to the branch's weights.

        Rows in which another branch outweighs this one count less: they show less of its mark.
        """
        number = self._group.names.index(name)
        shape = self._group.shapes[number]

        def weights(fused: np.ndarray) -> np.ndarray:
            factors = self._gain(number) / self.gains[name]
            scales = self._scales[:, number].reshape(-1, 1, 1, 1)
            factors = np.divide(factors, scales, out=np.zeros_like(factors), where=factors > 0).astype(np.float32)
            found = np.empty(shape, np.float32)
            window = tuple(slice(*each) for each in self._group.bounds(shape)[1:])
            for rows in _row_blocks(self._group):
                part, values = slice(rows[0], rows[-1] + 1), fused[rows[0] : rows[-1] + 1]
                parts = self._parts(rows)[(slice(None), slice(None), *window)]
                with np.errstate(invalid="ignore", over="ignore"):
                    change = (values - _fitted(parts, self._scales[part])) * factors[part]
                    found[part] = np.where(values == 0, 0, parts[:, number] + change)
            return found

        return weights

    def _gain(self, number: int) -> np.ndarray:
        """A branch's share of the energy of all marks in its window, by row and place: `(rows, 1, height, width)`."""
        shape, whole = self._group.shapes[number], self._group.bounds(self._group.shapes[number])[2:]
        total = np.zeros((shape[0], 1, *shape[2:]))
        for other, each in enumerate(self._group.shapes):
            window = [
                slice(max(a - c, 0), max(min(b, d) - c, 0))
                for (a, b), (c, _), d in zip(
                    self._group.bounds(each)[2:], whole, [end for _, end in whole], strict=True
                )
            ]
            total[(slice(None), slice(None), *window)] += self._power(other).reshape(-1, 1, 1, 1)
        own = np.broadcast_to(self._power(number).reshape(-1, 1, 1, 1), total.shape)
        return np.divide(own, total, out=np.zeros_like(total), where=total > 0)

    def _power(self, number: int) -> np.ndarray:
        """The energy that a branch's mark has in each row of the sum."""
        found: np.ndarray = np.square(self._scales[:, number]) * self._variances[number]
        return found

    def _parts(self, rows: np.ndarray) -> np.ndarray:
        tensors = self._original.tensors
        return _stack(self._group, [_load(self._original, tensors[name], rows) for name in self._group.names], rows)


def _row_blocks(group: BranchGroup) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_WEIGHTS // (group.scales * prod(group.shape[1:])))
    for start in range(0, group.shape[0], step):
        yield np.arange(start, min(start + step, group.shape[0]))
