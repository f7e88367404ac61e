"""The keyed sparse projection on torch parameters: the reading, and its gradient.

The same X as in `projection.py`, sign for sign, for weights that live in a model under training: whole or some of its
rows, on any device. With the amplitude `a` of each row

    read:     y_i += sum over the weights k of position i of s_k a_k w_k
    adjoint:  g_k  = s_k a_k u_i

so that a step along the adjoint has the direction of the closed form, `w += a * X^T b`. The signs are derived anew at
each pass, block by block, or kept on the device as bits.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers.projection import SIGNS, keyed_offset
from hf_fingerprint.keys import Stream, derive


if TYPE_CHECKING:
    import torch


BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 23


class SignMap:
    """X restricted to one tensor, weighted by the mark's amplitude.

    Args:
        secret (`bytes`): the model secret.
        name (`str`): the tensor's name in the base.
        amplitude (`np.ndarray` of shape `(rows,)`): the mark's size in each output channel.
        columns (`int`): weights in a row.
        length (`int`): V, a multiple of 8.
    """

    def __init__(self, secret: bytes, name: str, amplitude: np.ndarray, columns: int, length: int):
        import torch

        self.rows, self.columns, self.length = len(amplitude), columns, length
        self._offset = keyed_offset(secret, name, length)
        self._key = derive(secret, "signs", name)
        self._amplitude = torch.from_numpy(np.array(amplitude, np.float32))
        self._table = torch.from_numpy(SIGNS)
        self._kept: torch.Tensor | None = None
        self._kept_from = 0

    def __repr__(self) -> str:
        return f"SignMap(rows={self.rows}, columns={self.columns}, length={self.length})"

    def to(self, device: "torch.device") -> None:
        """Moves what is not secret to a device."""
        self._amplitude, self._table = self._amplitude.to(device), self._table.to(device)

    def keep(self, first_row: int, rows: int) -> None:
        """Keeps the signs of some rows on the device, one bit for each weight, instead of deriving them at each
        pass."""
        import torch

        self._kept_from = first_row * self.columns // 8
        stop = -(-(first_row + rows) * self.columns // 8)
        signs = Stream(self._key, self._kept_from).take(stop - self._kept_from)
        self._kept = torch.from_numpy(signs).to(self._amplitude.device)

    def energy(self, out: "torch.Tensor") -> None:
        """Adds the squared amplitudes of all weights to `out`, position by position; shape `(V,)`."""
        sums = _Sums(out)
        for row, count in self._blocks(0, self.rows):
            squares = self._amplitude[row : row + count, None].square()
            sums.add(squares.expand(count, self.columns).reshape(-1), self._position(row))
        sums.finish()

    def read(self, weights: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `X (a * w)` to `out`.

        Args:
            weights (`torch.Tensor` of shape `(rows, columns)`): the tensor or some of its rows, of any float type.
            first_row (`int`): which row of the tensor comes first.
            out (`torch.Tensor` of shape `(V,)`): `float32` sums, changed in place.
        """
        sums, signs = _Sums(out), self._signs(first_row)
        for row, count in self._blocks(first_row, len(weights)):
            block = signs(count).view(count, self.columns)
            block *= weights[row - first_row : row - first_row + count]
            block *= self._amplitude[row : row + count, None]
            sums.add(block.view(-1), self._position(row))
        sums.finish()

    def adjoint(self, direction: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `a * X^T u` to `out`.

        Args:
            direction (`torch.Tensor` of shape `(V,)`): u, `float32`.
            first_row (`int`): which row of the tensor comes first.
            out (`torch.Tensor` of shape `(rows, columns)`): some rows of a gradient, changed in place.
        """
        longest = min(self._block_rows(), max(len(out), 1)) * self.columns
        around, signs = direction.repeat(1 + -(-longest // self.length)), self._signs(first_row)
        for row, count in self._blocks(first_row, len(out)):
            start = self._position(row)
            block = signs(count)
            block *= around[start : start + len(block)]
            block = block.view(count, self.columns)
            block *= self._amplitude[row : row + count, None]
            out[row - first_row : row - first_row + count] += block

    def _position(self, row: int) -> int:
        return (self._offset + row * self.columns) % self.length

    def _block_rows(self) -> int:
        """Rows in a block: a multiple of 8, so that every block starts on a byte of signs if the first does."""
        block = BLOCK if self._amplitude.device.type == "cpu" else DEVICE_BLOCK
        return max(8, block // self.columns // 8 * 8)

    def _blocks(self, first_row: int, rows: int) -> Iterator[tuple[int, int]]:
        step, stop = self._block_rows(), first_row + rows
        for row in range(first_row, stop, step):
            yield row, min(step, stop - row)

    def _signs(self, first_row: int) -> "_Signs":
        start = first_row * self.columns
        kept = None if self._kept is None else self._kept[start // 8 - self._kept_from :]
        return _Signs(self._key, kept, start, self._table, self.columns)


class _Signs:
    """The signs of consecutive rows, block by block, in memory used again by the next block."""

    def __init__(self, key: bytes, kept: "torch.Tensor | None", start: int, table: "torch.Tensor", columns: int):
        self._kept, self._table, self._columns = kept, table, columns
        self._stream = Stream(key, start // 8) if kept is None else None
        self._shift, self._done = start % 8, 0
        self._scratch = table[:0]
        self._last = np.empty(0, np.uint8)

    def __call__(self, rows: int) -> "torch.Tensor":
        import torch

        count = rows * self._columns
        first, stop = self._done // 8, -(-(self._shift + self._done + count) // 8)
        packed = self._bytes(first, stop)
        if len(self._scratch) < stop - first:
            self._scratch = torch.empty(stop - first, 8, device=self._table.device)
        signs = self._scratch[: stop - first]
        torch.index_select(self._table, 0, packed.int(), out=signs)
        self._done += count
        return signs.view(-1)[self._shift : self._shift + count]

    def _bytes(self, first: int, stop: int) -> "torch.Tensor":
        """Bytes `first` to `stop`; blocks that start within a byte take it a second time."""
        import torch

        if self._stream is None:
            assert self._kept is not None
            return self._kept[first:stop]
        overlap = self._last[-1:] if self._shift and first else self._last[:0]
        fresh = self._stream.take(stop - first - len(overlap))
        self._last = np.concatenate([overlap, fresh])
        return torch.from_numpy(self._last).to(self._table.device)


class _Sums:
    """Adds consecutive values to positions, around and around, in one addition for each block."""

    def __init__(self, out: "torch.Tensor"):
        self._out, self._wide = out, out[:0]

    def add(self, values: "torch.Tensor", start: int) -> None:
        import torch

        needed = start + len(values)
        if len(self._wide) < needed:
            wide = torch.zeros(-(-needed // len(self._out)) * len(self._out), device=self._out.device)
            wide[: len(self._wide)] = self._wide
            self._wide = wide
        self._wide[start:needed] += values

    def finish(self) -> None:
        self._out += self._wide.view(-1, len(self._out)).sum(0)
