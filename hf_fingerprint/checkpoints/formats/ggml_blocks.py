"""The tensor types of ggml: blocks of codes with scales, and their values.

A block has 32 or 256 elements of one row. Its codes lie in groups of bytes: first the elements in the lowest bits of
all bytes of a group, then those in the next bits.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError


class BlockType(NamedTuple):
    """A type whose elements are stored in blocks.

    Attributes:
        name (`str`): its name, such as `"Q8_0"`.
        elements (`int`): elements of a block.
        nbytes (`int`): bytes of a block.
        values (callable): from the bytes of blocks, `(n, nbytes)` `uint8`, to their elements, `(n, elements)`.
    """

    name: str
    elements: int
    nbytes: int
    values: Callable[[np.ndarray], np.ndarray]


def blocks_tensor(raw: np.ndarray, kind: BlockType, shape: tuple[int, ...]) -> ComputedTensor:
    """A tensor stored in blocks.

    Args:
        raw (`np.ndarray`): its bytes, `uint8`.
        kind ([`BlockType`]): its type.
        shape (`tuple[int, ...]`): its shape; the last dimension is stored contiguously.

    Raises:
        [`InvalidFileError`]: if the shape doesn't fit the type.
    """
    if not shape or shape[-1] % kind.elements or prod(shape) // kind.elements * kind.nbytes != len(raw):
        raise InvalidFileError(f"a shape that does not fit {kind.name}")
    columns = prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start * columns // kind.elements, -(-stop * columns // kind.elements)
        blocks = raw[first * kind.nbytes : last * kind.nbytes].reshape(-1, kind.nbytes)
        skipped = start * columns - first * kind.elements
        found = kind.values(blocks).reshape(-1)[skipped:]
        return found[: (stop - start) * columns].reshape(stop - start, *shape[1:])

    return ComputedTensor(rows, shape, kind.name)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The `float16` numbers at a place of each block, `(n, 1)`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _codes(blocks: np.ndarray, start: int, count: int, bits: int, group: int) -> np.ndarray:
    """Codes in `count` bytes of each block, in groups of bytes, `(n, elements)` `uint8`."""
    grouped = blocks[:, start : start + count].reshape(len(blocks), count // group, 1, group)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((grouped >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(blocks), -1)


def _spread(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Codes times scales of equal parts of a block."""
    parts = codes.reshape(*scales.shape, -1).astype(np.float32)
    return (scales[..., None] * parts).reshape(codes.shape)


def _four_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    return _codes(blocks, start, 16, 4, 16)


def _five_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    return _four_bits(blocks, start + 4) | (_codes_of_bits(blocks, start) << 4)


def _codes_of_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """32 bits of each block, the lowest first."""
    return np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_four_bits(blocks, 2).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _four_bits(blocks, 4) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_five_bits(blocks, 2).astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _five_bits(blocks, 4) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    scales, minima = _half(blocks, 80) * (blocks[:, :16] & 15), _half(blocks, 82) * (blocks[:, :16] >> 4)
    return _spread(scales, _codes(blocks, 16, 64, 2, 32)) - minima.repeat(16, axis=1)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    scales = _codes(blocks, 96, 8, 4, 8) | (_codes(blocks, 104, 4, 2, 4) << 4)
    codes = _codes(blocks, 32, 64, 2, 32) | (_codes(blocks, 0, 32, 1, 32) << 2)
    return _spread(_half(blocks, 108) * (scales.astype(np.float32) - 32), codes.astype(np.float32) - 4)


def _with_minima(blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Q4_K and Q5_K: 8 scales and 8 minima of 6 bits each, in 12 bytes."""
    low, high, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)
    return _spread(_half(blocks, 0) * scales, codes) - (_half(blocks, 2) * minima).repeat(32, axis=1)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _with_minima(blocks, _codes(blocks, 16, 128, 4, 32))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    return _with_minima(blocks, _codes(blocks, 48, 128, 4, 32) | (_codes(blocks, 16, 32, 1, 32) << 4))


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    codes = _codes(blocks, 0, 128, 4, 64) | (_codes(blocks, 128, 64, 2, 32) << 4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _spread(_half(blocks, 208) * scales, codes.astype(np.float32) - 32)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _IQ4[_four_bits(blocks, 2)]


BLOCK_TYPES = {
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    10: BlockType("Q2_K", 256, 84, _q2_k),
    11: BlockType("Q3_K", 256, 110, _q3_k),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl),
}
