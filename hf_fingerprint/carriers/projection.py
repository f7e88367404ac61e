"""The keyed sparse projection X and its adjoint, one streaming pass each.

Every column of X has one non-zero, a sign (M. Charikar, K. Chen, M. Farach-Colton, "Finding frequent items in data
streams", 2002: a count sketch). Weight `k` of a tensor belongs to position `(offset + k) mod V`. The signs are the
bits of the tensor's key stream, and the offset is keyed too. Rows of X have disjoint support, so they are orthogonal,
and the extracted signal is additive over tensors, shards and ranks:

    read:   y_i = sum over the weights k of position i of s_k d_k        (y = X d)
    write:  w_k += a_k s_k b_i                                           (w += a * X^T b)
"""

import numpy as np

from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.native import passes


SIGNS = (1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)).copy()


class TensorProjection:
    """X restricted to one tensor, applied block by block in the order of its weights.

    Every block but the last must hold a multiple of 8 weights. Make a new one for each pass.

    Args:
        secret (`bytes`): the model secret.
        name (`str`): the tensor's name in the base.
        length (`int`): V, a multiple of 8.
        start (`int`, *optional*, defaults to 0): the weights before the first block, a multiple of 8.
    """

    def __init__(self, secret: bytes, name: str, length: int, start: int = 0):
        self.length = length
        self.offset = (keyed_offset(secret, name, length) + start) % length
        self._signs = Stream(derive(secret, "signs", name), start // 8)
        self._done = 0
        self._scratch, self._flags = np.empty((0, 8), np.float32), np.empty(0, bool)

    def write(self, values: np.ndarray, amplitude: np.ndarray, codeword: np.ndarray) -> None:
        """Adds the mark to the next block in place; weights that are exactly 0 stay 0.

        Args:
            values (`np.ndarray` of shape `(rows, columns)`): `float32`.
            amplitude (`np.ndarray` of shape `(rows,)`): `float32`, the mark's size in each output channel.
            codeword (`np.ndarray` of shape `(V / 8,)`): the packed bits of b, see [`Codebook.packed`].
        """
        packed = self.take_mark(values.size, codeword)
        if passes is not None and _is_native(values):
            passes.add_mark(values, np.ascontiguousarray(amplitude, np.float32), packed)
            return
        mark = self._signs_of(packed, values.size).reshape(values.shape)
        mark *= amplitude[:, None]
        zero = np.equal(values, 0, out=self._flags[: values.size].reshape(values.shape))
        if zero.any():
            mark[zero] = 0
        values += mark

    def read(self, values: np.ndarray, out: np.ndarray) -> None:
        """Adds X times the next block to `out`.

        Args:
            values (`np.ndarray` of shape `(rows, columns)`): `float32`.
            out (`np.ndarray` of shape `(V,)`): sums, changed in place.
        """
        packed, start = self.take_signs(values.size)
        if passes is not None and _is_native(values) and _is_native(out):
            passes.fold_weights(values, packed, start, out)
            return
        signed = self._signs_of(packed, values.size)
        signed *= values.reshape(-1)
        fold(signed, start, out)

    def take_signs(self, count: int) -> tuple[np.ndarray, int]:
        """The signs of the next block as bits, 1 for -1, the highest of a byte first, and its first position.

        A block is taken once, by this or by [`read`].
        """
        start = (self.offset + self._done) % self.length
        return self._take(count), start

    def take_mark(self, count: int, codeword: np.ndarray) -> np.ndarray:
        """The signs of the mark in the next block as bits; see [`take_signs`] and [`write`]."""
        return self._take(count, pattern=~codeword)

    def _signs_of(self, packed: np.ndarray, count: int) -> np.ndarray:
        """Bits to signs, `float32` of shape `(count,)`: 0 is +1, 1 is -1, the highest bit of a byte first.

        The next call overwrites the result, since fresh memory pages for every block would take longer than the sums.
        """
        if len(self._scratch) < len(packed):
            self._scratch, self._flags = np.empty((len(packed), 8), np.float32), np.empty(8 * len(packed), bool)
        return np.take(SIGNS, packed, axis=0, out=self._scratch[: len(packed)], mode="clip").reshape(-1)[:count]

    def _take(self, count: int, pattern: np.ndarray | None = None) -> np.ndarray:
        packed = self._signs.take(-(-count // 8))
        if pattern is not None:
            start = (self.offset + self._done) % self.length // 8
            packed ^= np.tile(pattern, 2 + len(packed) // len(pattern))[start : start + len(packed)]
        self._done += count
        return packed


def _is_native(array: np.ndarray) -> bool:
    return array.dtype == np.float32 and array.flags.c_contiguous


def keyed_offset(secret: bytes, name: str, length: int) -> int:
    """The position of a tensor's first weight: a multiple of 8 below V."""
    keyed = Stream(derive(secret, "offset", name)).take(8).view("<u8")[0]
    return int(keyed % np.uint64(length // 8)) * 8


def fold(values: np.ndarray, start: int, out: np.ndarray) -> None:
    """Adds consecutive values to positions `start, start + 1, ...`, modulo their number.

    Args:
        values (`np.ndarray` of shape `(n,)`): any number of values.
        start (`int`): the position of the first value.
        out (`np.ndarray` of shape `(V,)`): sums, changed in place.
    """
    length = len(out)
    head = min(len(values), length - start)
    out[start : start + head] += values[:head]
    rest = values[head:]
    whole = len(rest) // length * length
    for chunk in rest[:whole].reshape(-1, length):
        out += chunk
    out[: len(rest) - whole] += rest[whole:]


def position_counts(weights: int, offset: int, length: int) -> np.ndarray:
    """How many of a tensor's weights belong to each position: `float64` of shape `(V,)`."""
    counts = np.full(length, float(weights // length))
    counts[(offset + np.arange(weights % length)) % length] += 1
    return counts
