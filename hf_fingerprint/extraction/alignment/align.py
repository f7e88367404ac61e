"""Whether a suspect's weights line up with the base's, and if not, a view of them that does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, Weights
from hf_fingerprint.extraction.alignment.aligned import Alignment, Change, load_rows
from hf_fingerprint.extraction.alignment.duplicate_units import first_alike
from hf_fingerprint.extraction.alignment.layer_pairs import Pairs
from hf_fingerprint.extraction.alignment.permutation_consensus import agree, sides_of
from hf_fingerprint.extraction.alignment.rotation_test import turned_alike
from hf_fingerprint.extraction.alignment.weight_matching import Rearrangement, in_order, rearrange, rearrange_by
from hf_fingerprint.extraction.match import sample_rows
from hf_fingerprint.vault import Base


SAMPLE_ROWS = 8
LINED_UP, FACTOR = 0.97, 1.05
ALIKE, BETTER = 0.5, 0.8
ASKEW_SHARE = 0.02
STRANGER = 8  # so many tensors of all sizes that nothing lines up are a model of its own
PASSES = 16
SHORT = 64  # weights in a row
AS_GOOD = 1.5
EXACT = 0.01  # share of a tensor's energy: more than a mark leaves, less than a wrong order does
AT_ALL = 0.99  # where all lean alike, the turn that they have in common needs no more evidence
MUCH_BETTER = 0.5  # a basis has more freedom than an order, so it must explain this much more


def align_suspect(
    base: Base,
    original: Checkpoint,
    suspect: Weights,
    matches: dict[str, TensorInfo],
    advance: Callable[[int], None] | None = None,
    always: bool = False,
) -> Alignment | None:
    """Puts a suspect's carriers in the base's order, if they are not.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        suspect ([`Weights`]): the open suspect.
        matches (`dict[str, TensorInfo]`): the carriers' counterparts, as far as they are known.
        advance (callable, *optional*): told the weights compared.
        always (`bool`, *optional*, defaults to `False`): whether tensors that line up but for a drift are put in order
            as well; small rotations look like one.

    Returns:
        [`Alignment`], or `None` if the weights line up as they are, or nothing lines them up better.
    """
    askew = {c.name for c in base.carriers if always or not lines_up(original, suspect, c.name, matches)}
    lined_up = {name: info for name, info in matches.items() if name not in askew}
    leaning = set(lined_up) if turned_alike(base, original, suspect, lined_up) else set()
    sizes = {c.name: original.tensors[c.name].rows * original.tensors[c.name].columns for c in base.carriers}
    if sum(sizes[name] for name in askew | leaning) <= ASKEW_SHARE * base.carrier_weights:
        return None
    pairs = Pairs(base, original, suspect, matches)
    found: dict[str, _Found] = {}
    names = sorted(askew & pairs.counterparts.keys(), key=lambda each: (sizes[each], each))
    first = names[:: 1 + len(names) // STRANGER]
    for name in [*first, *(name for name in names if name not in first)]:
        if name in first or found:
            ours, theirs = pairs.load(name)
            if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
                _keep_better(
                    found, name, ours, theirs, rearrange(ours, theirs, pairs.seen.get(name), pairs.merged(name))
                )
        if advance is not None:
            advance(sizes[name])
    if not found:
        _by_orders_of_others(pairs, first, found)
    if found:
        _by_orders_of_others(pairs, [*names, *(n for n in lined_up if not _every_row(*pairs.load(n)))], found)
    _agreed(pairs, found)
    if found:
        put_back = _alignment(base, suspect, pairs, found)
        if leaning or turned_alike(base, original, put_back, lined_up | put_back.moved):
            leaning = {*lined_up, *found}
    unexplained = {name for name in names if name not in found or found[name].left > EXACT}
    if found or leaning or _some_turned(pairs, unexplained):
        enough = (AT_ALL, AT_ALL) if leaning else (BETTER, MUCH_BETTER)
        for name, change in pairs.turned(unexplained | leaning).items():
            _keep_better(found, name, *pairs.load(name), change, *enough)
    if not found:
        return None
    return _alignment(base, suspect, pairs, found)


def _alignment(base: Base, suspect: Weights, pairs: Pairs, found: "dict[str, _Found]") -> Alignment:
    return Alignment(base, suspect, {name: (pairs.counterparts[name], each.change) for name, each in found.items()})


def _some_turned(pairs: Pairs, names: set[str]) -> bool:
    """Whether turning back makes any of a few layers more like the base's; a stranger's stay as unlike."""
    found: dict[str, _Found] = {}
    for name, change in pairs.turned(pairs.some_of(names)).items():
        _keep_better(found, name, *pairs.load(name), change)
    return bool(found)


def _by_orders_of_others(pairs: Pairs, names: Sequence[str], found: "dict[str, _Found]") -> None:
    """Tries those that are not found yet in the orders of others, since what one layer writes another reads."""
    for _ in range(PASSES):
        before = len(found)
        for name in sorted(names):  # about as the layers follow one another
            if name not in found:
                ours, theirs = pairs.load(name)
                if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
                    orders = [
                        [np.arange(count), *_orders(found, (count, len(np.moveaxis(theirs, axis, 0))))]
                        for axis, count in enumerate(ours.shape[:2])
                    ]
                    change = rearrange_by(ours, theirs, orders[0], orders[1], pairs.merged(name))
                    _keep_better(found, name, ours, theirs, change)
        if len(found) == before:
            break


def _agreed(pairs: Pairs, found: "dict[str, _Found]") -> None:
    """Gives tensors that stand in nearly the same order the same; see `agreeing.py`."""
    movable = {name: each.change for name, each in found.items() if isinstance(each.change, Rearrangement)}
    for name, change in movable.items():
        ours, theirs = pairs.load(name)
        if len(theirs) > len(ours):
            movable[name] = replace(change, rows=first_alike(theirs)[change.rows])
    orders = agree(side for name, change in movable.items() for side in sides_of(name, change, *pairs.load(name)))
    for name, change in movable.items():
        rows, columns = orders.get((name, 0), change.rows), orders.get((name, 1), change.columns)
        if rows is not change.rows or columns is not change.columns:
            ours, theirs = pairs.load(name)
            other = in_order(ours, theirs, rows, columns, change.merged)
            left = _left(ours, other(theirs))
            if left <= AS_GOOD * found[name].left:
                found[name] = found[name]._replace(change=other, left=left)


def _orders(found: "dict[str, _Found]", counts: tuple[int, int]) -> list[np.ndarray]:
    """The orders of rows and columns that tensors with long rows stand in, of so many channels of so many."""
    orders: dict[bytes, np.ndarray] = {}
    for each in found.values():
        if isinstance(each.change, Rearrangement) and each.counts[1][0] > SHORT:
            for order, sizes in zip((each.change.rows, each.change.columns), each.counts, strict=True):
                if sizes == counts:
                    orders[order.tobytes()] = order
    return list(orders.values())


class _Found(NamedTuple):
    """How a tensor is put back.

    Attributes:
        change ([`Change`]): from the suspect's to the base's.
        left (`float`): the share of the base's energy that it differs by then.
        counts (pair of `tuple[int, int]`): how many rows the base has and how many the suspect, and input channels.
    """

    change: Change
    left: float
    counts: tuple[tuple[int, int], tuple[int, int]]


def _keep_better(
    found: dict[str, _Found],
    name: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    change: Change,
    than_before: float = BETTER,
    than_found: float = MUCH_BETTER,
) -> None:
    """Keeps a change if it makes a tensor like the base's, and clearly more so than before."""
    after = change(theirs)
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    if not power or float(np.vdot(after, reference)) < ALIKE * np.sqrt(power * float(np.vdot(after, after))):
        return
    left = _left(ours, after)
    if name in found:
        enough = than_found * found[name].left
    else:
        before = theirs if ours.shape == theirs.shape else np.zeros_like(ours)
        enough = than_before * float(np.square(before - ours).sum()) / power
    if left < enough:
        found[name] = _Found(change, left, ((len(ours), len(theirs)), (ours.shape[1], theirs.shape[1])))


