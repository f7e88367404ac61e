"""Finds which blocks of a suspect are which of the base's, where blocks were dropped, inserted, repeated or reordered.

All tensors of a block move together. So blocks are paired as wholes, by the angles between the weights of one channel
and of another: these stay the same if hidden channels or attention heads are permuted, since only one side of each
matrix is then in another order. If the residual stream was permuted too, or rotated, what is left are norms, spectra
and sorted values. Blocks of one stack are assigned one to one. Nothing here sees a codeword.

Dropped blocks: X. Men et al., ShortGPT, arXiv 2403.03853. Repeated and stacked ones: mergekit's passthrough method.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import normalize_name, to_timm
from hf_fingerprint.extraction.base_names import find_placement
from hf_fingerprint.extraction.layouts import Shape
from hf_fingerprint.extraction.placed import PlacedWeights, Placement, TensorView
from hf_fingerprint.vault import Base


MAX_BLOCKS = 256  # of one stack
MAX_WEIGHTS = 1 << 26  # of a tensor that is compared
SAMPLED_CHANNELS = 64
MAX_GRAM = 1 << 10  # rows or columns of a matrix whose spectrum is compared
MIN_SIMILARITY = 0.3  # of angles; a copy has 0.95 and more, and other models 0.05 at most
MIN_INVARIANCE = 0.75  # of norms and spectra; a copy has 0.95 and more, and other models 0.5 at most
UNPAIRED = ".unpaired"  # appended to the names of tensors whose block is none of the base's
_MAX_ABS = np.float32(1e6)  # squares of larger values may overflow where they are added up
_TINY = 1e-30
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class Block(NamedTuple):
    """A block of a model: the modules whose names begin with the stack's and an index."""

    stack: str
    number: int


_Tensors = dict[str, Placement]  # a block's, by the rest of their names


def block_tensors(names_and_shapes: Mapping[str, tuple[int, ...]]) -> dict[Block, dict[str, str]]:
    """The tensors of each block, by the rest of their names: those below the innermost index that several weights of
    two or more dimensions share, in stacks of at least two.

    Args:
        names_and_shapes (mapping of `str` to `tuple[int, ...]`): the model's tensors.
    """
    levels: dict[str, list[tuple[Block, str]]] = {name: list(_levels(name)) for name in names_and_shapes}
    weights: dict[Block, int] = defaultdict(int)
    for name, shape in names_and_shapes.items():
        for block, _ in levels[name] if len(shape) > 1 else ():
            weights[block] += 1
    found: dict[Block, dict[str, str]] = defaultdict(dict)
    for name, each in levels.items():
        inner = next(((block, rest) for block, rest in reversed(each) if weights[block] > 1), None)
        if inner is not None:
            found[inner[0]][inner[1]] = name
    sizes: dict[str, int] = defaultdict(int)
    for block in found:
        sizes[block.stack] += 1
    return {block: tensors for block, tensors in found.items() if sizes[block.stack] > 1}


def _levels(name: str) -> Iterator[tuple[Block, str]]:
    bare = normalize_name(name)
    for match in _INDEX.finditer(bare):
        if len(match[0]) < len(str(MAX_BLOCKS)) + 1:
            yield Block(bare[: match.start() - 1], int(match[0])), bare[match.end() + 1 :]


