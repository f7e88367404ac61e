"""GPTQ and AWQ: `qweight` with `scales` and `qzeros` for groups of inputs. A weight is inputs by outputs."""

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows, dequantize, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows, column_rows
from hf_fingerprint.checkpoints.schemes.scheme import Companions, Dequantized, Scheme


_ORDER = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])  # of AWQ's columns in an integer
_SAMPLE = 1 << 20  # codes
_FEW = 64  # groups that are read one by one


def _columns(found: Companions) -> Dequantized | None:
    codes, zeros, scales = found.get("qweight"), found.get("qzeros"), found.get("scales")
    shapes = codes.shape, zeros.shape, scales.shape
    if {codes.dtype, zeros.dtype} != {"int32"} or any(len(each) != 2 or 0 in each for each in shapes):
        raise InvalidFileError("codes of another type")
    groups, outputs = scales.shape
    bits = zeros.shape[1] * 32 // outputs
    if zeros.shape != (groups, -(-outputs * bits // 32)):
        raise InvalidFileError("scales of another shape")
    name = f"{found.prefix}weight"
    if codes.shape[1] == outputs:
        shape = (codes.shape[0] * 32 // max(bits, 1), outputs)
        rows, zero_rows = column_rows(codes, bits, shape[0]), bit_rows(zeros, bits, outputs)
        rest = _rest(rows, zero_rows, shape, groups)
        middle = ComputedTensor(lambda start, stop: zero_rows(start, stop) + np.float32(rest), scales.shape, "")
        index = found.values("g_idx")
        scale_of, zero_of = (_by_index(index, each, shape) for each in (scales, middle))
        return Dequantized(name, dequantize(rows, shape, scale_of, zero_of, f"uint{bits}"))
    if bits != 4 or codes.shape[1] * 8 != outputs:
        raise InvalidFileError("codes of another shape")
    found.drop("g_idx")
    shape = (codes.shape[0], outputs)
    middle = ComputedTensor(_interleaved(zeros, outputs), scales.shape, "")
    return Dequantized(name, dequantize(_interleaved(codes, outputs), shape, scales, middle, "uint4"))


def _interleaved(packed: LazyTensor, columns: int) -> Rows:
    rows = bit_rows(packed, 4, columns)
    return lambda start, stop: rows(start, stop).reshape(stop - start, -1, 8)[..., _ORDER].reshape(stop - start, -1)


def _rest(codes: Rows, zeros: Rows, shape: tuple[int, int], groups: int) -> int:
    """What was subtracted from the zeros before they were stored, 0 or 1, as versions differ.

    Symmetric codes tell it by their only zero, others since weights lie around 0.
    """
    count = min(shape[0], _SAMPLE // shape[1])
    if count < 1:
        return 1
    stored = zeros(0, -(-count * groups // shape[0]))
    if (stored == stored[0, 0]).all() and not (stored[0, 0] + 1) & stored[0, 0]:  # 7 stands for 8
        return 1
    if (stored == stored[0, 0]).all() and not (stored[0, 0] - 1) & stored[0, 0]:
        return 0
    return 1 if float(codes(0, count).mean()) - float(stored.mean()) > 0.5 else 0


def _by_index(index: np.ndarray | None, values: LazyTensor, shape: tuple[int, int]) -> LazyTensor:
    """The values of groups, for each row if the rows are not in the order of the groups."""
    groups = values.shape[0]
    if index is None or not index.any():
        return values
    if index.shape != shape[:1] or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= groups:
        raise InvalidFileError("an index of another shape")
    if np.array_equal(index, np.arange(shape[0]) // -(-shape[0] // groups)):
        return values
    read = stored_rows(values)

    def rows(start: int, stop: int) -> np.ndarray:
        used, places = np.unique(index[start:stop], return_inverse=True)
        found = [read(group, group + 1) for group in used] if len(used) < _FEW else [read(0, groups)[used]]
        return np.concatenate(found)[places]

    return ComputedTensor(rows, shape, "")


COLUMNS = Scheme("GPTQ", ("qweight",), _columns)