def _left(ours: np.ndarray, after: np.ndarray) -> float:
    """What a tensor differs by, as a share of the base's energy; weights that are exactly 0 don't count."""
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    return float(np.square(after - reference).sum()) / power if power else np.inf


def lines_up(original: Checkpoint, suspect: Weights, name: str, matches: dict[str, TensorInfo]) -> bool:
    """Whether most of a sample of a tensor's rows look like the base's, in direction and in size."""
    if name not in matches:
        return False
    chosen = sample_rows(original.tensors[name].rows, SAMPLE_ROWS)
    ours = load_rows(original, original.tensors[name], chosen)
    theirs = load_rows(suspect, matches[name], chosen)
    return int(_alike(ours, theirs).sum()) >= len(chosen) - len(chosen) // SAMPLE_ROWS


def _every_row(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether all rows of a tensor are like the base's; of a shuffled few a sample may see none."""
    return ours.shape == theirs.shape and bool(_alike(*(each.reshape(len(each), -1) for each in (ours, theirs))).all())


def _alike(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which rows are like the base's in direction and in size, or empty: `(rows,)` for `(rows, columns)`."""
    kept = theirs != 0
    products, powers = np.einsum("rc,rc->r", theirs, ours), np.einsum("rc,rc->r", kept, ours**2)
    scales = np.sqrt(powers * np.einsum("rc,rc->r", theirs, theirs))
    alike = (products >= LINED_UP * scales) & (powers <= FACTOR * products) & (products <= FACTOR * powers)
    return (scales == 0) | alike
