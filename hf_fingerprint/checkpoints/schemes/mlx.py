"""MLX: `weight` as `uint32` with `scales` and `biases` for each group of a row; nothing says the bits of a code."""

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import Rows, dequantize
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows
from hf_fingerprint.checkpoints.schemes.scheme import Companions, Dequantized, Scheme


_BITS = (8, 6, 5, 4, 3, 2)
_GROUPS = (16, 32, 64, 128, 256)
_SAMPLE = 1 << 20  # bytes
_FULL = 0.95  # of the codes' range that an honest group takes


def _groups(found: Companions) -> Dequantized | None:
    codes, scales, biases = found.get("weight"), found.get("scales"), found.get("biases")
    if getattr(codes, "stored", "") != "U32" or len(codes.shape) != 2 or scales.shape != biases.shape:
        raise InvalidFileError("codes of another type")
    if len(scales.shape) != 2 or scales.shape[0] != codes.shape[0]:
        raise InvalidFileError("scales of another shape")
    rows, groups, stored_bits = codes.shape[0], scales.shape[1], codes.shape[1] * 32
    possible = [
        bits for bits in _BITS if not stored_bits % bits and stored_bits // bits in {g * groups for g in _GROUPS}
    ]
    if not possible:
        raise InvalidFileError("scales of another shape")
    bits = possible[0]
    if len(possible) > 1:
        sample = {each: bit_rows(codes, each, stored_bits // each) for each in possible}
        count = min(rows, _SAMPLE // (stored_bits // 8))
        if count < 1:
            raise InvalidFileError("rows that are too long")
        bits = max(possible, key=lambda each: _full_groups(sample[each], count, groups, each))
    shape = (rows, stored_bits // bits)
    tensor = dequantize(bit_rows(codes, bits, shape[1]), shape, scales, stored=f"uint{bits}", offsets=biases)
    return Dequantized(f"{found.prefix}weight", tensor)


def _full_groups(rows: Rows, count: int, groups: int, bits: int) -> tuple[bool, int]:
    """Whether most groups reach from the lowest to the highest code, as they do if these are the bits; and the bits.

    Fewer bits than the right ones also give full ranges, so that the most bits that do are the right ones.
    """
    codes = rows(0, count).reshape(count, groups, -1).astype(np.int32)
    reach = codes.max(-1) - codes.min(-1)
    return bool((reach >= _FULL * ((1 << bits) - 1)).mean() > 0.5), bits


GROUPS = Scheme("MLX", ("scales",), _groups)
