"""torchao: inner tensors of subclasses, in a pickle as `weight.qdata`, in safetensors as `_weight_qdata`.

Versions before 0.12 nest them deeper, as `weight.tensor_impl.int_data`.
"""

import json
import re

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows, dequantize, look_up, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes
from hf_fingerprint.checkpoints.limits import MAX_JSON_VALUES, check_json_values
from hf_fingerprint.checkpoints.schemes.compressed_tensors import blocks_of
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows, tiled_rows
from hf_fingerprint.checkpoints.schemes.scheme import (
    FLOATS,
    Companions,
    Dequantized,
    Scheme,
    check_elements,
    columns_of,
    fit_scale,
    reshaped,
)


_NESTS = re.compile(r"(\.(tensor_impl|layout_tensor|original_weight_tensor))*\.$")
_SHARDS = {"int4_shard": 4, "int2_shard": 2, "int1_shard": 1}
_MIN_GROUP = 16  # codes that share a scale
_TILE = 1024  # columns that the tiles of a GPU are padded to


def weight_name(prefix: str) -> str:
    """The name of the weight whose inner tensors have a prefix: `a._weight_` or `a.weight.tensor_impl.`."""
    if prefix.endswith("."):
        return _NESTS.sub("", prefix)
    layer, _, own = prefix.rpartition(".")
    if not own.startswith("_") or not own.endswith("_") or len(own) < 3:
        raise InvalidFileError("names of another library")
    return f"{layer}.{own[1:-1]}" if layer else own[1:-1]


def _plain(found: Companions) -> Dequantized | None:
    """Codes of 8 bits, or two of 4 in a byte, with scales for all, for rows, or for blocks."""
    name, codes = weight_name(found.prefix), found.get(found.ending)
    if len(codes.shape) == 4 and found.peek("scale_and_zero") is not None:
        return _tiles(found)
    scales, zeros = found.get("scale"), found.find("zero_point")
    found.drop("act_quant_scale", "act_quant_zero_point")
    found.shape_of(name)
    if zeros is not None and len(codes.shape) == 2 and len(scales.shape) == 2 and zeros.shape == scales.shape:
        packed = codes.dtype == "int32" or zeros.dtype in FLOATS
        if packed and scales.shape[1] == codes.shape[0]:
            return Dequantized(name, _before_activations(found, _four_bits(codes, scales, zeros)))
    if codes.dtype == "uint8" and scales.dtype.startswith("float8"):  # floats of 4 bits, whose scales may be shuffled
        return None
    bits = 4 if found.ending == "int_data" else 8
    tensor = _affine(stored_rows(codes), codes.shape, codes.dtype, scales, zeros, bits)
    return Dequantized(name, _before_activations(found, tensor))


def _before_activations(found: Companions, tensor: ComputedTensor) -> ComputedTensor:
    """The weight times what the layer's inputs are scaled by."""
    factors = found.find("act_pre_scale")
    if factors is None:
        return tensor
    if len(tensor.shape) != 2 or factors.numel() not in (1, tensor.shape[1]):
        raise InvalidFileError("factors of another shape")
    return dequantize(stored_rows(tensor), tensor.shape, reshaped(factors, (1, factors.numel())), stored=tensor.stored)


def _affine(
    rows: Rows, shape: tuple[int, ...], stored: str, scales: LazyTensor, zeros: LazyTensor | None, bits: int
) -> ComputedTensor:
    """The weight. A zero that is a float is a weight: that of the middle code."""
    scales = fit_scale(scales, shape)
    blocks = blocks_of(shape, scales.shape)
    if zeros is None:
        return dequantize(rows, shape, scales, stored=stored, blocks=blocks)
    zeros = fit_scale(zeros, shape)
    if zeros.dtype in FLOATS and bits < 8:
        middle = 1 << (bits - 1)
        return dequantize(rows, shape, scales, middle, stored, blocks, offsets=zeros)
    return dequantize(rows, shape, scales, zeros, stored, blocks)


def _four_bits(codes: LazyTensor, scales: LazyTensor, zeros: LazyTensor) -> ComputedTensor:
    """Codes of 4 bits with the groups of a column in the rows of the scales."""
    if scales.shape[0] * _MIN_GROUP > codes.nbytes * 2 // codes.shape[0]:
        raise InvalidFileError("groups that are too small")
    whole = codes.dtype == "int32"
    shape = (codes.shape[0], codes.shape[1] * (8 if whole else 2))
    rows = bit_rows(codes, 4, shape[1], signed=not whole)
    scales, zeros = _transposed(scales), _transposed(zeros)
    if whole:
        return dequantize(rows, shape, scales, zeros, "uint4")
    return dequantize(rows, shape, scales, stored="int4", offsets=zeros)


def _transposed(values: LazyTensor) -> ComputedTensor:
    """A matrix with its axes exchanged."""
    groups, rows = values.shape
    return ComputedTensor(lambda start, stop: columns_of(values, start, stop).T, (rows, groups), "")