def to_base_blocks(
    base: Base, original: Checkpoint, suspect: TensorReader, named: TensorReader, similar: Collection[str]
) -> TensorReader:
    """The suspect with its blocks under the names of the base's blocks that they are most similar to.

    Args:
        base, original, suspect: see [`extract`].
        named ([`TensorReader`]): the suspect under the base's names, as [`to_base_names`] returns it.
        similar (collection of `str`): carriers that are similar to their namesakes in `named`.

    Returns:
        `named` itself if its blocks are in the base's places already, or no others are similar.
    """
    blocks = block_tensors({name: record.shape for name, record in base.tensors.items()})
    carriers = {carrier.name for carrier in base.carriers}
    stacks: dict[str, list[Block]] = defaultdict(list)
    for block, tensors in blocks.items():
        own = carriers.intersection(tensors.values())
        if own and 2 * len(own.intersection(similar)) < len(own):
            stacks[block.stack].append(block)
    if not stacks:
        return named
    by_timm_name = Namesakes(suspect.tensors).by_name
    indices = sorted({int(each) for name in by_timm_name for each in _INDEX.findall(name) if len(each) < 4})
    placements: dict[str, Placement] = {}
    moved: set[str] = set()
    for stack, lost in stacks.items():
        ours = {block.number: tensors for block, tensors in blocks.items() if block.stack == stack}
        settled = ours.keys() - {block.number for block in lost}
        rests = {rest for tensors in ours.values() for rest in tensors}
        free = {i: _find_block(stack, i, rests, by_timm_name) for i in indices[:MAX_BLOCKS] if i not in settled}
        theirs = {index: tensors for index, tensors in free.items() if tensors}
        pairs, repeats = _pair(original, suspect, ours, settled, theirs)
        if repeats or any(index != other for index, other in pairs.items()):
            for index, other in pairs.items():
                placements |= {ours[index][rest]: each for rest, each in theirs[other].items() if rest in ours[index]}
            moved |= {name for block in lost for name in blocks[block].values()}
            for other in theirs.keys() - pairs.values():
                placements |= {f"{stack}.{other}.{rest}{UNPAIRED}": each for rest, each in theirs[other].items()}
    if not placements:
        return named
    kept = named.placements if isinstance(named, PlacedWeights) and named is not suspect else {}
    return PlacedWeights(suspect, {name: each for name, each in kept.items() if name not in moved} | placements)


def _find_block(stack: str, index: int, rests: Iterable[str], by_timm_name: dict[str, TensorInfo]) -> _Tensors:
    """Where a suspect has the tensors of a block of this index."""
    found = {rest: find_placement(to_timm(f"{stack}.{index}.{rest}"), by_timm_name) for rest in rests}
    return {rest: each for rest, each in found.items() if each is not None}


def _pair(
    original: Checkpoint,
    suspect: TensorReader,
    ours: Mapping[int, dict[str, str]],
    settled: Collection[int],
    theirs: Mapping[int, _Tensors],
) -> tuple[dict[int, int], set[int]]:
    """For each block of the base that is found, the index of the suspect's block; and the suspect's further ones that
    are similar to any block of the base. Those that are settled get no other."""
    from scipy.optimize import linear_sum_assignment

    if not theirs:
        return {}, set()
    open_rows = np.flatnonzero([index not in settled for index in ours])
    for describe, compare, least in (
        (_angles, _angle_similarity, MIN_SIMILARITY),
        (_invariants, _invariant_similarity, MIN_INVARIANCE),
    ):
        own = [
            {rest: describe(_load(original, name)) for rest, name in tensors.items() if _is_compared(original, name)}
            for tensors in ours.values()
        ]
        other = [
            {rest: describe(each.load(suspect)) for rest, each in tensors.items() if _is_small(each.shape)}
            for tensors in theirs.values()
        ]
        similarity = compare(own, other)
        rows, columns = linear_sum_assignment(-similarity[open_rows])
        pairs = {
            [*ours][open_rows[row]]: [*theirs][column]
            for row, column in zip(rows, columns, strict=True)
            if similarity[open_rows[row], column] >= least
        }
        similar = {[*theirs][column] for column in np.flatnonzero(similarity.max(0) >= least)}
        if 2 * len(similar) >= len(theirs) or 2 * len(pairs) >= len(open_rows):
            return pairs, similar - set(pairs.values())
    return {}, set()


def _is_compared(original: Checkpoint, name: str) -> bool:
    info = original.tensors[name]
    return info.dtype in READABLE and _is_small(info.shape)


def _is_small(shape: Shape) -> bool:
    return 0 < prod(shape) <= MAX_WEIGHTS


