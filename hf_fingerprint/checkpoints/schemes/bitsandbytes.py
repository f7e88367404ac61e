"""bitsandbytes: rows of 8 bits with their largest value in `SCB`, and blocks of 4 bits in a table's codes."""

from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import dequantize, look_up, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes
from hf_fingerprint.checkpoints.limits import parse_json
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows
from hf_fingerprint.checkpoints.schemes.scheme import (
    Companions,
    Dequantized,
    Scheme,
    check_elements,
    fit_scale,
    reshaped,
)


_STATE = "quant_state.bitsandbytes__"
_MAX_BLOCK = 1 << 16


def _int8(found: Companions) -> Dequantized | None:
    """`weight` is `int8`, and `SCB` the largest magnitude of each row, which is code 127."""
    layout = found.values("weight_format")
    codes, largest = found.get("weight"), found.get("SCB")
    if codes.dtype != "int8" or (layout is not None and layout.size == 1 and int(layout.reshape(-1)[0]) != 0):
        return None
    scales = fit_scale(largest, codes.shape)
    unit = dequantize(stored_rows(scales), scales.shape, 1 / 127)
    return Dequantized(f"{found.prefix}weight", dequantize(stored_rows(codes), codes.shape, unit, stored="int8"))


def _four_bits(found: Companions) -> Dequantized | None:
    """`weight` has two codes a byte; `absmax` is the largest value of each block, itself quantized if nested."""
    kind = found.ending.removeprefix(f".{_STATE}")
    state = _parse_state(found)
    shape, block = as_sizes(state.get("shape")), state.get("blocksize")
    codes, largest, table = found.get(""), found.get(".absmax"), found.values(".quant_map")
    if shape is None or type(block) is not int or not 2 <= block <= _MAX_BLOCK or block % 2 or table is None:
        raise InvalidFileError("a state without shape")
    elements = prod(shape)
    blocks = -(-elements // block)
    if codes.nbytes != -(-elements // 2) or table.shape != (16,) or largest.numel() != blocks:
        raise InvalidFileError("codes of another size")
    largest = reshaped(_nested(found, largest, state), (blocks, 1))
    values = look_up(
        bit_rows(reshaped(codes, (blocks, block // 2), "uint8"), 4, block, high_first=True),
        (blocks, block),
        table,
        kind,
    )
    grid = dequantize(stored_rows(values), (blocks, block), largest, stored=kind)
    return Dequantized(found.prefix, reshaped(grid, check_elements(shape, elements)))


def _nested(found: Companions, largest: LazyTensor, state: dict[str, object]) -> LazyTensor:
    """The largest values of the blocks, in `float32`."""
    outer = found.find(".nested_absmax")
    if outer is None:
        return largest
    table, block, offset = found.values(".nested_quant_map"), state.get("nested_blocksize"), state.get("nested_offset")
    if table is None or table.shape != (256,) or type(block) is not int or not 1 <= block <= _MAX_BLOCK:
        raise InvalidFileError("a nested state without block size")
    if not isinstance(offset, int | float) or largest.dtype != "uint8":
        raise InvalidFileError("a nested state without offset")
    count = largest.numel()
    values = look_up(stored_rows(reshaped(largest, (count, 1))), (count, 1), table, "uint8")
    scales = reshaped(outer, (outer.numel(), 1))
    return dequantize(stored_rows(values), (count, 1), scales, blocks=(block, 1), offsets=float(offset))


def _parse_state(found: Companions) -> dict[str, object]:
    raw = found.values(found.ending)
    if raw is None or raw.dtype != np.uint8:
        raise InvalidFileError("no state")
    try:
        state = parse_json(raw.tobytes())
    except (ValueError, UnicodeDecodeError):
        raise InvalidFileError("a state that is not JSON") from None
    if not isinstance(state, dict):
        raise InvalidFileError("a state that is not JSON")
    return state


INT8 = Scheme("bitsandbytes", ("SCB",), _int8)
FOUR_BITS = Scheme("bitsandbytes", (f".{_STATE}nf4", f".{_STATE}fp4"), _four_bits)
