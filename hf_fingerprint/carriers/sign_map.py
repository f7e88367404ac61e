"""The keyed sparse projection on torch parameters: the extracted signal and its gradient.

X is that of `projection.py`, sign for sign, for parameters of a model in training: whole tensors or some of their
rows, on any device. With the amplitude `a` of each row

    read:     y_i += sum over the weights k of position i of s_k a_k w_k
    adjoint:  g_k  = s_k a_k u_i

so a step along the adjoint has the direction of the closed form, `w += a * X^T b`. The signs are derived anew in each
pass, block by block, or kept on the device as bits.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers.projection import SIGNS, keyed_offset
from hf_fingerprint.keys import Stream, derive


if TYPE_CHECKING:
    import torch


BLOCK, DEVICE_BLOCK = 1 << 19, 1 << 23


class Scratch:
    """Memory that the maps of one model share, since fresh pages for every tensor would take longer than the sums.

    Not safe for two threads at once.
    """

    def __init__(self) -> None:
        self._signs: torch.Tensor | None = None
        self._index: torch.Tensor | None = None

    def signs(self, packed: "torch.Tensor", table: "torch.Tensor") -> "torch.Tensor":
        """Bits to signs: `float32` of shape `(8 * len(packed),)`, valid until the next call."""
        import torch

        if self._signs is None or self._index is None or self._signs.device != table.device:
            self._signs, self._index = table[:0], torch.empty(0, dtype=torch.int32, device=table.device)
        if len(self._signs) < len(packed):
            self._signs = torch.empty(len(packed), 8, device=table.device)
            self._index = torch.empty(len(packed), dtype=torch.int32, device=table.device)
        index, signs = self._index[: len(packed)], self._signs[: len(packed)]
        torch.index_select(table, 0, index.copy_(packed), out=signs)
        return signs.view(-1)


class SignMap:
    """X restricted to one tensor, weighted by the mark's amplitude.

    Args:
        secret (`bytes`): the model secret.
        name (`str`): the tensor's name in the base.
        amplitude (`np.ndarray` of shape `(rows,)`): the mark's size in each output channel.
        columns (`int`): weights in a row.
        length (`int`): V, a multiple of 8.
        scratch ([`Scratch`], *optional*): memory shared by the maps of one model.
    """

    def __init__(
        self,
        secret: bytes,
        name: str,
        amplitude: np.ndarray,
        columns: int,
        length: int,
        scratch: Scratch | None = None,
    ):
        import torch

        self.rows, self.columns, self.length = len(amplitude), columns, length
        self._offset = keyed_offset(secret, name, length)
        self._key = derive(secret, "signs", name)
        self._amplitude = torch.from_numpy(np.array(amplitude, np.float32))
        self._table = torch.from_numpy(SIGNS)
        self._scratch = scratch or Scratch()
        self._kept: torch.Tensor | None = None
        self._kept_from = 0

    def __repr__(self) -> str:
        return f"SignMap(rows={self.rows}, columns={self.columns}, length={self.length})"

    def to(self, device: "torch.device") -> None:
        """Moves amplitudes and tables, but no secrets, to a device."""
        self._amplitude, self._table = self._amplitude.to(device), self._table.to(device)

    def keep(self, first_row: int, rows: int) -> None:
        """Keeps the signs of some rows on the device, one bit per weight, instead of deriving them in each pass."""
        import torch

        self._kept_from = first_row * self.columns // 8
        stop = -(-(first_row + rows) * self.columns // 8)
        signs = Stream(self._key, self._kept_from).take(stop - self._kept_from)
        self._kept = torch.from_numpy(signs).to(self._amplitude.device)

    def energy(self, out: "torch.Tensor") -> None:
        """Adds the squared amplitudes of the weights of each position to `out`, shape `(V,)`."""
        for row, count in self._blocks(0, self.rows):
            squares = self._amplitude[row : row + count, None].square()
            _fold(squares.expand(count, self.columns).reshape(-1), self._position(row), out)

    def read(self, weights: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `X (a * w)` to `out`.

        Args:
            weights (`torch.Tensor` of shape `(rows, columns)`): the tensor or some of its rows, of any float type.
            first_row (`int`): the index of the first row in the tensor.
            out (`torch.Tensor` of shape `(V,)`): `float32` sums, changed in place.
        """
        signs = self._signs(first_row)
        for row, count in self._blocks(first_row, len(weights)):
            block = signs(count).view(count, self.columns)
            block *= weights[row - first_row : row - first_row + count]
            block *= self._amplitude[row : row + count, None]
            _fold(block.view(-1), self._position(row), out)

    def adjoint(self, direction: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `a * X^T u` to `out`.

        Args:
            direction (`torch.Tensor` of shape `(V,)`): u, `float32`.
            first_row (`int`): the index of the first row in the tensor.
            out (`torch.Tensor` of shape `(rows, columns)`): some rows of a gradient, changed in place.
        """
        signs = self._signs(first_row)
        for row, count in self._blocks(first_row, len(out)):
            block = signs(count)
            for part, positions in _wrapped_slices(len(block), self._position(row), self.length):
                block[part].view(-1, positions.stop - positions.start).mul_(direction[positions])
            block = block.view(count, self.columns)
            block *= self._amplitude[row : row + count, None]
            out[row - first_row : row - first_row + count] += block

    def _position(self, row: int) -> int:
        return (self._offset + row * self.columns) % self.length

    def _blocks(self, first_row: int, rows: int) -> Iterator[tuple[int, int]]:
        """Blocks of a multiple of 8 rows, so that each starts on a byte of signs if the first does."""
        block = BLOCK if self._amplitude.device.type == "cpu" else DEVICE_BLOCK
        step, stop = max(8, block // self.columns // 8 * 8), first_row + rows
        for row in range(first_row, stop, step):
            yield row, min(step, stop - row)

    def _signs(self, first_row: int) -> "_Signs":
        start = first_row * self.columns
        kept = None if self._kept is None else self._kept[start // 8 - self._kept_from :]
        return _Signs(self._key, kept, start, self._table, self.columns, self._scratch)


class _Signs:
    """The signs of consecutive rows, block by block; each block overwrites the last."""

    def __init__(
        self,
        key: bytes,
        kept: "torch.Tensor | None",
        start: int,
        table: "torch.Tensor",
        columns: int,
        scratch: Scratch,
    ):
        self._kept, self._table, self._columns, self._scratch = kept, table, columns, scratch
        self._stream = Stream(key, start // 8) if kept is None else None
        self._shift, self._done = start % 8, 0
        self._last = np.empty(0, np.uint8)

    def __call__(self, rows: int) -> "torch.Tensor":
        count = rows * self._columns
        first, stop = self._done // 8, -(-(self._shift + self._done + count) // 8)
        self._done += count
        return self._scratch.signs(self._bytes(first, stop), self._table)[self._shift : self._shift + count]

    def _bytes(self, first: int, stop: int) -> "torch.Tensor":
        """Bytes `first` to `stop`; a block that starts within a byte includes that byte again."""
        import torch

        if self._stream is None:
            assert self._kept is not None
            return self._kept[first:stop]
        overlap = self._last[-1:] if self._shift and first else self._last[:0]
        fresh = self._stream.take(stop - first - len(overlap))
        self._last = np.concatenate([overlap, fresh]) if len(overlap) else fresh
        return torch.from_numpy(self._last).to(self._table.device)


def _wrapped_slices(count: int, start: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Splits values at positions `start, start + 1, ...` modulo `length` where they wrap.

    Yields:
        `(values, positions)`: slices for the rest of the first round, all whole rounds together, and the last one.
    """
    head = min(count, length - start)
    whole = (count - head) // length * length
    for first, stop, position in ((0, head, start), (head, head + whole, 0), (head + whole, count, 0)):
        if stop > first:
            yield slice(first, stop), slice(position, position + min(stop - first, length))


def _fold(values: "torch.Tensor", start: int, out: "torch.Tensor") -> None:
    """Adds consecutive values to positions `start, start + 1, ...`, modulo their number."""
    for part, positions in _wrapped_slices(len(values), start, len(out)):
        rounds = values[part].view(-1, positions.stop - positions.start)
        out[positions] += rounds[0] if len(rounds) == 1 else rounds.sum(0)
