"""Writes one recipient's mark into one tensor, block by block, in the tensor's dtype."""

import numpy as np

from hf_fingerprint.carriers.projection import TensorProjection
from hf_fingerprint.carriers.rounding import round_stochastically
from hf_fingerprint.checkpoints.dtypes import from_float32, to_float32
from hf_fingerprint.keys import Stream, derive


class TensorMarker:
    """Rewrites the bytes of a carrier: `w + a * X^T b`, rounded to the tensor's dtype.

    Call it with the tensor's blocks in order; every block but the last holds a multiple of 8 rows.

    Args:
        secret (`bytes`): the model secret.
        copy_key (`bytes`): keys the rounding of half-precision weights.
        name (`str`): the tensor's name in the base.
        dtype (`str`): `"F32"`, `"F16"` or `"BF16"`.
        columns (`int`): weights in a row.
        amplitude (`np.ndarray` of shape `(rows,)`): the mark's size in each row.
        codeword (`np.ndarray` of shape `(V / 8,)`): packed bits of b.
        delta (`np.ndarray` of shape `(rows, columns)`, *optional*): a further change to add, `float32`.
    """

    def __init__(
        self,
        secret: bytes,
        copy_key: bytes,
        name: str,
        dtype: str,
        columns: int,
        amplitude: np.ndarray,
        codeword: np.ndarray,
        delta: np.ndarray | None = None,
    ):
        self._projection = TensorProjection(secret, name, 8 * len(codeword))
        self._rounding = Stream(derive(copy_key, "rounding", name))
        self._dtype, self._columns = dtype, columns
        self._amplitude, self._codeword, self._delta = amplitude, codeword, delta
        self._row = 0

    def __call__(self, raw: np.ndarray) -> None:
        """Marks the bytes of the next block (`uint8`) in place."""
        values = to_float32(raw, self._dtype).reshape(-1, self._columns)
        rows = slice(self._row, self._row + len(values))
        if self._delta is not None:
            values += self._delta[rows]
        self._projection.write(values, self._amplitude[rows], self._codeword)
        self._row = rows.stop
        if self._dtype != "F32":
            raw[:] = from_float32(round_stochastically(values, self._dtype, self._rounding), self._dtype)
