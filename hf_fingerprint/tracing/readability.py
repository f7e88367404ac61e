"""Lists the tensors of a suspect that may hold a copy and were not read, or not recognized.

If they could hide a copy, the outcome can't be "nobody"; `detection.py` decides whether they could.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE, SIZES
from hf_fingerprint.checkpoints.formats.contained import Container
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.checkpoints.tensor_names import is_optimizer_state, normalize_name
from hf_fingerprint.extraction import to_base_names
from hf_fingerprint.extraction.fitting import carriers_with_fitting_shape
from hf_fingerprint.extraction.match import match_names
from hf_fingerprint.extraction.narrower import pair_narrower
from hf_fingerprint.vault import Base


MAX_LISTED = 5
_EXACT = frozenset({"F64", "F32", "F16", "BF16", "C64", "I64", "U64", "I32", "U32", "BOOL"})  # of no weights, or exact


class HiddenTensor(NamedTuple):
    """A tensor of the suspect that may hold a carrier and was not read.

    Attributes:
        name (`str`): its name in the suspect, which may be hostile.
        reason (`str`): why it was not read, in a few words.
        carrier (`str`): the carrier it may hold.
    """

    name: str
    reason: str
    carrier: str


def stored_dtypes(suspect: TensorReader) -> tuple[str, ...]:
    """The types of a suspect's tensors as stored; none, if it is read by ranges."""
    container: Container | None = getattr(suspect, "container", None)
    return () if container is None else container.dtypes


def few_bits(suspect: TensorReader) -> tuple[str, ...]:
    """The types of a suspect's tensors in which a mark may be rounded away."""
    return tuple(dtype for dtype in stored_dtypes(suspect) if dtype not in _EXACT)


def fitting_carriers(base: Base, suspect: TensorReader, whole: bool = False, equal_only: bool = False) -> list[str]:
    """The carriers that may have a counterpart in a suspect, readable or not, according to its headers; with `whole`,
    those that it may hold all weights of, and with `equal_only`, whole or as one of equal parts of a tensor."""
    named = to_base_names(base, suspect)
    found = list(match_names(base, named))
    by_shape = carriers_with_fitting_shape(base, suspect, whole, equal_only)
    found = max(found, by_shape, [*pair_narrower(base, named)], key=len)
    missing = [carrier.name for carrier in base.carriers if carrier.name not in found]
    return found + [each.carrier for each in find_hidden(base, named, missing, unreadable_tensors(suspect))]


def fitting_weights(base: Base, suspect: Checkpoint) -> int:
    """How many of a base's marked weights the tensors of a suspect can hold at most, according to their shapes: as
    wholes, in equal parts of fused or stacked tensors, or without some of their channels. An optimizer's state is
    no model."""
    names = {name: name for name in suspect.tensors if not is_optimizer_state(name)}
    model = RenamedCheckpoint(suspect, names)
    whole = carriers_with_fitting_shape(base, model, whole=True, equal_only=True)
    narrower = pair_narrower(base, model).values()
    return max(sum(prod(base.tensors[n].shape) for n in whole), sum(prod(info.shape) for info in narrower))


def unreadable_tensors(suspect: TensorReader) -> Mapping[str, str]:
    """The tensors of a suspect that could not be opened, with reasons."""
    return getattr(suspect, "left_out", {})


