"""optimum-quanto: `weight._data`, `weight._scale`; below 8 bits also `weight._shift`, and codes stacked by rows."""

from math import prod

from hf_fingerprint.checkpoints.formats.computed_tensors import dequantize, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.schemes.packed_codes import stacked_rows
from hf_fingerprint.checkpoints.schemes.scheme import (
    FLOATS,
    Companions,
    Dequantized,
    Scheme,
    check_elements,
    fit_scale,
    matrix_shape,
    reshaped,
)


def _eight_bits(found: Companions) -> Dequantized | None:
    codes = found.get("weight._data")
    scales = fit_scale(found.get("weight._scale"), codes.shape)
    found.drop("input_scale", "output_scale")
    name = f"{found.prefix}weight"
    found.shape_of(name)
    return Dequantized(name, dequantize(stored_rows(codes), codes.shape, scales, stored=codes.dtype))


def _stacked(found: Companions) -> Dequantized | None:
    """A scale and a shift for each row or, in larger layers, for each group of a row, which is a row of the codes."""
    codes, scales = found.get("weight._data._data"), found.get("weight._scale")
    shifts = found.get("weight._shift")
    if codes.dtype != "uint8" or not codes.shape or len(scales.shape) != len(codes.shape):
        raise InvalidFileError("codes of another type")
    count = scales.shape[0]
    bits = next((bits for bits in (4, 2) if -(-count * bits // 8) == codes.shape[0]), 0)
    rows, shape, stored = stacked_rows(codes, bits, count), (count, *codes.shape[1:]), f"qint{bits}"
    if shifts.dtype in FLOATS:
        lower = dequantize(stored_rows(shifts), shifts.shape, -1)
        grid = dequantize(rows, shape, scales, offsets=lower, stored=stored)
    else:
        grid = dequantize(rows, shape, scales, shifts, stored=stored)
    found.drop("input_scale", "output_scale")
    name, elements = f"{found.prefix}weight", prod(shape)
    if (whole := found.shape_of(name)) is None:
        whole = shape if len(shape) > 2 else matrix_shape(elements, found.peek("bias"), shape)
    return Dequantized(name, reshaped(grid, check_elements(whole, elements)))


EIGHT_BITS = Scheme("optimum-quanto", ("weight._data",), _eight_bits)
STACKED = Scheme("optimum-quanto", ("weight._data._data",), _stacked)
