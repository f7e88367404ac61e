"""Whether a suspect's weights line up with the base's, and if not, a view of them that does."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, Source, TensorInfo, resolve
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.names import normalise
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.models import BuiltModel, build_model, names_in_file
from hf_fingerprint.reading.alignment.activations import Activations, compare_activations, usable
from hf_fingerprint.reading.alignment.rearranging import Rearrangement, rearrange
from hf_fingerprint.reading.matching import sample_rows
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch


SAMPLE_ROWS = 16
ALIKE, FACTOR = 0.5, 1.25
ASKEW_SHARE = 0.02
STRANGER = 8  # so many tensors that nothing lines up are a model of its own
CLASSIFIER = 2  # its weight and bias may be new
KEPT = 4


class Alignment:
    """A suspect whose tensors stand in the base's order where that makes them more like the base's.

    Attributes:
        source ([`Source`]): the suspect's.
        tensors (`dict[str, TensorInfo]`): the suspect's tensors; those put in order are `float32` and have the shape
            of the carrier.
        moved (`dict[str, TensorInfo]`): the carriers that were put in order, by their names.
    """

    def __init__(self, base: Base, suspect: Checkpoint, found: dict[str, tuple[TensorInfo, Rearrangement]]):
        self.source, self.tensors = suspect.source, dict(suspect.tensors)
        self.moved: dict[str, TensorInfo] = {}
        self._suspect = suspect
        self._found: dict[str, tuple[TensorInfo, Rearrangement]] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._lock = Lock()
        for carrier, (info, rearrangement) in found.items():
            shape = base.tensors[carrier].shape
            seen = replace(info, dtype="F32", shape=shape, nbytes=4 * int(np.prod(shape)))
            self.tensors[info.name] = self.moved[carrier] = seen
            self._found[info.name] = (info, rearrangement)

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, into `out` if it is given."""
        if info.name not in self._found:
            return self._suspect.read(info, start, stop, out)
        values = self._whole(info.name)
        piece = values[start:stop]
        if out is None:
            return piece
        out[: len(piece)] = piece
        return out[: len(piece)]

    def _whole(self, name: str) -> np.ndarray:
        """A tensor's bytes; the last few are kept, since it is asked for piece by piece."""
        with self._lock:
            if name not in self._kept:
                info, rearrangement = self._found[name]
                values = np.ascontiguousarray(rearrangement(load(self._suspect, info)), np.float32)
                self._kept[name] = values.reshape(-1).view(np.uint8)
            kept = self._kept[name]
            for oldest in list(self._kept)[:-KEPT]:
                del self._kept[oldest]
            return kept


def align(
    base: Base,
    original: Checkpoint,
    suspect: Checkpoint,
    matches: dict[str, TensorInfo],
    advance: Callable[[int], None] | None = None,
) -> Alignment | None:
    """Puts a suspect's carriers in the base's order, if they are not.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        suspect ([`Checkpoint`]): the open suspect.
        matches (`dict[str, TensorInfo]`): the carriers' counterparts, as far as they are known.
        advance (callable, *optional*): told the weights compared.

    Returns:
        [`Alignment`], or `None` if the weights line up as they are, or nothing lines them up better.
    """
    askew = [c for c in base.carriers if c.name not in matches or not lines_up(original, suspect, c.name, matches)]
    amount = sum(original.tensors[c.name].rows * original.tensors[c.name].columns for c in askew)
    if amount <= ASKEW_SHARE * base.carrier_weights:
        return None
    counterparts = _counterparts(base, suspect, matches)
    seen = _seen(original, suspect, {c.name for c in askew} & counterparts.keys())
    found: dict[str, tuple[TensorInfo, Rearrangement]] = {}
    tried = 0
    for carrier in askew:
        info = counterparts.get(carrier.name)
        if info is None or (tried == STRANGER and not found):
            continue
        tried += 1
        ours, theirs = load(original, original.tensors[carrier.name]), load(suspect, info)
        if ours.shape[2] == theirs.shape[2] and all(np.less_equal(ours.shape, theirs.shape)):
            rearrangement = rearrange(ours, theirs, seen.get(carrier.name))
            before = theirs if ours.shape == theirs.shape else np.zeros_like(ours)
            if _better(ours, before, rearrangement(theirs)):
                found[carrier.name] = (info, rearrangement)
        if advance is not None:
            advance(ours.size)
    return Alignment(base, suspect, found) if found else None


