"""Compressed constants of Core ML programs, against the definitions of their operations."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml import coreml_compression
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import make_constant
from hf_fingerprint.checkpoints.formats.coreml.coreml_compression import Decompressor


DRAW = np.random.default_rng(0)
TYPES = {np.dtype(np.float16): "fp16", np.dtype(np.float32): "fp32", np.dtype(np.int32): "int32"}


def packed(values, bits):
    """Small integers without gaps, from the lowest bit on."""
    wide = (np.asarray(values, np.int64).reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(wide.astype(np.uint8), bitorder="little")


def codes(values, bits, signed=False):
    return make_constant(f"{'' if signed else 'u'}int{bits}", np.shape(values), packed(values, bits))


def plain(values):
    values = np.asarray(values)
    return make_constant(TYPES[values.dtype], values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def unpack(kind, **inputs):
    """The last output of an operation, as read whole and as read in single rows."""
    tensor = Decompressor().outputs(kind, inputs)[-1].tensor
    whole = stored_values(tensor)
    row = tensor.nbytes // tensor.shape[0]
    rows = [tensor.read(at * row, (at + 1) * row).view(np.float32) for at in range(tensor.shape[0])]
    np.testing.assert_array_equal(np.concatenate(rows), whole.reshape(-1))
    return whole


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_integers_with_a_scale_for_each_slice(axis):
    values, scales = DRAW.integers(-128, 128, (6, 4, 6)), DRAW.random(4 if axis == 1 else 6).astype(np.float32)
    zeros = DRAW.integers(-9, 9, scales.size)
    wide = [-1 if each == axis % 3 else 1 for each in range(3)]

    found = unpack(
        "constexpr_affine_dequantize",
        quantized_data=codes(values, 8, True),
        scale=plain(scales),
        zero_point=codes(zeros, 8, True),
        axis=plain(np.int32(axis)),
    )

    np.testing.assert_allclose(found, (values - zeros.reshape(wide)) * scales.reshape(wide), rtol=1e-5)


@pytest.mark.parametrize(("bits", "signed"), [(4, True), (4, False), (8, True), (8, False)])
def test_integers_in_blocks(bits, signed):
    low = -(1 << bits - 1) if signed else 0
    values = DRAW.integers(low, low + (1 << bits), (4, 6, 3))
    scales, offsets = DRAW.random((2, 3, 1)).astype(np.float32), DRAW.integers(0, 7, (2, 3, 1))

    found = unpack(
        "constexpr_blockwise_shift_scale",
        data=codes(values, bits, signed),
        scale=plain(scales),
        offset=codes(offsets, bits, signed),
    )

    wide_scales, wide_offsets = (np.repeat(np.repeat(each, 2, 0), 2, 1) for each in (scales, offsets))
    np.testing.assert_allclose(found, (values - wide_offsets) * wide_scales, rtol=1e-5)


def by_definition(indices, table, axis):
    """Each index replaced by its entry, one at a time."""
    width = table.shape[-1]
    shape = [size * width if at == axis else size for at, size in enumerate(indices.shape)]
    found = np.zeros(shape, np.float32)
    for place in np.ndindex(*indices.shape):
        block = tuple(at * count // size for at, count, size in zip(place, table.shape, indices.shape, strict=False))
        for part in range(width):
            to = tuple(at * width + part if each == axis else at for each, at in enumerate(place))
            found[to] = table[(*block, indices[place], part)]
    return found


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (4, 3, 2)])
def test_tables_for_blocks(bits, blocks, monkeypatch):
    monkeypatch.setattr(coreml_compression, "_CHUNK", 12)
    indices = DRAW.integers(0, 1 << bits, (4, 3, 2))
    table = DRAW.random((*blocks, 1 << bits, 1)).astype(np.float32)

    found = unpack("constexpr_lut_to_dense", indices=codes(indices, bits), lut=plain(table))

    np.testing.assert_array_equal(found, by_definition(indices, table, 0))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 1, 1), (1, 1, 2)])
def test_tables_of_vectors(axis, blocks):
    indices = DRAW.integers(0, 4, (4, 3, 2))
    table = DRAW.random((*blocks, 4, 2)).astype(np.float32)

    found = unpack(
        "constexpr_lut_to_dense", indices=codes(indices, 2), lut=plain(table), vector_axis=plain(np.int32(axis))
    )

    np.testing.assert_array_equal(found, by_definition(indices, table, axis % 3))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_indices_of_ios_16(bits):
    indices, table = DRAW.integers(0, 1 << bits, (5, 3)), DRAW.random(1 << bits).astype(np.float16)
    raw = make_constant("uint8", (len(packed(indices, bits)),), packed(indices, bits))

    found = unpack("constexpr_lut_to_dense", indices=raw, lut=plain(table), shape=plain(np.int32([5, 3])))

    np.testing.assert_array_equal(found, table[indices])


def sparse(shape=(5, 7)):
    """A mask, and numbers where it is set."""
    mask = DRAW.integers(0, 2, shape)
    mask[0] = 0
    return mask, DRAW.random(int(mask.sum())).astype(np.float16)


@pytest.mark.parametrize("old", [False, True])
def test_elements_at_the_places_of_a_mask(old, monkeypatch):
    monkeypatch.setattr(coreml_compression, "_CHUNK", 14)
    mask, kept = sparse()
    wanted = np.zeros(mask.shape, np.float32)
    wanted[mask != 0] = kept
    inputs = {"mask": codes(mask, 1)}
    if old:
        raw = packed(mask, 1)
        inputs = {"mask": make_constant("uint8", raw.shape, raw), "shape": plain(np.int32(mask.shape))}

    found = unpack("constexpr_sparse_to_dense", nonzero_data=plain(kept), **inputs)

    np.testing.assert_array_equal(found, wanted)


def test_elements_that_a_damaged_file_lacks_are_0():
    mask = np.ones((2, 3), np.int64)

    found = unpack("constexpr_sparse_to_dense", nonzero_data=plain(np.float16([1, 2])), mask=codes(mask, 1))

    np.testing.assert_array_equal(found, [[1, 2, 0], [0, 0, 0]])


@pytest.mark.parametrize("width", [1, 2])
def test_indices_at_the_places_of_a_mask(width):
    mask, _ = sparse((4, 6))
    indices = np.zeros(mask.shape, np.int64)
    indices[mask != 0] = DRAW.integers(0, 4, int(mask.sum()))
    table = DRAW.random((2, 1, 4, width)).astype(np.float32)
    decompressor = Decompressor()

    out_mask, kept = decompressor.outputs(
        "constexpr_lut_to_sparse",
        {
            "indices_mask": codes(mask, 1),
            "indices_nonzero_data": codes(indices[mask != 0], 2),
            "lut": plain(table),
            "vector_axis": plain(np.int32(1)),
        },
    )
    (found,) = decompressor.outputs("constexpr_sparse_to_dense", {"nonzero_data": kept, "mask": out_mask})

    wanted = by_definition(indices, table, 1) * np.repeat(mask, width, 1)
    np.testing.assert_array_equal(stored_values(found.tensor), wanted)


def test_integers_at_the_places_of_a_mask():
    mask, _ = sparse((4, 6))
    values = DRAW.integers(-128, 128, int(mask.sum()))
    scales, offsets = DRAW.random((4, 2)).astype(np.float32), DRAW.random((4, 2)).astype(np.float32)
    decompressor = Decompressor()

    out_mask, kept = decompressor.outputs(
        "constexpr_sparse_blockwise_shift_scale",
        {
            "data_mask": codes(mask, 1),
            "nonzero_data": codes(values, 8, True),
            "scale": plain(scales),
            "offset": plain(offsets),
        },
    )
    (found,) = decompressor.outputs("constexpr_sparse_to_dense", {"nonzero_data": kept, "mask": out_mask})

    dense = np.zeros(mask.shape)
    dense[mask != 0] = values
    wanted = (dense - np.repeat(offsets, 3, 1)) * np.repeat(scales, 3, 1) * mask
    np.testing.assert_allclose(stored_values(found.tensor), wanted, rtol=1e-5)


def test_tables_of_integers_that_have_scales():
    indices, table = DRAW.integers(0, 4, (4, 3)), DRAW.integers(-128, 128, (1, 1, 4, 1))
    decompressor = Decompressor()
    (scaled,) = decompressor.outputs(
        "constexpr_blockwise_shift_scale",
        {"data": codes(table, 8, True), "scale": plain(np.full((1, 1, 1, 1), 0.5, np.float32))},
    )

    (found,) = decompressor.outputs("constexpr_lut_to_dense", {"indices": codes(indices, 2), "lut": scaled})

    np.testing.assert_array_equal(stored_values(found.tensor), table.reshape(-1)[indices] * 0.5)


TWO = np.ones((2, 2), np.int64)


@pytest.mark.parametrize(
    ("kind", "inputs", "reason"),
    [
        ("constexpr_lut_to_dense", {"indices": codes(TWO, 1)}, "no lut"),
        ("constexpr_lut_to_dense", {"indices": codes(TWO, 1), "lut": plain(np.float32([1, 2]))}, "a table of another"),
        ("constexpr_lut_to_dense", {"indices": codes(TWO, 1), "lut": plain(np.ones((3, 1, 2, 1), "f4"))}, "a table"),
        ("constexpr_lut_to_dense", {"indices": plain(np.float16([1])), "lut": plain(np.ones((1, 2, 1), "f4")),
                                    "shape": plain(np.int32([1 << 30, 1 << 30]))}, "a table"),
        ("constexpr_blockwise_shift_scale", {"data": codes(TWO, 8), "scale": plain(np.float32([1, 2]))}, "scales"),
        ("constexpr_affine_dequantize", {"quantized_data": codes(TWO, 8), "scale": plain(np.float32([1, 2, 3]))},
         "scales of another shape"),
        ("constexpr_affine_dequantize", {"quantized_data": codes(TWO, 8), "scale": plain(np.float32([1, 2])),
                                         "axis": plain(np.int32(9))}, "scales of another shape"),
        ("constexpr_sparse_to_dense", {"nonzero_data": plain(np.ones((1, 2), "f4")), "mask": codes(TWO, 1)}, "sparse"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(kind, inputs, reason):
    with pytest.raises(InvalidFileError, match=reason):
        Decompressor().outputs(kind, inputs)


def test_scales_are_counted_over_all_constants(monkeypatch):
    monkeypatch.setattr(coreml_compression, "MAX_PARAMETERS", 5)
    decompressor = Decompressor()
    inputs = {"data": codes(np.zeros((4, 2)), 8), "scale": plain(np.ones((4, 1), np.float32))}
    decompressor.outputs("constexpr_blockwise_shift_scale", inputs)

    with pytest.raises(InvalidFileError, match="more than 5 scales"):
        decompressor.outputs("constexpr_blockwise_shift_scale", inputs)


def test_constants_are_not_followed_without_end():
    decompressor, steps = Decompressor(), coreml_compression.MAX_STEPS
    constant, scale = codes(TWO, 8), plain(np.full((1, 1), 2, np.float32))
    for _ in range(steps):
        (constant,) = decompressor.outputs("constexpr_blockwise_shift_scale", {"data": constant, "scale": scale})

    np.testing.assert_array_equal(stored_values(constant.tensor), TWO * 2**steps)
    with pytest.raises(InvalidFileError, match="nested too deep"):
        decompressor.outputs("constexpr_blockwise_shift_scale", {"data": constant, "scale": scale})


def test_rows_too_long_to_be_computed_are_refused():
    raw = np.zeros(1 << 22, np.uint8)

    with pytest.raises(InvalidFileError, match="too large a row"):
        make_constant("uint1", (1, (1 << 24) + 1), raw)
