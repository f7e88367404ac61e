"""Tensors that are dequantized as they are read."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats.computed_tensors import (
    dequantize,
    look_up,
    packed_rows,
    stored_rows,
    stored_values,
)
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file, slice_bytes


def values_of(tensor, start=0, stop=None):
    return tensor.read(start, stop).view(np.float32)


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 9),
    signed=st.booleans(),
    high_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_codes_are_unpacked_from_any_row(bits, rows, columns, signed, high_first, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns))
    each = (codes.reshape(-1, 1) >> np.arange(bits)[:: -1 if high_first else 1]) & 1
    raw = np.packbits(each.astype(np.uint8).reshape(-1), bitorder="big" if high_first else "little")
    expected = codes - ((codes >> (bits - 1)) << bits) if signed else codes

    found = packed_rows(raw, bits, (rows, columns), signed, high_first)

    for start in range(rows):
        np.testing.assert_array_equal(found(start, rows), expected[start:])
        np.testing.assert_array_equal(found(start, start + 1), expected[start : start + 1])


def test_too_few_packed_bytes_are_refused():
    with pytest.raises(InvalidFileError, match="too few bytes"):
        packed_rows(np.zeros(3, np.uint8), 4, (7, 1))


@pytest.mark.parametrize(
    ("scales", "blocks"),
    [((), None), ((1, 1), None), ((6, 1), None), ((1, 8), None), ((6, 2), None), ((3, 4), None), ((6, 3), (1, 3))],
)
def test_scales_may_be_of_a_tensor_a_channel_or_a_block(scales, blocks):
    random = np.random.default_rng(0)
    codes = random.integers(-128, 128, (6, 8)).astype(np.int8)
    scale, zero = random.random(scales).astype(np.float32), random.integers(-9, 9, scales)
    wide_scale, wide_zero = np.asarray(scale), np.asarray(zero)
    for axis in range(len(scales)):
        block = blocks[axis] if blocks else -(-codes.shape[axis] // scales[axis])
        wide_scale = np.repeat(wide_scale, block, axis)
        wide_zero = np.repeat(wide_zero, block, axis)
    if scales:
        wide_scale, wide_zero = wide_scale[:6, :8], wide_zero[:6, :8]
    expected = (codes - wide_zero.astype(np.float32)) * wide_scale

    rows = stored_rows(dense_tensor(codes.reshape(-1).view(np.uint8), "int8", (6, 8)))
    tensor = dequantize(rows, (6, 8), scale, zero, blocks=blocks)

    assert (tensor.dtype, tensor.shape, tensor.nbytes, tensor.unreadable_reason()) == ("float32", (6, 8), 192, None)
    np.testing.assert_array_equal(values_of(tensor).reshape(6, 8), expected)
    np.testing.assert_array_equal(values_of(tensor, 36, 100), expected.reshape(-1)[9:25])


@pytest.mark.parametrize("scales", [(6,), (7, 1), (0, 1), (6, 16), (6, 2, 1)])
def test_scales_of_another_shape_are_refused(scales):
    with pytest.raises(InvalidFileError, match="another shape"):
        dequantize(lambda start, stop: np.zeros((stop - start, 8)), (6, 8), np.ones(scales))


def test_blocks_that_do_not_cover_the_codes_are_refused():
    with pytest.raises(InvalidFileError, match="another shape"):
        dequantize(lambda start, stop: np.zeros((stop - start, 8)), (6, 8), np.ones((6, 2)), blocks=(1, 3))


def test_codes_beyond_a_table_give_nan():
    codes = np.array([[0, 1], [2, 3]], np.uint8)

    found = values_of(look_up(lambda a, b: codes[a:b], (2, 2), np.array([0.5, -1.0, 2.0]), "palette"))

    np.testing.assert_array_equal(found, np.array([0.5, -1.0, 2.0, np.nan], np.float32))


def test_a_file_is_mapped_and_ends_where_it_ends(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    (tmp_path / "empty").write_bytes(b"")

    data = map_file(tmp_path / "file")

    assert slice_bytes(data, 1, 2).tobytes() == b"bc"
    assert not data.flags.writeable
    assert len(map_file(tmp_path / "empty")) == 0
    for start, count in [(3, 2), (-1, 1), (0, -1)]:
        with pytest.raises(InvalidFileError):
            slice_bytes(data, start, count)


def test_scalars_and_unreadable_tensors():
    assert stored_values(dense_tensor(np.float16([1.5]).view(np.uint8), "float16", ())) == np.float32(1.5)
    with pytest.raises(InvalidFileError, match="dtype string"):
        stored_rows(dense_tensor(np.zeros(4, np.uint8), "string", (4,)))
    with pytest.raises(InvalidFileError, match="larger than its storage"):
        stored_rows(dense_tensor(np.zeros(4, np.uint8), "float32", (2,)))


def test_blocks_take_no_memory_before_they_are_read():
    """A file may have many tensors that share one memory of codes."""
    codes = packed_rows(np.zeros(1 << 20, np.uint8), 8, (1 << 20, 1))
    scales = np.ones((1 << 19, 1), np.float32)

    tracemalloc.start()
    tensors = [dequantize(codes, (1 << 20, 1), scales) for _ in range(100)]
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert len(tensors) == 100
    assert taken < 1 << 20
