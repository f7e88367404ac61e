"""Compressed constants of Core ML programs, which operations named `constexpr_...` unpack.

Their results are rows that are computed when they are read, and may be inputs of further ones: integers that stand for
the entries of a table of integers, or the elements that a mask selects.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import dequantize, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import FLOATS, Constant, computed, make_constant


Inputs = dict[str, Constant]
MAX_PARAMETERS = 1 << 25  # scales, zero points and entries of tables of one file
MAX_STEPS = 8  # operations that one constant went through; a table of integers in a sparse tensor goes through 3
_CHUNK = 1 << 21  # elements looked up at once
_SPARSE, _MASK = "sparse", "a mask of another shape"


class Decompressor:
    """Computes the outputs of `constexpr_...` operations."""

    def __init__(self) -> None:
        self._left = MAX_PARAMETERS
        self._places: dict[object, int] = {}
        self._known: dict[str, Callable[[Inputs], tuple[Constant, ...]]] = {
            "constexpr_affine_dequantize": self._affine,
            "dequantize": self._affine,  # an operation of activations, which may receive weights
            "constexpr_blockwise_shift_scale": self._blockwise,
            "constexpr_lut_to_dense": self._look_up,
            "constexpr_sparse_to_dense": self._spread,
            "constexpr_lut_to_sparse": self._sparse_look_up,
            "constexpr_sparse_blockwise_shift_scale": self._sparse_blockwise,
            "constexpr_cast": self._cast,
        }

    def __contains__(self, kind: str) -> bool:
        return kind in self._known

    def outputs(self, kind: str, inputs: Inputs) -> tuple[Constant, ...]:
        """The outputs of an operation.

        Args:
            kind (`str`): its name.
            inputs (`dict[str, Constant]`): what it receives, by parameter.

        Raises:
            [`InvalidFileError`]: if an input is missing, or the shapes don't fit.
        """
        steps = 1 + max((each.steps for each in inputs.values()), default=0)
        if steps > MAX_STEPS:
            raise InvalidFileError("constants nested too deep")
        try:
            found = self._known[kind](inputs)
        except KeyError as error:
            raise InvalidFileError(f"no {error.args[0]}") from None
        places = (kind, *((name, inputs[name].place) for name in sorted(inputs)))
        known = all(each.place is not None for each in inputs.values())
        place = self._places.setdefault(places, len(self._places)) if known else None
        return tuple(replace(each, place=place, steps=steps) for each in found)

    def values(self, constant: Constant) -> np.ndarray:
        """All values of a small constant, in its shape."""
        self._left -= constant.size
        if self._left < 0:
            raise InvalidFileError(f"more than {MAX_PARAMETERS:,} scales and entries of tables")
        return constant.rows(0, constant.shape[0] if constant.shape else 1).reshape(constant.shape)

    def _affine(self, inputs: Inputs) -> tuple[Constant, ...]:
        codes = inputs["quantized_data"] if "quantized_data" in inputs else inputs["input"]
        axis = int(self.values(inputs["axis"]).flat[0]) if "axis" in inputs else 0
        axis += len(codes.shape) if axis < 0 else 0
        factors = []
        for name in ("scale", "zero_point"):
            values = self.values(inputs[name]) if name in inputs else None
            if values is not None and values.size == 1:
                values = values.reshape(())
            elif values is not None:
                if not 0 <= axis < len(codes.shape) or values.shape != codes.shape[axis : axis + 1]:
                    raise InvalidFileError("scales of another shape")
                values = values.reshape([-1 if each == axis else 1 for each in range(len(codes.shape))])
            factors.append(values)
        if factors[0] is None:
            raise KeyError("scale")
        return (_dequantized(codes, factors[0], factors[1]),)

    def _blockwise(self, inputs: Inputs) -> tuple[Constant, ...]:
        offset = self.values(inputs["offset"]) if "offset" in inputs else None
        return (_dequantized(inputs["data"], self.values(inputs["scale"]), offset),)

    def _look_up(self, inputs: Inputs) -> tuple[Constant, ...]:
        indices, table = inputs["indices"], self.values(inputs["lut"])
        if "shape" in inputs:  # as iOS 16 has it: packed indices, one table of one dimension
            shape, bits = self._sizes(inputs["shape"]), (len(table) - 1).bit_length() if table.ndim == 1 else 0
            if indices.raw is None or not 1 <= bits <= 8:
                raise InvalidFileError("a table of another shape")
            indices = make_constant("uint8" if bits == 8 else f"uint{bits}", shape, indices.raw)
            table = table.reshape((1,) * len(shape) + (len(table), 1))
        axis = int(self.values(inputs["vector_axis"]).flat[0]) if "vector_axis" in inputs else 0
        return (_tabled(indices, table, inputs["lut"].dtype, axis),)

    def _sparse_look_up(self, inputs: Inputs) -> tuple[Constant, ...]:
        mask, table = inputs["indices_mask"], self.values(inputs["lut"])
        axis = int(self.values(inputs["vector_axis"]).flat[0]) if "vector_axis" in inputs else 0
        dense = _tabled(_scattered(inputs["indices_nonzero_data"], mask), table, inputs["lut"].dtype, axis)
        if table.shape[-1] == 1:
            return mask, replace(dense, spread=True)
        ones = np.ones((1,) * len(mask.shape) + (2, table.shape[-1]), np.float32)
        ones[..., 0, :] = 0
        return _tabled(mask, ones, "uint1", axis), replace(dense, spread=True)

    def _sparse_blockwise(self, inputs: Inputs) -> tuple[Constant, ...]:
        mask = inputs["data_mask"]
        data = _scattered(inputs["nonzero_data"], mask)
        offset = self.values(inputs["offset"]) if "offset" in inputs else None
        return mask, replace(_dequantized(data, self.values(inputs["scale"]), offset), spread=True)

    def _spread(self, inputs: Inputs) -> tuple[Constant, ...]:
        mask = inputs["mask"]
        if "shape" in inputs:  # as iOS 16 has it: a packed mask
            if mask.raw is None:
                raise InvalidFileError(_MASK)
            mask = make_constant("uint1", self._sizes(inputs["shape"]), mask.raw)
        return (_scattered(inputs["nonzero_data"], mask),)

    def _cast(self, inputs: Inputs) -> tuple[Constant, ...]:
        return (inputs["source_val"],)

    def _sizes(self, constant: Constant) -> tuple[int, ...]:
        return tuple(int(each) for each in self.values(constant).reshape(-1))


def _dequantized(codes: Constant, scale: np.ndarray, offset: np.ndarray | None) -> Constant:
    """`(codes - offset) * scale`, in equal blocks along each dimension."""
    tensor = dequantize(codes.rows, codes.shape, scale, offset, stored=codes.stored)
    return computed("fp32", codes.shape, stored_rows(tensor), tensor.stored)


def _tabled(indices: Constant, table: np.ndarray, dtype: str, axis: int) -> Constant:
    """The entries of a table, or of one table for each block, that indices stand for.

    Args:
        indices ([`Constant`]): the indices.
        table (`np.ndarray`): of the shape `(*blocks, entries, width)`.
        dtype (`str`): type of its values.
        axis (`int`): axis along which the `width` values of an entry follow each other.
    """
    shape = indices.shape
    rank = len(shape)
    width = table.shape[-1] if table.ndim else 0
    if rank < 1 or table.ndim != rank + 2 or not width or not -rank <= axis < rank:
        raise InvalidFileError("a table of another shape")
    axis %= rank
    entries = table.shape[-2]
    if any(not count or size % count for size, count in zip(shape, table.shape, strict=False)):
        raise InvalidFileError("a table of another shape")
    flat = np.concatenate([table.reshape(-1, width), np.zeros((1, width), table.dtype)])
    full = tuple(size * width if each == axis else size for each, size in enumerate(shape))
    if prod(full[1:]) * width > _CHUNK << 3:
        raise InvalidFileError("too large a row")

    def some(start: int, stop: int) -> np.ndarray:
        codes = indices.rows(start, stop).astype(np.int32)
        outside = codes >= entries  # of damaged files
        block = 1
        for each in reversed(range(rank)):
            count = table.shape[each]
            if count > 1:
                place = np.arange(start, stop) if each == 0 else np.arange(shape[each])
                place = (place // (shape[each] // count) * (block * entries)).astype(np.int32)
                codes += place.reshape([-1 if at == each else 1 for at in range(rank)])
            block *= count
        codes[outside] = len(flat) - 1
        values = flat[codes]
        if width == 1:
            return values[..., 0]
        merged = (stop - start, *shape[1:])
        return np.moveaxis(values, -1, axis + 1).reshape(
            [size * width if each == axis else size for each, size in enumerate(merged)]
        )

    def rows(start: int, stop: int) -> np.ndarray:
        factor = width if axis == 0 else 1
        first, last = start // factor, -(-stop // factor)
        step = max(_CHUNK // max(prod(full[1:]) * factor, 1), 1)
        parts = [some(at, min(at + step, last)) for at in range(first, last, step)]
        if not parts:
            return np.empty((0, *full[1:]), flat.dtype)
        found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found[start - first * factor : stop - first * factor]

    bits = max((entries - 1).bit_length(), 1)
    return computed(dtype, full, rows, f"palette{bits}")


def _scattered(data: Constant, mask: Constant) -> Constant:
    """The elements that a mask selects, at their places in its shape; the others are 0.

    Args:
        data ([`Constant`]): the elements, in one dimension, or spread in the shape already.
        mask ([`Constant`]): 1 at their places, 0 elsewhere.
    """
    if data.spread:
        if data.shape != mask.shape:
            raise InvalidFileError(_MASK)
    elif len(data.shape) != 1:
        raise InvalidFileError("sparse weights of more than one dimension")
    shape = mask.shape or (1,)
    before: list[np.ndarray] = []

    def count() -> np.ndarray:
        """How many elements there are before each row."""
        if not before:
            step = max(_CHUNK // max(prod(shape[1:]), 1), 1)
            each = [
                np.count_nonzero(mask.rows(at, min(at + step, shape[0])).reshape(min(step, shape[0] - at), -1), axis=1)
                for at in range(0, shape[0], step)
            ]
            before.append(np.concatenate([np.zeros(1, np.int64), *each]).cumsum())
        return before[0]

    def rows(start: int, stop: int) -> np.ndarray:
        chosen = mask.rows(start, stop) != 0
        if data.spread:
            values = data.rows(start, stop)
            return np.where(chosen, values, values.dtype.type(0))
        first, last = (min(int(count()[at]), data.shape[0]) for at in (start, stop))
        values = data.rows(first, last)
        found = np.zeros(chosen.size, values.dtype)
        found[np.flatnonzero(chosen)[: len(values)]] = values
        return found.reshape(chosen.shape)

    return computed(data.dtype, mask.shape, rows, data.stored if data.spread else _sparse(data))


def _sparse(data: Constant) -> str:
    """How sparse elements are stored."""
    return _SPARSE if data.dtype in FLOATS else f"{_SPARSE} {data.dtype}"