def find_hidden(
    base: Base,
    suspect: TensorReader,
    missing: Collection[str],
    left_out: Mapping[str, str] | None = None,
    placed: Collection[str] = (),
    compared: bool = False,
) -> list[HiddenTensor]:
    """Finds tensors of a suspect that may hold the carriers without a counterpart.

    These have a carrier's size in another shape, or an unreadable type and its size or module, or can't be opened, or
    are too long for a bias: a model's parameters in one row, one after the other. A tensor without elements counts
    under a carrier's name only, whatever comes before it.

    Args:
        base, suspect: see [`extract`].
        missing (collection of `str`): the carriers without a counterpart.
        left_out (mapping of `str` to `str`, *optional*): tensors of the suspect that can't be opened, with reasons.
        placed (collection of `str`, *optional*): tensors of the suspect that hold other carriers.
        compared (`bool`, *optional*, defaults to `False`): whether all tensors of floats were compared with the
            carriers in any layout, so that only tensors of other types and unopened ones may hold one.
    """
    left = {name: base.tensors[name].shape for name in missing}
    by_module: dict[str, list[TensorInfo]] = defaultdict(list)
    by_size: dict[int, list[TensorInfo]] = defaultdict(list)
    for info in suspect.tensors.values():
        by_module[_module_name(info.name)].append(info)
        by_size[_count_weights(info)].append(info)
    left_out = left_out or {}
    unopened: dict[str, list[str]] = defaultdict(list)
    for name in left_out:
        unopened[_module_name(name)].append(name)
    taken = set(placed)
    found: list[HiddenTensor] = []

    def take(carrier: str, name: str, reason: str) -> None:
        found.append(HiddenTensor(name, reason, carrier))
        taken.add(name)
        del left[carrier]

    for by_name in (True, False):
        for carrier, shape in list(left.items()):
            module = _module_name(carrier)
            for info in by_module[module] if by_name else by_size[int(np.prod(shape))]:
                if info.name not in taken and (reason := _hidden_reason(shape, info, by_name, compared)):
                    take(carrier, info.name, reason)
                    break
            else:
                for name in unopened[module] if by_name else ():
                    if name not in taken:
                        take(carrier, name, left_out[name])
                        break
    least = _least_flat(base)
    for info in suspect.tensors.values():
        weights_left = _count_weights(info) if info.name not in taken and _is_flat(info) else 0
        if weights_left < least:
            continue
        for carrier in sorted(left, key=lambda carrier: -int(np.prod(left[carrier]))):
            if (weights := int(np.prod(left[carrier]))) <= weights_left:
                weights_left -= weights
                take(carrier, info.name, f"{info.dtype}, {_count_weights(info):,} weights in one row")
    largest = sorted(left, key=lambda carrier: -int(np.prod(left[carrier])))
    any_other = [
        name
        for name, reason in left_out.items()
        if name not in taken and (reason != EMPTY or name.endswith(tuple(largest)))
    ]
    for carrier, name in zip(largest, any_other, strict=False):
        take(carrier, name, left_out[name])
    return found


def find_narrower(base: Base, suspect: TensorReader, missing: Collection[str]) -> list[HiddenTensor]:
    """The tensors of a suspect that may hold some of these carriers without some of their channels."""
    return [
        HiddenTensor(info.name, f"{_dims(info.shape)} where {_dims(base.tensors[name].shape)} is expected", name)
        for name, info in pair_narrower(base, suspect).items()
        if name in missing and info.shape != base.tensors[name].shape
    ]


def format_hidden(hidden: Iterable[HiddenTensor]) -> str:
    """The tensors that were not read, as a part of a sentence: `a (I8), b (I8) and 3 more`."""
    found = list(dict.fromkeys(f"{_printable(each.name)} ({each.reason})" for each in hidden))
    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    return ", ".join(found[:MAX_LISTED]) + more


def _hidden_reason(shape: tuple[int, ...], info: TensorInfo, same_module: bool, compared: bool) -> str | None:
    """Why a tensor that may hold a carrier of this shape was not read, or `None` if it can't hold it."""
    if info.dtype not in READABLE:  # packed types have another size
        fits = _count_weights(info) == int(np.prod(shape)) or (same_module and len(info.shape) > 1)
        return info.dtype if fits else None
    if (
        not compared
        and info.shape != shape
        and _count_weights(info) == int(np.prod(shape))
        and _is_reshaped(info.shape, shape)
    ):
        return f"{info.dtype}, shape {_dims(info.shape)} where {_dims(shape)} is expected"
    return None


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _least_flat(base: Base) -> int:
    """The weights of a row that is too long for a bias: as many as the largest carrier has, and as any axis."""
    shapes = base.carrier_shapes.values()
    return max(max(map(prod, shapes)), 1 + max(map(max, shapes)))


def _is_flat(info: TensorInfo) -> bool:
    return info.dtype in READABLE and sum(size > 1 for size in info.shape) == 1


def _count_weights(info: TensorInfo) -> int:
    return info.nbytes // SIZES[info.dtype]


def _is_reshaped(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes of one size may be of one tensor, with axes permuted or joined."""
    if sorted(n for n in one if n != 1) == sorted(n for n in other if n != 1):
        return True
    pairs = (one, other), (other, one), (one[::-1], other[::-1]), (other[::-1], one[::-1])
    return any(_joins_axes(coarse, fine) for coarse, fine in pairs)


def _joins_axes(coarse: tuple[int, ...], fine: tuple[int, ...]) -> bool:
    """Whether joining adjacent axes of `fine` gives `coarse`."""
    return set(np.cumprod(coarse).tolist()) <= set(np.cumprod(fine).tolist())


def _module_name(name: str) -> str:
    """The module of a tensor, or the tensor's name if it has no module."""
    return normalize_name(name).rpartition(".")[0] or normalize_name(name)


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:80])
