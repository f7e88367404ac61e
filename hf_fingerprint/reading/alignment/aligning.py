"""Whether a suspect's weights line up with the base's, and if not, a view of them that does."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, Source, TensorInfo, Weights, resolve
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.names import normalise
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.models import build_model, names_in_file
from hf_fingerprint.reading.alignment.activations import Activations, compare_activations
from hf_fingerprint.reading.alignment.agreeing import agree, sides_of
from hf_fingerprint.reading.alignment.aligned import Alignment, Change, load
from hf_fingerprint.reading.alignment.attentions import Attention, find_attentions
from hf_fingerprint.reading.alignment.rearranging import Rearrangement, in_order, rearrange, rearrange_by
from hf_fingerprint.reading.alignment.running import as_base
from hf_fingerprint.reading.alignment.turning import Turned, turn_back
from hf_fingerprint.reading.matching import sample_rows
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
MUCH_BETTER = 0.5  # a basis has more freedom than an order, so it must explain this much more


def align(
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
    sizes = {c.name: original.tensors[c.name].rows * original.tensors[c.name].columns for c in base.carriers}
    if sum(sizes[name] for name in askew) <= ASKEW_SHARE * base.carrier_weights:
        return None
    pairs = _Pairs(base, original, suspect, matches)
    found: dict[str, _Found] = {}
    names = sorted(askew & pairs.counterparts.keys(), key=lambda each: (sizes[each], each))
    first = names[:: 1 + len(names) // STRANGER]
    for name in [*first, *(name for name in names if name not in first)]:
        if name in first or found:
            ours, theirs = pairs.load(name)
            if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
                _keep_better(found, name, ours, theirs, rearrange(ours, theirs, pairs.seen.get(name)))
        if advance is not None:
            advance(sizes[name])
    _by_orders_of_others(pairs, names if found else first, found)
    _agreed(pairs, found)
    unexplained = {name for name in names if name not in found or found[name].left > EXACT}
    for name, change in pairs.turned(unexplained).items():
        _keep_better(found, name, *pairs.load(name), change)
    if not found:
        return None
    return Alignment(base, suspect, {name: (pairs.counterparts[name], each.change) for name, each in found.items()})


def _by_orders_of_others(pairs: "_Pairs", names: Sequence[str], found: "dict[str, _Found]") -> None:
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
                    _keep_better(found, name, ours, theirs, rearrange_by(ours, theirs, *orders))
        if len(found) == before:
            break


def _agreed(pairs: "_Pairs", found: "dict[str, _Found]") -> None:
    """Gives tensors that stand in nearly the same order the same; see `agreeing.py`."""
    movable = {
        n: f.change for n, f in found.items() if isinstance(f.change, Rearrangement) and f.change.merged is None
    }
    orders = agree(side for name, change in movable.items() for side in sides_of(name, change, *pairs.load(name)))
    for name, change in movable.items():
        rows, columns = orders.get((name, 0), change.rows), orders.get((name, 1), change.columns)
        if rows is not change.rows or columns is not change.columns:
            ours, theirs = pairs.load(name)
            other = in_order(ours, theirs, rows, columns)
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


def _keep_better(found: dict[str, _Found], name: str, ours: np.ndarray, theirs: np.ndarray, change: Change) -> None:
    """Keeps a change if it makes a tensor like the base's, and clearly more so than before."""
    after = change(theirs)
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    if not power or float(np.vdot(after, reference)) < ALIKE * np.sqrt(power * float(np.vdot(after, after))):
        return
    left = _left(ours, after)
    if name in found:
        enough = MUCH_BETTER * found[name].left
    else:
        before = theirs if ours.shape == theirs.shape else np.zeros_like(ours)
        enough = BETTER * float(np.square(before - ours).sum()) / power
    if left < enough:
        found[name] = _Found(change, left, ((len(ours), len(theirs)), (ours.shape[1], theirs.shape[1])))


def _left(ours: np.ndarray, after: np.ndarray) -> float:
    """What a tensor differs by, as a share of the base's energy; weights that are exactly 0 don't count."""
    reference = np.where(after != 0, ours, 0)
    power = float(np.vdot(reference, reference))
    return float(np.square(after - reference).sum()) / power if power else np.inf


