"""Codes of few bits that are packed into larger integers, row by row.

Each function returns the [`Rows`] of the codes; sizes are checked first.
"""

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import Rows, packed_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, element_bytes


def bit_rows(packed: LazyTensor, bits: int, columns: int, signed: bool = False, high_first: bool = False) -> Rows:
    """Codes without gaps in the bits of each row of a tensor, whose integers are little-endian.

    Args:
        packed ([`LazyTensor`]): of shape `(rows, ...)`.
        bits (`int`): bits of a code, 1 to 8.
        columns (`int`): codes of a row.
        signed (`bool`, *optional*, defaults to `False`): whether codes are in two's complement.
        high_first (`bool`, *optional*, defaults to `False`): whether the first code of a byte is in its highest bits.
    """
    row_bytes = packed.nbytes // max(packed.shape[0], 1) if packed.shape else 0
    if not 1 <= bits <= 8 or columns < 1 or row_bytes * 8 < columns * bits:
        raise InvalidFileError("too few bytes for its shape")
    used = -(-columns * bits // 8)

    def rows(start: int, stop: int) -> np.ndarray:
        raw = packed.read(start * row_bytes, stop * row_bytes).reshape(stop - start, row_bytes)[:, :used]
        if used * 8 % bits:  # each row ends within a code
            raw = np.pad(raw, ((0, 0), (0, -used % bits)))
        wide = raw.shape[1] * 8 // bits
        unpacked = packed_rows(raw.reshape(-1), bits, (stop - start, wide), signed, high_first)
        return unpacked(0, stop - start)[:, :columns]

    return rows


def column_rows(packed: LazyTensor, bits: int, count: int) -> Rows:
    """Codes without gaps in the bits of each column of a tensor of 32-bit integers: 32 rows in `bits` integers.

    Args:
        packed ([`LazyTensor`]): of shape `(integers, columns)`.
        bits (`int`): bits of a code, 1 to 8.
        count (`int`): rows of the codes.
    """
    if packed.dtype != "int32" or len(packed.shape) != 2 or not 1 <= bits <= 8:
        raise InvalidFileError("codes of another type")
    words, columns = packed.shape
    if count < 1 or words * 32 < count * bits:
        raise InvalidFileError("too few bytes for its shape")
    row_bytes = columns * 4

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start // 32, -(-stop // 32)
        begin, end = first * bits, min(last * bits, words)
        raw = packed.read(begin * row_bytes, end * row_bytes).reshape(end - begin, columns, 4)
        raw = np.pad(raw, ((0, (last - first) * bits - (end - begin)), (0, 0), (0, 0)))
        flat = np.ascontiguousarray(raw.transpose(1, 0, 2)).reshape(-1)
        codes = packed_rows(flat, bits, (columns, (last - first) * 32))(0, columns)
        return codes.T[start - first * 32 : stop - first * 32]

    return rows


def stacked_rows(packed: LazyTensor, bits: int, count: int, high_first: bool = False) -> Rows:
    """Codes whose first rows are in the first bits of all elements, the next rows in the next bits, and so on.

    Args:
        packed ([`LazyTensor`]): integers of shape `(steps, ...)`.
        bits (`int`): bits of a code.
        count (`int`): rows of the codes.
        high_first (`bool`, *optional*, defaults to `False`): whether the first rows are in the highest bits that are
            used, so that the last ones are in the lowest.
    """
    size = element_bytes(packed.dtype)
    steps = packed.shape[0] if packed.shape else 0
    parts = size * 8 // bits if bits > 0 else 0
    if not steps or not 0 < count <= steps * parts:
        raise InvalidFileError("too few bytes for its shape")
    row_bytes = packed.nbytes // steps
    mask = np.uint32((1 << bits) - 1)

    def rows(start: int, stop: int) -> np.ndarray:
        found = []
        while start < stop:
            part, first = divmod(start, steps)
            last = min(first + stop - start, steps)
            raw = packed.read(first * row_bytes, last * row_bytes)
            shift = np.uint32(bits * (parts - 1 - part if high_first else part))
            codes = raw.view(f"<u{size}").astype(np.uint32) >> shift & mask
            found.append(codes.astype(np.uint8).reshape(last - first, *packed.shape[1:]))
            start += last - first
        return np.concatenate(found)

    return rows


def tiled_rows(packed: LazyTensor) -> tuple[Rows, tuple[int, int]]:
    """Codes of 4 bits in the tiles that PyTorch's `_weight_int4pack_mm` takes on a GPU, and their shape.

    `packed` has shape `(rows / 8, columns / (16 * inner), 32, inner / 2)`, `int32`: 32 lanes hold 8 rows and 16
    columns of `inner` tiles, two tiles in each integer.
    """
    if packed.dtype != "int32" or len(packed.shape) != 4 or packed.shape[2] != 32 or not 0 < packed.shape[3] <= 4:
        raise InvalidFileError("codes of another layout")
    blocks, outer, _, pairs = packed.shape
    columns = outer * pairs * 32
    row_bytes = packed.nbytes // max(blocks, 1)
    # bits of an integer, from the lowest: columns 0, 8, 16, 24 of a pair of tiles, then their neighbors 1, 9, 17, 25
    lowest = np.array([0, 8, 16, 24, 1, 9, 17, 25])
    lanes = 2 * np.arange(4)
    order = np.argsort((np.arange(pairs)[None, :, None] * 32 + lanes[:, None, None] + lowest).reshape(-1))

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start // 8, -(-stop // 8)
        words = packed.read(first * row_bytes, last * row_bytes).view("<u4").reshape(last - first, outer, 8, 4, pairs)
        codes = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.uint8)
        tiles = codes.reshape(last - first, outer, 8, 32 * pairs)[..., order]
        whole = tiles.transpose(0, 2, 1, 3).reshape((last - first) * 8, columns)
        return whole[start - first * 8 : stop - first * 8]

    return rows, (blocks * 8, columns)
