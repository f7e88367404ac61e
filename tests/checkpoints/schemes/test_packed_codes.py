"""Packed codes are unpacked from any row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.schemes.packed_codes import bit_rows, column_rows, stacked_rows, tiled_rows
from tests.helpers.quantized import packed_bits, stored


def random_codes(bits, shape, seed):
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)


def check_any_rows(found, codes):
    for start in range(0, len(codes), 3):
        for stop in (start + 1, len(codes)):
            np.testing.assert_array_equal(found(start, stop), codes[start:stop])


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_codes_in_the_bits_of_rows(bits, rows, columns, seed):
    codes = random_codes(bits, (rows, columns), seed)

    check_any_rows(bit_rows(stored(packed_bits(codes, bits)), bits, columns), codes)


def test_codes_in_the_bits_of_rows_may_be_signed_or_begin_high():
    byte = stored(np.array([[0x1F]], np.uint8))

    assert bit_rows(byte, 4, 2, signed=True)(0, 1).tolist() == [[-1, 1]]
    assert bit_rows(byte, 4, 2, high_first=True)(0, 1).tolist() == [[1, 15]]


@given(bits=st.integers(1, 8), rows=st.integers(1, 70), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_codes_in_the_bits_of_columns(bits, rows, columns, seed):
    codes = random_codes(bits, (rows, columns), seed)
    packed = np.ascontiguousarray(packed_bits(codes.T, bits).T)

    check_any_rows(column_rows(stored(packed), bits, rows), codes)


@given(bits=st.sampled_from((1, 2, 4, 8)), rows=st.integers(1, 20), high=st.booleans(), seed=st.integers(0, 99))
def test_codes_whose_rows_are_stacked(bits, rows, high, seed):
    codes, parts = random_codes(bits, (rows, 2, 3), seed), 8 // bits
    steps = -(-rows // parts)
    padded = np.concatenate([codes, np.zeros((steps * parts - rows, 2, 3), np.uint8)]).reshape(parts, steps, 2, 3)
    shifts = bits * (np.arange(parts)[::-1] if high else np.arange(parts)).astype(np.uint8)
    packed = np.bitwise_or.reduce(padded << shifts[:, None, None, None], 0)

    check_any_rows(stacked_rows(stored(packed), bits, rows, high), codes)


def test_ten_codes_of_three_bits_are_stacked_in_an_integer_of_32():
    codes = random_codes(3, (20, 2), 0)
    packed = sum(codes[2 * part : 2 * part + 2].astype(np.int32) << 3 * (9 - part) for part in range(10))

    check_any_rows(stacked_rows(stored(packed.astype(np.int32)), 3, 20, high_first=True), codes)


@pytest.mark.parametrize("inner", [2, 4, 8])
def test_codes_in_tiles(inner):
    """The layout is written out as in PyTorch's kernel: lane by lane."""
    codes = random_codes(4, (16, inner * 32), inner)
    packed = np.zeros((2, 2, 32, inner // 2), np.uint32)
    for block, outer, lane, pair in np.ndindex(packed.shape):
        first = (outer * inner + 2 * pair) * 16 + lane % 4 * 2
        columns = [first, first + 8, first + 16, first + 24, first + 1, first + 9, first + 17, first + 25]
        for place, column in enumerate(columns):
            packed[block, outer, lane, pair] |= int(codes[block * 8 + lane // 4, column]) << (4 * place)

    found, shape = tiled_rows(stored(packed.view(np.int32)))

    assert shape == codes.shape
    check_any_rows(found, codes)


@pytest.mark.parametrize(
    "unpack",
    [
        lambda: bit_rows(stored(np.zeros((2, 2), np.uint8)), 4, 5),
        lambda: bit_rows(stored(np.zeros((2, 2), np.uint8)), 0, 1),
        lambda: bit_rows(stored(np.zeros((2, 2), np.uint8)), 9, 1),
        lambda: column_rows(stored(np.zeros((2, 2), np.int32)), 4, 17),
        lambda: column_rows(stored(np.zeros((2, 2), np.int8)), 4, 4),
        lambda: stacked_rows(stored(np.zeros((2, 2), np.uint8)), 4, 5),
        lambda: stacked_rows(stored(np.zeros((2, 2), np.uint8)), 0, 1),
        lambda: tiled_rows(stored(np.zeros((1, 1, 31, 4), np.int32))),
        lambda: tiled_rows(stored(np.zeros((1, 1, 32, 5), np.int32))),
    ],
)
def test_too_few_bytes_are_refused_before_they_are_read(unpack):
    with pytest.raises(InvalidFileError):
        unpack()