class _Pairs:
    """The carriers and their counterparts, and what they do.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        suspect ([`Weights`]): the open suspect.
        matches (`dict[str, TensorInfo]`): the counterparts that similarity found.
    """

    def __init__(self, base: Base, original: Checkpoint, suspect: Weights, matches: dict[str, TensorInfo]):
        self._original, self._suspect = original, suspect
        named = {normalise(n): i for n, i in suspect.tensors.items() if i.dtype in READABLE and len(i.shape) > 1}
        namesakes = {c.name: named[normalise(c.name)] for c in base.carriers if normalise(c.name) in named}
        self.counterparts = {**matches, **namesakes}
        self.seen: dict[str, tuple[Activations, Activations]] = {}
        self._attentions: list[Attention] = []
        self._run()

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The base's tensor and the suspect's, each `(rows, channels in, kernel)`."""
        ours = load(self._original, self._original.tensors[name])
        return ours, load(self._suspect, self.counterparts[name])

    def turned(self, names: set[str]) -> dict[str, Turned]:
        """How these are put back if the stream or heads were turned; whole attentions are looked at together."""
        attentions = [each for each in self._attentions if names & {*each.inputs, each.output}]
        together = names.union(*({*each.inputs, each.output} for each in attentions))
        matrices = [name for name in sorted(together & self.counterparts.keys()) if self._is_matrix(name)]
        return {n: t for n, t in turn_back(matrices, attentions, self.seen, self.load).items() if n in names}

    def _is_matrix(self, name: str) -> bool:
        return len(self._original.tensors[name].shape) == 2 == len(self.counterparts[name].shape) and (
            self._original.tensors[name].shape == self.counterparts[name].shape
        )

    def _run(self) -> None:
        """Runs the base and the suspect on the same inputs, if both can be run."""
        ours = build_model(_whole(self._original.source))
        if ours is None:
            return
        in_file = names_in_file(ours.module, self._original)
        theirs = as_base(ours, in_file, self._suspect)
        if theirs is None:
            return
        carriers = {name.rpartition(".")[0]: in_file[name] for name in in_file if in_file[name] in self.counterparts}
        found = compare_activations(ours, theirs, {module: module for module in carriers})
        self.seen = {carrier: found[module] for module, carrier in carriers.items() if module in found}
        self._attentions = [
            Attention(tuple(carriers[name] for name in each.inputs), carriers[each.output], each.heads)
            for each in find_attentions(ours.module)
            if carriers.keys() >= {*each.inputs, each.output}
        ]


def lines_up(original: Checkpoint, suspect: Weights, name: str, matches: dict[str, TensorInfo]) -> bool:
    """Whether most of a sample of a tensor's rows look like the base's, in direction and in size."""
    if name not in matches:
        return False
    chosen = sample_rows(original.tensors[name].rows, SAMPLE_ROWS)
    ours, theirs = (
        np.stack([_row(weights, info, row) for row in chosen])
        for weights, info in ((original, original.tensors[name]), (suspect, matches[name]))
    )
    kept = theirs != 0
    products, powers = np.einsum("rc,rc->r", theirs, ours), np.einsum("rc,rc->r", kept, ours**2)
    scales = np.sqrt(powers * np.einsum("rc,rc->r", theirs, theirs))
    alike = (products >= LINED_UP * scales) & (powers <= FACTOR * products) & (products <= FACTOR * powers)
    return int(((scales == 0) | alike).sum()) >= len(chosen) - len(chosen) // SAMPLE_ROWS


def _row(weights: Weights, info: TensorInfo, row: int) -> np.ndarray:
    """A row as `float64`; what is not finite is 0."""
    values = to_float32(weights.read(info, row * info.row_bytes, (row + 1) * info.row_bytes), info.dtype)
    return np.where(np.isfinite(values), values, 0).astype(np.float64)


def _whole(source: Source) -> Source:
    """The source with its configuration, which a base from the Hub may have been opened without."""
    if source.revision is None or (source.folder / "config.json").is_file():
        return source
    try:
        return resolve(f"hf-hub:{source.name}@{source.revision}")
    except CheckpointError:
        return source