def lines_up(original: Checkpoint, suspect: Checkpoint, name: str, matches: dict[str, TensorInfo]) -> bool:
    """Whether most of a sample of a tensor's rows look like the base's, in direction and in size."""
    own, info = original.tensors[name], matches[name]
    good = 0
    chosen = sample_rows(own.rows, SAMPLE_ROWS)
    for row in chosen:
        ours = to_float32(original.read(own, row * own.row_bytes, (row + 1) * own.row_bytes), own.dtype)
        theirs = to_float32(suspect.read(info, row * info.row_bytes, (row + 1) * info.row_bytes), info.dtype)
        ours, theirs = ours.astype(np.float64), np.where(np.isfinite(theirs), theirs, 0).astype(np.float64)
        kept = theirs != 0
        product, power = theirs @ ours, ours[kept] @ ours[kept]
        scale = np.sqrt(power * (theirs @ theirs))
        good += bool(scale == 0 or (product >= ALIKE * scale and power / FACTOR <= product <= power * FACTOR))
    return good >= len(chosen) - len(chosen) // 8


def load(checkpoint: Checkpoint, info: TensorInfo) -> np.ndarray:
    """A whole tensor as `float32`, `(rows, channels in, kernel)`; what is not finite, or absurd, is 0."""
    return usable(to_float32(checkpoint.read(info), info.dtype)).reshape(info.shape[0], info.shape[1], -1)


def _better(ours: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a rearranged tensor is that of the base, and was less so before."""
    kept = after != 0
    reference = np.where(kept, ours, 0)
    power = float(np.vdot(reference, reference))
    product = float(np.vdot(after, reference))
    alike = product >= ALIKE * np.sqrt(power * float(np.vdot(after, after)))
    return alike and float(np.square(after - reference).sum()) < 0.8 * float(np.square(before - ours).sum())


def _counterparts(base: Base, suspect: Checkpoint, matches: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The carriers' namesakes, whatever their shapes, and for others what similarity found."""
    named = {normalise(n): i for n, i in suspect.tensors.items() if i.dtype in READABLE and len(i.shape) > 1}
    found = {c.name: named[normalise(c.name)] for c in base.carriers if normalise(c.name) in named}
    return {**matches, **found}


def _seen(original: Checkpoint, suspect: Checkpoint, names: set[str]) -> dict[str, tuple[Activations, Activations]]:
    """What the modules of these carriers do, in the base and in the suspect, if both can be run."""
    ours = build_model(_whole(original.source))
    if ours is None:
        return {}
    in_file = names_in_file(ours.module, original)
    theirs = _as_base(ours, in_file, suspect)
    if theirs is None:
        return {}
    modules = {name.rpartition(".")[0]: in_file[name] for name in in_file if in_file[name] in names}
    found = compare_activations(ours, theirs, {module: module for module in modules})
    return {carrier: found[module] for module, carrier in modules.items() if module in found}


def _whole(source: Source) -> Source:
    """The source with its configuration, which a base from the Hub may have been opened without."""
    if source.revision is None or (source.folder / "config.json").is_file():
        return source
    try:
        return resolve(f"hf-hub:{source.name}@{source.revision}")
    except CheckpointError:
        return source


def _as_base(ours: BuiltModel, in_file: dict[str, str], suspect: Checkpoint) -> "torch.nn.Module | None":
    """The base's architecture with the suspect's weights, if they fit but for those of the classifier."""
    import torch

    named = {normalise(n): i for n, i in suspect.tensors.items() if i.dtype in READABLE}
    module = deepcopy(ours.module)
    missing = 0
    with torch.no_grad():
        for name, values in [*module.named_parameters(), *module.named_buffers()]:
            if not values.is_floating_point():
                continue
            info = named.get(normalise(in_file.get(name, name)))
            if info is None or tuple(values.shape) != info.shape:
                missing += 1
                continue
            content = usable(to_float32(suspect.read(info), info.dtype))
            values.copy_(torch.from_numpy(content.reshape(info.shape).copy()))
    return module if missing <= CLASSIFIER else None