def _load(original: Checkpoint, name: str) -> np.ndarray:
    return TensorView.whole(original.tensors[name]).load(original)


class _Description(NamedTuple):
    """What a tensor keeps when its channels are permuted.

    Attributes:
        shape (`tuple[int, ...]`): its shape.
        sides (`tuple[np.ndarray, ...]`): what each side of it keeps.
    """

    shape: Shape
    sides: tuple[np.ndarray, ...]


_Descriptions = Mapping[str, _Description]  # of a block's tensors


def _angles(tensor: np.ndarray) -> _Description:
    """The cosines between sampled rows, and columns, which keep if the other axis is permuted."""
    matrix = _as_matrix(tensor)
    return _Description(tensor.shape, (_cosines(matrix), _cosines(matrix.T)) if tensor.ndim > 1 else ())


def _invariants(tensor: np.ndarray) -> _Description:
    """Norms of rows and columns, or values, sorted, which keep under any permutation; and moments of the spectrum,
    which keep under any rotation."""
    matrix = _as_matrix(tensor)
    if tensor.ndim < 2:
        return _Description(tensor.shape, (np.sort(matrix.reshape(-1)).astype(np.float64),))
    found = [np.sort(np.linalg.norm(matrix, axis=axis)) for axis in (0, 1)]
    if min(matrix.shape) <= MAX_GRAM:
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        size = float(np.linalg.norm(gram.astype(np.float64)))
        gram = gram / max(size, _TINY)  # third powers may overflow
        found.append(np.cbrt([size * np.trace(gram), size, size * np.cbrt(float(np.vdot(gram, gram @ gram)))]))
    return _Description(tensor.shape, (np.concatenate(found),))


def _as_matrix(tensor: np.ndarray) -> np.ndarray:
    usable = np.where(np.abs(tensor) < _MAX_ABS, tensor, np.float32(0))
    return usable.reshape(len(usable), -1) if tensor.ndim else usable.reshape(1, 1)


def _cosines(matrix: np.ndarray) -> np.ndarray:
    """The cosines between some rows."""
    rows = matrix[:: -(-len(matrix) // SAMPLED_CHANNELS)].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1)
    found: np.ndarray = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return found


def _angle_similarity(own: Sequence[_Descriptions], other: Sequence[_Descriptions]) -> np.ndarray:
    """How similar each pair of blocks is: the mean correlation of their weights' angles, on the better side of each
    tensor."""

    def mean(one: _Descriptions, two: _Descriptions) -> float:
        found = [
            max(_correlation(a, b) for a, b in zip(one[rest].sides, two[rest].sides, strict=True))
            for rest in one.keys() & two.keys()
            if one[rest].sides and one[rest].shape == two[rest].shape
        ]
        return float(np.mean(found)) if found else 0.0

    return np.array([[mean(one, two) for two in other] for one in own])


def _invariant_similarity(own: Sequence[_Descriptions], other: Sequence[_Descriptions]) -> np.ndarray:
    """How similar each pair of blocks is: the mean correlation, over their tensors, of how invariants differ from the
    mean of all blocks."""
    total, count = np.zeros((2, len(own), len(other)))
    for rest in sorted(set().union(*own)):
        for shape in {block[rest].shape for block in own if rest in block}:
            rows = [i for i, block in enumerate(own) if rest in block and block[rest].shape == shape]
            columns = [i for i, block in enumerate(other) if rest in block and block[rest].shape == shape]
            if len(rows) < 2 or len(columns) < 2:
                continue
            ours = np.stack([own[i][rest].sides[0] for i in rows])
            theirs = np.stack([other[i][rest].sides[0] for i in columns])
            ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
            scale = np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1))
            total[np.ix_(rows, columns)] += ours @ theirs.T / np.where(scale > 0, scale, 1)
            count[np.ix_(rows, columns)] += 1
    return total / np.maximum(count, 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or len(a) < 2:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
