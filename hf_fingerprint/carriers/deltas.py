"""The deltas that distinguish a copy from its base, added to a tensor block by block and rounded to its dtype."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hf_fingerprint.carriers.projection import TensorProjection
from hf_fingerprint.carriers.rounding import round_stochastically
from hf_fingerprint.checkpoints.dtypes import SIZES, from_float32, to_float32
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.native import passes


class Delta(Protocol):
    """A change of one tensor's weights. It gets the tensor's blocks once, in order."""

    def add_to(self, values: np.ndarray, rows: slice) -> None:
        """Adds the delta to a block in place: `values`, `float32` of shape `(rows, columns)`, at these `rows`."""


class MarkDelta:
    """The mark of one recipient in one carrier, `a * X^T b`.

    Args:
        secret (`bytes`): the model secret.
        name (`str`): the carrier's name in the base.
        amplitude (`np.ndarray` of shape `(rows,)`): the size of the mark in each row.
        codeword (`np.ndarray` of shape `(V / 8,)`): the packed bits of b.
    """

    def __init__(self, secret: bytes, name: str, amplitude: np.ndarray, codeword: np.ndarray):
        self._projection = TensorProjection(secret, name, 8 * len(codeword))
        self._amplitude, self._codeword = amplitude, codeword

    def add_to(self, values: np.ndarray, rows: slice) -> None:
        """Adds the mark to a block in place; weights that are 0 stay 0."""
        self._projection.write(values, self._amplitude[rows], self._codeword)

    def add_to_half(self, raw: np.ndarray, rows: slice, random: np.ndarray) -> None:
        """Adds the mark to the bytes of a BF16 block in place, in one compiled pass, as [`TensorUpdate`] would."""
        assert passes is not None
        signs = self._projection.take_mark(len(raw) // 2, self._codeword)
        passes.add_mark_half(raw, np.ascontiguousarray(self._amplitude[rows], np.float32), signs, random)


class DenseDelta:
    """A delta given as a `float32` array of shape `(rows, columns)`, such as the head update for trigger labels."""

    def __init__(self, delta: np.ndarray):
        self._delta = delta

    def add_to(self, values: np.ndarray, rows: slice) -> None:
        """Adds the delta to a block in place."""
        values += self._delta[rows]


class TensorUpdate:
    """Adds deltas to the bytes of a tensor, with stochastic rounding for half precision.

    Call it with the tensor's blocks in order; every block but the last holds a multiple of 8 rows.

    Args:
        copy_key (`bytes`): keys the rounding of half-precision weights.
        name (`str`): the tensor's name in the base.
        dtype (`str`): `"F32"`, `"F16"` or `"BF16"`.
        columns (`int`): weights in a row.
        deltas (sequence of [`Delta`]): added in this order.
    """

    def __init__(self, copy_key: bytes, name: str, dtype: str, columns: int, deltas: Sequence[Delta]):
        self._rounding = Stream(derive(copy_key, "rounding", name))
        self._dtype, self._columns, self._deltas = dtype, columns, deltas
        self._row = 0

    def __call__(self, raw: np.ndarray) -> None:
        """Updates the bytes of the next block (`uint8`) in place."""
        rows = slice(self._row, self._row + len(raw) // (SIZES[self._dtype] * self._columns))
        mark = self._deltas[0] if len(self._deltas) == 1 else None
        if passes is not None and self._dtype == "BF16" and isinstance(mark, MarkDelta):
            mark.add_to_half(raw, rows, self._rounding.take(len(raw)))
            self._row = rows.stop
            return
        values = to_float32(raw, self._dtype).reshape(-1, self._columns)
        for delta in self._deltas:
            delta.add_to(values, rows)
        self._row = rows.stop
        if self._dtype != "F32":
            raw[:] = from_float32(round_stochastically(values, self._dtype, self._rounding), self._dtype)
