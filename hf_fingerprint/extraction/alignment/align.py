"""Aligns a suspect's weights with the base's, if they aren't aligned already."""

from collections.abc import Sequence
from dataclasses import replace
from math import lgamma, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction.alignment.aligned import AlignedWeights, Transform, load_rows
from hf_fingerprint.extraction.alignment.duplicate_units import first_duplicate_rows
from hf_fingerprint.extraction.alignment.layer_pairs import LayerPairs, add_namesakes
from hf_fingerprint.extraction.alignment.permutation_consensus import axis_orders, find_consensus
from hf_fingerprint.extraction.alignment.rotation_test import has_common_rotation
from hf_fingerprint.extraction.alignment.weight_matching import (
    ScaledPermutation,
    fit_scaled_permutation,
    match_weights,
    match_weights_given_orders,
)
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch

SAMPLE_ROWS = 8
MIN_ROW_COSINE, MAX_SCALE_RATIO = 0.97, 1.05
MIN_COSINE, MIN_SMALL_COSINE = 0.5, 0.8  # of tensors so small that any order can be fitted to them
IMPROVED_RATIOS = (
    0.8,
    0.5,
)  # of the residual before, and of another transform's: a basis has more freedom than an order
MIN_MISALIGNED_SHARE = 0.02
PROBED_TENSORS = 8  # if none of so many tensors of all sizes can be aligned, the models are unrelated
PASSES = 16
SHORT_ROW = 64  # weights in a row
MAX_CONSENSUS_RATIO = 1.5
MAX_EXACT_RESIDUAL = 0.01  # share of a tensor's energy: more than a mark leaves, less than a wrong order
BARELY_IMPROVED_RATIOS = 0.99, 0.99  # a rotation common to all tensors needs no further evidence


