"""Presents a suspect's integer tensors as the codes they may hold, to be matched and scaled like weights.

Codes of 8 bits and more are the integers themselves. Two codes of 4 bits lie in a byte, or eight in 32 bits: side by
side or in halves, the low bits first or the high ones, with a sign or without. Each way is a tensor of its own; the
comparison with the base shows which one is right.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from math import prod
from threading import Lock
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import SIZES


INTEGERS = {"I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}
MAX_INTEGERS = 1 << 12
_PACKED = {"I8": 2, "U8": 2, "I32": 8, "U32": 8}  # codes of 4 bits in an element
_SEPARATOR = "\0"  # no tensor of a file has it in its name


class _Packing(NamedTuple):
    """How codes lie in integers.

    Attributes:
        codes (`int`): codes in an element, 1 if they are the elements.
        kind (`str`): `"row"` (adjacent along the last axis), `"column"` (along the first) or `"halves"`: the n-th
            codes of all elements make the n-th part of the first axis.
        high_first (`bool`): whether the first code is in the highest bits.
        signed (`bool`): whether a code is in two's complement.
    """

    codes: int
    kind: str = "row"
    high_first: bool = False
    signed: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes."""
        if self.kind == "row":
            return (*stored[:-1], stored[-1] * self.codes)
        return (stored[0] * self.codes, *stored[1:])

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """The codes of some integers, `float32`."""
        if self.codes == 1:
            return stored.astype(np.float32)
        shifts = np.arange(self.codes) * 4
        shifts = shifts[::-1] if self.high_first else shifts
        axis = {"row": stored.ndim, "column": 1, "halves": 0}[self.kind]
        codes = np.stack([(stored >> shift) & 15 for shift in shifts.tolist()], axis).astype(np.int8)
        if self.signed:
            codes = (codes ^ 8) - 8
        return codes.reshape(self.shape(stored.shape)).astype(np.float32)


class CodeTensors:
    """A suspect, and its integer tensors as codes.

    Args:
        suspect ([`TensorReader`]): the open suspect.
        sizes (collection of `int`): the numbers of weights of the missing carriers. Of more than 4,096 integer
            tensors, only those that hold as many codes are seen.

    Attributes:
        source, tensors: the suspect's.
        codes (`dict[str, TensorInfo]`): the codes, as `float32` tensors, by names that no other tensor has.
    """

    def __init__(self, suspect: TensorReader, sizes: Collection[int]):
        self.source, self.tensors = suspect.source, suspect.tensors
        self.codes: dict[str, TensorInfo] = {}
        self._suspect = suspect
        self._packings: dict[str, tuple[TensorInfo, _Packing]] = {}
        self._last: tuple[str, np.ndarray] | None = None
        self._lock = Lock()
        integers = [i for i in suspect.tensors.values() if i.dtype in INTEGERS and i.shape and i.nbytes]
        wanted = {*sizes} if len(integers) > MAX_INTEGERS else None
        for info in integers:
            count = info.nbytes // SIZES[info.dtype]
            for number, packing in enumerate(_packings(info)):
                if wanted is None or count * packing.codes in wanted:
                    name, shape = f"{info.name}{_SEPARATOR}{number}", packing.shape(info.shape)
                    self.codes[name] = replace(info, name=name, dtype="F32", shape=shape, nbytes=4 * prod(shape))
                    self._packings[name] = info, packing

    @property
    def used(self) -> tuple[str, ...]:
        """The suspect's tensors that are moved to other names."""
        found: tuple[str, ...] = getattr(self._suspect, "used", ())
        return found

    @property
    def left_out(self) -> Mapping[str, str]:
        """The suspect's unreadable tensors, with reasons."""
        found: Mapping[str, str] = getattr(self._suspect, "left_out", {})
        return found

    def held_in(self, name: str) -> set[str]:
        """The tensors of the suspect's files that hold a tensor or its codes."""
        inner: Callable[[str], set[str]] = getattr(self._suspect, "held_in", lambda each: {each})
        return inner(stored_name(name))

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, written to `out` if given."""
        if info.name not in self._packings:
            return self._suspect.read(info, start, stop, out)
        first, last = start // 4, (info.nbytes if stop is None else stop) // 4
        values = np.ascontiguousarray(self._values(info.name, first, last)).view(np.uint8)
        if out is None:
            return values
        out[: len(values)] = values
        return out[: len(values)]

    def _values(self, name: str, first: int, last: int) -> np.ndarray:
        stored, packing = self._packings[name]
        dtype = np.dtype(INTEGERS[stored.dtype])
        if packing.codes == 1 or packing.kind == "row":
            begin, end = first // packing.codes, -(-last // packing.codes)
            raw = self._suspect.read(stored, begin * dtype.itemsize, end * dtype.itemsize)
            values = packing.unpack(np.ascontiguousarray(raw).view(dtype))
            return values[first - begin * packing.codes :][: last - first]
        with self._lock:
            if self._last is None or self._last[0] != name:
                raw = np.ascontiguousarray(self._suspect.read(stored)).view(dtype)
                self._last = name, packing.unpack(raw.reshape(stored.shape)).reshape(-1)
            return self._last[1][first:last]


def stored_name(name: str) -> str:
    """The name of the tensor that holds these codes, or of a tensor that is no code."""
    return name.partition(_SEPARATOR)[0]


def _packings(info: TensorInfo) -> Iterator[_Packing]:
    yield _Packing(1)
    codes = _PACKED.get(info.dtype)
    if codes is None:
        return
    kinds = ("row", "halves") if codes == 2 else ("row", "column")
    for kind in kinds:
        for high_first in (False, True) if codes == 2 else (False,):
            for signed in (False, True):
                yield _Packing(codes, kind, high_first, signed)