def _tiles(found: Companions) -> Dequantized | None:
    """Codes of 4 bits in tiles for a GPU, with `(scale, zero)` of shape `(groups, rows, 2)`."""
    name, codes, pairs = weight_name(found.prefix), found.get(found.ending), found.get("scale_and_zero")
    rows, padded = tiled_rows(codes)
    if len(pairs.shape) != 3 or pairs.shape[1:] != (padded[0], 2) or padded[1] // _MIN_GROUP < pairs.shape[0]:
        raise InvalidFileError("scales of another shape")
    groups = pairs.shape[0]

    def part(number: int) -> ComputedTensor:
        return ComputedTensor(
            lambda start, stop: columns_of(pairs, start, stop)[..., number].T, (padded[0], groups), ""
        )

    whole = dequantize(rows, padded, part(0), 8, "uint4", offsets=part(1))
    shape = _shape_of(found, name) or padded
    if len(shape) != 2 or not 0 <= padded[0] - shape[0] < 8 or not 0 <= padded[1] - shape[1] < _TILE:
        raise InvalidFileError("codes of another shape")
    read_whole = stored_rows(whole)
    cut = ComputedTensor(lambda start, stop: read_whole(start, stop)[:, : shape[1]], shape, "uint4")
    return Dequantized(name, _before_activations(found, cut))


def _shape_of(found: Companions, name: str) -> tuple[int, ...] | None:
    """The shape of the weight, from the pickle or the file's metadata."""
    if (shape := found.shape_of(name)) is not None:
        return shape
    text = found.metadata().get(name, "")
    try:
        check_json_values(text, MAX_JSON_VALUES)
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    inner = parsed.get("_data") if isinstance(parsed, dict) else None
    return as_sizes(inner.get("shape")) if isinstance(inner, dict) else None


def _shards(found: Companions) -> Dequantized | None:
    """Codes of 1 to 7 bits: 4, 2 and 1 of them in tensors of their own, whose bytes hold the columns in parts."""
    shards = [(bits, found.find(f"int_data.{name}")) for name, bits in _SHARDS.items()]
    there = [(bits, shard) for bits, shard in shards if shard is not None]
    total = sum(bits for bits, _ in there)
    rows, columns = there[0][1].shape[0], there[0][1].numel() // max(there[0][1].shape[0], 1) * 8 // there[0][0]
    if any(shard.dtype != "uint8" or shard.shape != (rows, columns * bits // 8) for bits, shard in there):
        raise InvalidFileError("codes of another shape")

    def codes(start: int, stop: int) -> np.ndarray:
        found, shift = np.zeros((stop - start, columns), np.uint8), 0
        for bits, shard in there:
            raw = stored_rows(shard)(start, stop)
            parts = [raw >> bits * part & ((1 << bits) - 1) for part in range(8 // bits)]
            found |= np.concatenate(parts, 1) << shift
            shift += bits
        return found

    name = weight_name(found.prefix)
    found.shape_of(name)
    tensor = _affine(codes, (rows, columns), f"uint{total}", found.get("scale"), found.find("zero_point"), total)
    return Dequantized(name, tensor)


def _nf4(found: Companions) -> Dequantized | None:
    """Blocks of normal floats of 4 bits; their scales are codes of 8 bits around a mean."""
    name = weight_name(found.prefix)
    codes, scales, outer = (found.get(each) for each in ("quantized_data", "quantized_scalers", "quantization_factor"))
    table, mean, shape = found.values("nf4"), found.values("scaler_mean"), found.shape_of(name)
    elements, blocks = codes.nbytes * 2, scales.numel()
    if codes.dtype != "uint8" or table is None or table.shape != (16,) or mean is None or mean.size != 1:
        raise InvalidFileError("codes of another type")
    if not blocks or elements % blocks or not outer.numel() or blocks % outer.numel():
        raise InvalidFileError("scales of another shape")
    size = elements // blocks
    values = look_up(
        bit_rows(reshaped(codes, (blocks, -(-size // 2))), 4, size, high_first=True), (blocks, size), table, "nf4"
    )
    inner = stored_rows(reshaped(outer, (outer.numel(), 1)))
    by = ComputedTensor(lambda start, stop: 1 / inner(start, stop), (outer.numel(), 1), "")
    scale = dequantize(stored_rows(reshaped(scales, (blocks, 1))), (blocks, 1), by, offsets=mean.reshape(1, 1))
    grid = dequantize(stored_rows(values), (blocks, size), scale, stored="nf4")
    whole = (blocks, size) if shape is None else check_elements(shape, elements)
    return Dequantized(name, reshaped(grid, whole))


PLAIN = Scheme("torchao", ("qdata", "int_data", "float8_data"), _plain)
TILES = Scheme("torchao", ("packed_weight",), _tiles)
SHARDS = Scheme("torchao", tuple(f"int_data.{name}" for name in _SHARDS), _shards)
NF4 = Scheme("torchao", ("quantized_data",), _nf4)