def align_suspect(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    matches: dict[str, TensorInfo],
    progress: Progress | None = None,
    always: bool = False,
    device: "str | torch.device | None" = None,
) -> AlignedWeights | None:
    """Aligns a suspect's carriers with the base's, where they aren't.

    Args:
        base, original, suspect, progress, device: see [`extract`].
        matches (`dict[str, TensorInfo]`): the known counterparts of carriers.
        always (`bool`, *optional*, defaults to `False`): also tries tensors that look aligned, but may be rotated.

    Returns:
        [`AlignedWeights`], or `None` if the weights are aligned already, or nothing improves them.
    """
    known = add_namesakes(base, suspect, matches)
    misaligned = {name for name in known if always or not is_aligned(original, suspect, name, matches)}
    aligned_matches = {name: info for name, info in matches.items() if name not in misaligned}
    rotated = set(aligned_matches) if has_common_rotation(base, original, suspect, aligned_matches) else set()
    sizes = {c.name: original.tensors[c.name].rows * original.tensors[c.name].columns for c in base.carriers}
    if sum(sizes[name] for name in misaligned | rotated) <= MIN_MISALIGNED_SHARE * base.carrier_weights:
        return None
    pairs = LayerPairs(base, original, suspect, matches, device)
    found: dict[str, _FoundTransform] = {}
    names = sorted(misaligned, key=lambda each: (sizes[each], each))
    count = counting(progress, "aligning", base.carrier_weights)
    first = names[:: 1 + len(names) // PROBED_TENSORS]
    for name in [*first, *(name for name in names if name not in first)]:
        if name in first or found:
            ours, theirs = pairs.load_pair(name)
            if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
                order = match_weights(ours, theirs, pairs.activations.get(name), pairs.duplicates(name))
                _keep_if_better(found, name, ours, theirs, order)
        count(sizes[name])
    unmarked = [] if pairs.activations else pairs.add_unmarked_layers()
    if not found:
        _try_known_orders(pairs, first if pairs.activations else [*names, *unmarked], found)
    if found:
        doubtful = [name for name in aligned_matches if not _all_rows_similar(*pairs.load_pair(name))]
        _try_known_orders(pairs, [*names, *doubtful, *unmarked], found)
    _apply_consensus(pairs, found)
    found = {name: each for name, each in found.items() if name in known}
    if found:
        aligned = _aligned_weights(base, suspect, pairs, found)
        if rotated or has_common_rotation(base, original, aligned, aligned_matches | aligned.aligned_tensors):
            rotated = {*aligned_matches, *found}
    unexplained = {name for name in names if name not in found or found[name].residual > MAX_EXACT_RESIDUAL}
    if found or rotated or _any_rotated(pairs, unexplained):
        enough = BARELY_IMPROVED_RATIOS if rotated else IMPROVED_RATIOS
        for name, transform in pairs.fit_rotations(unexplained | rotated).items():
            _keep_if_better(found, name, *pairs.load_pair(name), transform, enough)
    return _aligned_weights(base, suspect, pairs, found) if found else None


def _aligned_weights(base: Base, suspect: TensorReader, pairs: LayerPairs, found: "_Found") -> AlignedWeights:
    transforms = {name: (pairs.counterparts[name], each.transform) for name, each in found.items()}
    return AlignedWeights(base, suspect, transforms)


def _any_rotated(pairs: LayerPairs, names: set[str]) -> bool:
    """Whether undoing a rotation makes any of a few layers more similar to the base's, as it can't in other models."""
    found: dict[str, _FoundTransform] = {}
    for name, transform in pairs.fit_rotations(pairs.sample_layers(names)).items():
        _keep_if_better(found, name, *pairs.load_pair(name), transform)
    return bool(found)


def _try_known_orders(pairs: LayerPairs, names: Sequence[str], found: "_Found") -> None:
    """Tries the orders of aligned tensors on the others, since the channels that one layer writes another reads."""
    for _ in range(PASSES):
        before = len(found)
        for name in sorted(names):  # roughly in the order of the layers
            if name not in found:
                ours, theirs = pairs.load_pair(name)
                if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
                    orders = [_known_orders(found, sizes) for sizes in zip(ours.shape, theirs.shape[:2], strict=False)]
                    transform = match_weights_given_orders(ours, theirs, orders[0], orders[1], pairs.duplicates(name))
                    _keep_if_better(found, name, ours, theirs, transform)
        if len(found) == before:
            break


def _apply_consensus(pairs: LayerPairs, found: "_Found") -> None:
    """Gives tensors with nearly the same order one common order; see `permutation_consensus.py`."""
    permuted = {name: each.transform for name, each in found.items() if isinstance(each.transform, ScaledPermutation)}
    for name, transform in permuted.items():
        ours, theirs = pairs.load_pair(name)
        if len(theirs) > len(ours):
            permuted[name] = replace(transform, rows=first_duplicate_rows(theirs)[transform.rows])
    sides = (side for name, each in permuted.items() for side in axis_orders(name, each, *pairs.load_pair(name)))
    orders = find_consensus(sides)
    for name, transform in permuted.items():
        rows, columns = orders.get((name, 0), transform.rows), orders.get((name, 1), transform.columns)
        if rows is not transform.rows or columns is not transform.columns:
            ours, theirs = pairs.load_pair(name)
            other = fit_scaled_permutation(ours, theirs, rows, columns, transform.duplicates)
            residual = _residual_share(ours, other(theirs))
            if residual <= MAX_CONSENSUS_RATIO * found[name].residual:
                found[name] = found[name]._replace(transform=other, residual=residual)


def _known_orders(found: "_Found", counts: tuple[int, int]) -> list[np.ndarray]:
    """The distinct orders of `counts` (base, suspect) channels: the base's own, then those found in tensors with long
    rows, or exactly."""
    own = np.arange(counts[0])
    orders = {own.tobytes(): own}
    for each in found.values():
        if isinstance(each.transform, ScaledPermutation) and (
            each.row_weights > SHORT_ROW or each.residual <= MAX_EXACT_RESIDUAL
        ):
            for order, sizes in zip((each.transform.rows, each.transform.columns), each.counts, strict=True):
                if sizes == counts:
                    orders[order.tobytes()] = order
    return list(orders.values())


class _FoundTransform(NamedTuple):
    """The transform that aligns a tensor.

    Attributes:
        transform ([`Transform`]): from the suspect's tensor to the base's.
        residual (`float`): the energy of the remaining difference, as a share of the base's.
        counts (pair of `tuple[int, int]`): the numbers of rows of the base and the suspect, and of input channels.
        row_weights (`int`): the weights in a row of the base.
    """

    transform: Transform
    residual: float
    counts: tuple[tuple[int, int], tuple[int, int]]
    row_weights: int


_Found = dict[str, _FoundTransform]


def _keep_if_better(
    found: _Found,
    name: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    transform: Transform,
    ratios: tuple[float, float] = IMPROVED_RATIOS,
) -> None:
    """Keeps a transform if it makes a tensor similar to the base's, and clearly more so than before."""
    after = transform(theirs)
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    scale = np.sqrt(power * float(np.vdot(after, after)))
    if not power or float(np.vdot(after, reference)) < _least_cosine(*ours.shape) * scale:
        return
    residual = _residual_share(ours, after)
    if name in found:
        enough = ratios[1] * found[name].residual
    else:
        before = theirs if ours.shape == theirs.shape else np.zeros_like(ours)
        enough = ratios[0] * float(np.square(before - ours).sum()) / power
    if residual < enough:
        rows, columns = zip(ours.shape[:2], theirs.shape[:2], strict=True)
        found[name] = _FoundTransform(transform, residual, (rows, columns), ours[0].size)


def _least_cosine(rows: int, columns: int, kernel: int) -> float:
    """About what the best of all orders and factors of an unrelated tensor has: the largest of so many cosines."""
    orders = lgamma(rows + 1) + lgamma(columns + 1)
    chance = sqrt((2 * orders + rows + columns) / (rows * columns * kernel))
    return min(MIN_SMALL_COSINE, max(MIN_COSINE, chance))


def _residual_share(ours: np.ndarray, after: np.ndarray) -> float:
    """The energy of a tensor's difference, as a share of the base's; weights that are exactly 0 don't count."""
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    return float(np.square(after - reference).sum()) / power if power else np.inf


def is_aligned(original: Checkpoint, suspect: TensorReader, name: str, matches: dict[str, TensorInfo]) -> bool:
    """Whether most of a sample of a tensor's rows are similar to the base's, in direction and in size."""
    if name not in matches:
        return False
    chosen = sample_row_indices(original.tensors[name].rows, SAMPLE_ROWS)
    ours = load_rows(original, original.tensors[name], chosen)
    theirs = load_rows(suspect, matches[name], chosen)
    return int(_similar_rows(ours, theirs).sum()) >= len(chosen) - len(chosen) // SAMPLE_ROWS


def _all_rows_similar(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether all rows of a tensor are similar to the base's; a sample may miss the few that were permuted."""
    rows = (each.reshape(len(each), -1) for each in (ours, theirs))
    return ours.shape == theirs.shape and bool(_similar_rows(*rows).all())


def _similar_rows(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Whether each row is similar to the base's in direction and in size, or zero: `(rows,)` for `(rows, columns)`."""
    kept = theirs != 0
    products, powers = np.einsum("rc,rc->r", theirs, ours), np.einsum("rc,rc->r", kept, ours**2)
    scales = np.sqrt(powers * np.einsum("rc,rc->r", theirs, theirs))
    same_size = (powers <= MAX_SCALE_RATIO * products) & (products <= MAX_SCALE_RATIO * powers)
    return (scales == 0) | ((products >= MIN_ROW_COSINE * scales) & same_size)
