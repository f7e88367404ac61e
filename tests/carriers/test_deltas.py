import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.carriers import DenseDelta, MarkDelta, TensorProjection, TensorUpdate, position_counts
from hf_fingerprint.checkpoints.dtypes import SIZES, from_float32, to_float32


SECRET = bytes(range(32))
COPY_KEY = bytes(range(100, 132))
NAME = "blocks.0.weight"
LENGTH = 64
DTYPES = ["F32", "F16", "BF16"]
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODEWORD = np.random.default_rng(5).integers(0, 256, LENGTH // 8, dtype=np.uint8)
SIGNS = 2.0 * np.unpackbits(CODEWORD) - 1


def tensor(rows, columns, dtype, seed=0):
    """Weights that are exact in the dtype, and the amplitude of each row, about a hundredth of them."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32)).to(TORCH[dtype])
    return values.float().numpy(), rng.uniform(0.005, 0.02, rows).astype(np.float32)


def marked(values, amplitude, dtype, ends=None, copy_key=COPY_KEY, codeword=CODEWORD, name=NAME):
    update = TensorUpdate(copy_key, name, dtype, values.shape[1], [MarkDelta(SECRET, name, amplitude, codeword)])
    ends = [0, len(values)] if ends is None else ends
    raw = from_float32(values.copy(), dtype)
    row_bytes = values.shape[1] * SIZES[dtype]
    for start, stop in itertools.pairwise(ends):
        update(raw[start * row_bytes : stop * row_bytes])
    return raw


@st.composite
def cut_rows(draw):
    rows = draw(st.integers(1, 60))
    inner = draw(st.lists(st.integers(1, 8), max_size=3))
    return rows, sorted({0, rows, *(8 * i for i in inner if 8 * i < rows)})


@pytest.mark.parametrize("dtype", DTYPES)
@given(split=cut_rows(), columns=st.integers(2, 13), seed=st.integers(0, 2**32))
def test_marking_in_blocks_of_8_rows_gives_the_same_bytes_as_in_one(dtype, split, columns, seed):
    rows, ends = split
    values, amplitude = tensor(rows, columns, dtype, seed)
    whole = marked(values, amplitude, dtype)
    assert whole.dtype == np.uint8
    assert len(whole) == rows * columns * SIZES[dtype]
    np.testing.assert_array_equal(marked(values, amplitude, dtype, ends), whole)


@given(seed=st.integers(0, 2**32))
def test_in_single_precision_every_weight_moves_by_the_amplitude_of_its_row(seed):
    values, amplitude = tensor(24, 10, "F32", seed)
    difference = to_float32(marked(values, amplitude, "F32"), "F32").reshape(24, 10).astype(float) - values
    np.testing.assert_allclose(np.abs(difference), np.broadcast_to(amplitude[:, None], (24, 10)), atol=3e-7)
    signs = np.sign(difference)
    assert 0.3 < (signs > 0).mean() < 0.7


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mark_reads_back_as_the_codeword(dtype):
    """Stochastic rounding keeps the mark in the mean even where it is a small part of a unit in the last place."""
    values, amplitude = tensor(400, 160, dtype)
    amplitude *= {"F32": 1, "F16": 0.01, "BF16": 0.1}[dtype]
    difference = to_float32(marked(values, amplitude, dtype), dtype).reshape(values.shape) - values
    projection, signal = TensorProjection(SECRET, NAME, LENGTH), np.zeros(LENGTH)
    counts = position_counts(values.size, projection.offset, LENGTH)
    projection.read(difference / amplitude[:, None], signal)
    noise = {"F32": 0.001, "F16": 0.2, "BF16": 0.3}[dtype]
    np.testing.assert_allclose(signal / counts, SIGNS, atol=noise)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_marked_weight_is_within_a_unit_in_the_last_place_of_the_exact_mark(dtype):
    values, amplitude = tensor(40, 16, dtype)
    exact = to_float32(marked(values, amplitude, "F32"), "F32").reshape(40, 16)
    rounded = to_float32(marked(values, amplitude, dtype), dtype).reshape(40, 16)
    unit = 2.0 ** np.floor(np.log2(np.abs(exact))) * {"F16": 2.0**-10, "BF16": 2.0**-7}[dtype]
    assert np.all(np.abs(rounded - exact) < unit)
    assert not np.array_equal(rounded, exact)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_other_copy_keys_round_otherwise_though_the_codeword_is_the_same(dtype):
    values, amplitude = tensor(40, 16, dtype)
    first, again = (marked(values, amplitude, dtype) for _ in range(2))
    other = marked(values, amplitude, dtype, copy_key=bytes(32))
    np.testing.assert_array_equal(first, again)
    differing = (to_float32(first, dtype) != to_float32(other, dtype)).mean()
    assert 0.1 < differing < 0.5


def test_in_single_precision_the_copy_key_changes_nothing():
    values, amplitude = tensor(40, 16, "F32")
    np.testing.assert_array_equal(
        marked(values, amplitude, "F32"), marked(values, amplitude, "F32", copy_key=bytes(32))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_codewords_and_names_mark_otherwise(dtype):
    values, amplitude = tensor(40, 16, dtype)
    first = to_float32(marked(values, amplitude, dtype), dtype)
    for other in ({"codeword": ~CODEWORD}, {"name": "blocks.1.weight"}):
        assert (first != to_float32(marked(values, amplitude, dtype, **other), dtype)).mean() > 0.3


def test_the_opposite_codeword_moves_every_weight_the_other_way():
    values, amplitude = tensor(40, 16, "F32")
    up, down = (to_float32(marked(values, amplitude, "F32", codeword=c), "F32") for c in (CODEWORD, ~CODEWORD))
    np.testing.assert_allclose((up.astype(float) + down) / 2, values.reshape(-1), atol=3e-7)
    assert not np.any(up == down)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_marked_in_place_and_nothing_else(dtype):
    values, amplitude = tensor(16, 8, dtype)
    raw = np.concatenate([from_float32(values.copy(), dtype), np.full(32, 0xAB, np.uint8)])
    block = raw[:-32]
    TensorUpdate(COPY_KEY, NAME, dtype, 8, [MarkDelta(SECRET, NAME, amplitude, CODEWORD)])(block)
    np.testing.assert_array_equal(block, marked(values, amplitude, dtype))
    assert not np.array_equal(block, from_float32(values, dtype))
    np.testing.assert_array_equal(raw[-32:], 0xAB)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruned_weights_stay_pruned(dtype):
    values, amplitude = tensor(40, 16, dtype)
    pruned = np.random.default_rng(1).random(values.shape) < 0.5
    values[pruned] = 0
    result = to_float32(marked(values, amplitude, dtype), dtype).reshape(values.shape)
    assert np.all(result[pruned] == 0)
    assert (result[~pruned] != values[~pruned]).mean() > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_amplitude_zero_are_copied_bit_for_bit(dtype):
    values, amplitude = tensor(16, 8, dtype)
    amplitude[3] = 0
    result = to_float32(marked(values, amplitude, dtype), dtype).reshape(16, 8)
    np.testing.assert_array_equal(result[3], values[3])
    assert np.any(result[4] != values[4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_deltas_are_added_in_order_to_the_rows_they_belong_to(dtype):
    values, amplitude = tensor(16, 8, dtype)
    delta = np.random.default_rng(2).standard_normal(values.shape).astype(np.float32)
    raw = from_float32(values.copy(), dtype)
    update = TensorUpdate(COPY_KEY, NAME, dtype, 8, [DenseDelta(delta), MarkDelta(SECRET, NAME, amplitude, CODEWORD)])
    for block in np.split(raw, 2):
        update(block)
    if dtype == "F32":
        np.testing.assert_array_equal(raw, marked(values + delta, amplitude, dtype))
    moved = to_float32(raw, dtype).reshape(16, 8) - values
    np.testing.assert_allclose(np.abs(moved - delta), np.broadcast_to(amplitude[:, None], (16, 8)), atol=0.06)
