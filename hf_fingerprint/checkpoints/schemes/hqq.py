"""HQQ: groups of `W_q` with a `scale` and a `zero` each, whose codes are stacked by rows in the bits of an integer.

`axis` 1 makes a group a row of the codes, `axis` 0 a column. The groups in row-major order are the weight.
"""

from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import dequantize, stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.schemes.packed_codes import stacked_rows
from hf_fingerprint.checkpoints.schemes.scheme import (
    MAX_VALUES,
    Companions,
    Dequantized,
    Scheme,
    check_elements,
    matrix_shape,
    reshaped,
)


_SETTINGS = (
    "nbits", "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero",
    "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize",
    "round_zero",
)  # fmt: skip
_TYPES = {"uint8": (8, 4, 2, 1), "int32": (3,)}
_PARTS = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}


def _groups(found: Companions) -> Dequantized | None:
    codes = found.get("W_q")
    scales, zeros = (found.find(each) or found.get(f"meta.{each}") for each in ("scale", "zero"))
    if codes.dtype not in _TYPES or len(codes.shape) != 2 or len(scales.shape) != 2 or zeros.shape != scales.shape:
        raise InvalidFileError("codes of another type")
    shape, known = found.sizes("shape"), _number(found, "nbits")
    by_rows = scales.shape[1] == 1 and scales.shape != (1, codes.shape[1])
    if not by_rows and scales.shape != (1, codes.shape[1]):
        raise InvalidFileError("scales of another shape")
    elements = prod(shape) if shape else 0
    if by_rows:
        count = scales.shape[0]
    elif elements:
        count = elements // codes.shape[1]
    else:
        parts = _PARTS.get(known or _bits_of(zeros, _TYPES[codes.dtype]), 0)
        count = codes.shape[0] * parts
        count = 1 << (count.bit_length() - 1) if parts == 10 else count  # padded
    bits = next((b for b in _TYPES[codes.dtype] if -(-count // _PARTS[b]) == codes.shape[0]), 0)
    grid = (count, codes.shape[1])
    whole = matrix_shape(prod(grid), found.peek("bias"), grid) if shape is None else shape
    tensor = dequantize(stacked_rows(codes, bits, count, high_first=True), grid, scales, zeros, stored=f"uint{bits}")
    found.drop(*_SETTINGS)
    return Dequantized(f"{found.prefix}weight", reshaped(tensor, check_elements(whole, prod(grid))))


def _bits_of(zeros: LazyTensor, candidates: tuple[int, ...]) -> int:
    """The bits whose middle code is nearest to the zeros, since weights lie around 0."""
    middle = float(np.median(stored_values(reshaped(zeros, (min(zeros.numel(), MAX_VALUES),)))))
    return min(candidates, key=lambda bits: abs(np.log2(max(2 * middle + 1, 1)) - bits))


def _number(found: Companions, ending: str) -> int:
    values = found.values(ending) if found.peek(ending) is not None else None
    return int(values.reshape(-1)[0]) if values is not None and values.size == 1 and values.dtype.kind in "iu" else 0


GROUPS = Scheme("HQQ", ("W_q",), _groups)
