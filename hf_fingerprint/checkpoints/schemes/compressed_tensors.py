"""compressed-tensors, and what is named alike: `weight_scale` next to `weight` or `weight_packed`."""

import numpy as np

from hf_fingerprint.checkpoints.formats.code_tables import F4_E2M1
from hf_fingerprint.checkpoints.formats.computed_tensors import (
    ComputedTensor,
    Factors,
    Rows,
    dequantize,
    look_up,
    stored_rows,
)
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows, column_rows
from hf_fingerprint.checkpoints.schemes.scheme import Companions, Dequantized, Scheme, fit_scale


_BITS = (4, 8, 2, 3, 6, 5, 7, 1)  # the usual ones first: small layers don't tell
_BLOCK = 128  # of scales for blocks whose last one is smaller
_EXPONENT_BIAS = 127
_INPUTS = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "weight_g_idx",
)  # fmt: skip


def _plain(found: Companions) -> Dequantized | None:
    """`weight` as `int8` or 8-bit floats; one scale for all, for each row, or for each block."""
    codes = found.get("weight")
    if codes.dtype == "uint8" and found.peek("weight_scale_2") is not None:
        return _fp4(found, codes, found.get("weight_scale_2"), divide=False)
    if codes.dtype not in ("int8", "uint8", "float8_e4m3fn", "float8_e5m2"):
        return None
    scales = fit_scale(found.get(found.ending), codes.shape)
    zeros = found.find("weight_zero_point")
    zeros = None if zeros is None else fit_scale(zeros, codes.shape)
    blocks = blocks_of(codes.shape, scales.shape)
    found.drop(*_INPUTS)
    tensor = dequantize(stored_rows(codes), codes.shape, scales, zeros, codes.dtype, blocks)
    return Dequantized(f"{found.prefix}weight", tensor)


def blocks_of(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    """The size of blocks along each dimension: a power of two, of which the last may be smaller if it is 128."""
    return tuple(_block(size, max(count, 1)) for size, count in zip(shape, counts, strict=True))


def _block(size: int, count: int) -> int:
    block = -(-size // count)
    if size % count or (block & (block - 1) and count not in (1, size)):
        return _BLOCK if -(-size // _BLOCK) == count else block
    return block


def _packed(found: Companions) -> Dequantized | None:
    """`weight_packed`: integers of 1 to 8 bits in `int32`, or two floats of 4 bits in a byte."""
    codes = found.get("weight_packed")
    if codes.dtype == "uint8":
        return _fp4(found, codes, found.find("weight_global_scale"), divide=True)
    shape, scales = found.sizes("weight_shape"), found.get("weight_scale")
    if codes.dtype != "int32" or shape is None or len(shape) < 2 or codes.shape[:-1] != shape[:-1]:
        raise InvalidFileError("codes of another shape")
    columns = shape[-1]
    bits = next((each for each in _BITS if -(-columns * each // 32) == codes.shape[-1]), 0)
    if len(shape) != 2:
        raise InvalidFileError("codes of another shape")
    scales = _by_index(found, fit_scale(scales, shape), shape)
    zeros = found.find("weight_zero_point")
    middle: Factors = (1 << bits) // 2
    if zeros is not None and zeros.dtype == "int32" and len(zeros.shape) == 2:
        groups = zeros.shape[1]
        packed = ComputedTensor(column_rows(zeros, bits, shape[0]), (shape[0], groups), f"uint{bits}")
        middle = _by_index(found, packed, shape)
    elif zeros is not None:
        zeros = fit_scale(zeros, shape)
        middle = _by_index(found, dequantize(stored_rows(zeros), zeros.shape, 1, offsets=middle), shape)
    found.drop(*_INPUTS)
    tensor = dequantize(bit_rows(codes, bits, columns), shape, scales, middle, f"int{bits}")
    return Dequantized(f"{found.prefix}weight", tensor)


def _by_index(found: Companions, values: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The values of groups, for each column if the file has an index of the columns' groups."""
    index = found.values("weight_g_idx") if found.peek("weight_g_idx") is not None else None
    if index is None or values.shape[1] == 1 or (index < 0).any():
        return values
    if index.shape != (shape[1],) or index.dtype.kind not in "iu" or int(index.max()) >= values.shape[1]:
        raise InvalidFileError("an index of another shape")
    rows = stored_rows(values)
    return ComputedTensor(lambda start, stop: rows(start, stop)[:, index], (values.shape[0], shape[1]), "")


def _fp4(found: Companions, codes: LazyTensor, outer: LazyTensor | None, divide: bool) -> Dequantized | None:
    """Floats of 4 bits with a scale for each group: an 8-bit float times one for all, or the exponent of 2 (MX)."""
    scales = found.get("weight_scale")
    if len(codes.shape) != 2 or len(scales.shape) != 2 or scales.shape[0] != codes.shape[0]:
        raise InvalidFileError("scales of another shape")
    shape = (codes.shape[0], codes.shape[1] * 2)
    values = stored_rows(look_up(bit_rows(codes, 4, shape[1]), shape, F4_E2M1, "fp4"))
    if scales.dtype == "uint8":
        scales = ComputedTensor(_powers(stored_rows(scales)), scales.shape, "exponent")
    elif outer is not None and outer.numel() == 1:
        factor = fit_scale(outer, (1, 1))
        by = ComputedTensor(_reciprocal(stored_rows(factor)), (1, 1), "") if divide else factor
        scales = dequantize(stored_rows(scales), scales.shape, by)
    found.drop(*_INPUTS)
    return Dequantized(f"{found.prefix}weight", dequantize(values, shape, scales, stored="fp4"))


def _powers(rows: Rows) -> Rows:
    return lambda start, stop: np.exp2(rows(start, stop).astype(np.float32) - _EXPONENT_BIAS)


def _reciprocal(rows: Rows) -> Rows:
    return lambda start, stop: 1 / rows(start, stop)


PLAIN = Scheme("compressed-tensors", ("weight_scale", "weight_scale_inv", "scale_weight"), _plain)
PACKED = Scheme("compressed-tensors", ("weight_packed",), _packed)
