import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.carriers import TensorProjection, fold, position_counts
from hf_fingerprint.keys import Stream, derive


SECRET = bytes(range(32))
NAME = "blocks.0.weight"
LENGTHS = st.sampled_from([8, 16, 64, 72, 128])


def dense(secret, name, length, weights):
    """X by its definition, one column at a time: the reference that the streaming passes must agree with."""
    offset = int.from_bytes(Stream(derive(secret, "offset", name)).take(8).tobytes(), "little") % (length // 8) * 8
    stream = Stream(derive(secret, "signs", name)).take(-(-weights // 8)).tolist()
    matrix = np.zeros((length, weights))
    for k in range(weights):
        bit = stream[k // 8] >> (7 - k % 8) & 1
        matrix[(offset + k) % length, k] = 1 - 2 * bit
    return matrix


def read(values, secret=SECRET, name=NAME, length=64):
    out = np.zeros(length)
    TensorProjection(secret, name, length).read(np.float32(values).reshape(1, -1), out)
    return out


def mark(weights, codeword, amplitude=1.0, secret=SECRET, name=NAME):
    """a * X^T b, written onto a tensor of a value so big that no weight is 0, and taken off again."""
    values = np.full((1, weights), 64, np.float32)
    packed = np.packbits(codeword > 0)
    TensorProjection(secret, name, len(codeword)).write(values, np.float32([amplitude]), packed)
    return values[0] - 64


@st.composite
def cuts(draw, most=200):
    """A count of weights and a split of them in blocks that all but the last hold a multiple of 8."""
    weights = draw(st.integers(1, most))
    inner = draw(st.lists(st.integers(1, max(weights // 8, 1)), max_size=4))
    return weights, sorted({0, weights, *(8 * i for i in inner if 8 * i < weights)})


def codewords(length, seed):
    return np.random.default_rng(seed).choice([-1.0, 1.0], length)


def test_offset_and_signs_are_golden():
    projection = TensorProjection(SECRET, NAME, 4096)
    assert projection.offset == 2168
    signs = np.roll(read(np.ones(4096), length=4096), -2168)
    np.testing.assert_array_equal(signs[:16], [-1, 1, 1, -1, -1, 1, -1, -1, -1, -1, -1, -1, 1, 1, -1, -1])
    assert (
        hashlib.sha256(np.packbits(signs > 0).tobytes()).hexdigest()
        == "fa3dfa06bf7dfbe076c613c034adf11c695c7bd692d998a28784620028574610"
    )


@given(LENGTHS, st.integers(1, 300), st.text(max_size=8), st.binary(min_size=32, max_size=32))
def test_reading_is_multiplying_by_the_matrix_as_defined(length, weights, name, secret):
    values = np.random.default_rng(weights).standard_normal(weights).astype(np.float32)
    matrix = dense(secret, name, length, weights)
    np.testing.assert_allclose(read(values, secret, name, length), matrix @ values.astype(float), atol=1e-4)


@given(LENGTHS, st.integers(1, 300), st.text(max_size=8))
def test_writing_is_multiplying_by_the_transpose(length, weights, name):
    codeword = codewords(length, weights)
    matrix = dense(SECRET, name, length, weights)
    np.testing.assert_array_equal(mark(weights, codeword, 0.5, name=name), 0.5 * matrix.T @ codeword)


@given(st.sampled_from([8, 16, 64]), st.integers(1, 120))
@settings(max_examples=50)
def test_rows_are_orthogonal_with_the_counts_on_the_diagonal(length, weights):
    """X as the package itself applies it, built column by column from unit vectors."""
    matrix = np.stack([read(unit, length=length) for unit in np.eye(weights)], axis=1)
    counts = position_counts(weights, TensorProjection(SECRET, NAME, length).offset, length)
    np.testing.assert_array_equal(matrix @ matrix.T, np.diag(counts))
    np.testing.assert_array_equal(np.abs(matrix).sum(axis=0), 1)


@given(LENGTHS, st.integers(1, 400))
def test_what_is_written_reads_as_the_codeword_times_the_counts(length, weights):
    codeword = codewords(length, weights)
    counts = position_counts(weights, TensorProjection(SECRET, NAME, length).offset, length)
    assert counts.sum() == weights
    np.testing.assert_array_equal(read(mark(weights, codeword), length=length), codeword * counts)


@given(LENGTHS, st.integers(1, 300), st.integers(0, 2**32))
def test_write_is_the_adjoint_of_read(length, weights, seed):
    difference = np.random.default_rng(seed).standard_normal(weights).astype(np.float32)
    codeword = codewords(length, seed)
    forward = read(difference, length=length) @ codeword
    backward = difference.astype(float) @ mark(weights, codeword).astype(float)
    np.testing.assert_allclose(forward, backward, atol=1e-3)


@given(LENGTHS, cuts(), st.integers(0, 2**32))
def test_reading_adds_up_over_blocks(length, split, seed):
    weights, ends = split
    values = np.random.default_rng(seed).integers(-9, 10, weights).astype(np.float32)
    projection, sums = TensorProjection(SECRET, NAME, length), np.zeros(length)
    for start, stop in itertools.pairwise(ends):
        projection.read(values[None, start:stop].copy(), sums)
    np.testing.assert_array_equal(sums, read(values, length=length))


@given(LENGTHS, cuts(), st.integers(0, 2**32))
def test_writing_in_blocks_is_writing_at_once(length, split, seed):
    weights, ends = split
    codeword = codewords(length, seed)
    projection, written = TensorProjection(SECRET, NAME, length), np.full(weights, 64, np.float32)
    for start, stop in itertools.pairwise(ends):
        projection.write(written[None, start:stop], np.float32([1]), np.packbits(codeword > 0))
    np.testing.assert_array_equal(written - 64, mark(weights, codeword))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(0, 2**32))
def test_reading_adds_up_over_tensors(sizes, seed):
    """The matrix of a model is the matrices of its tensors side by side."""
    rng = np.random.default_rng(seed)
    tensors = {f"layer.{i}.weight": rng.integers(-9, 10, size).astype(np.float32) for i, size in enumerate(sizes)}
    sums = np.zeros(64)
    for name, values in tensors.items():
        TensorProjection(SECRET, name, 64).read(values[None].copy(), sums)
    matrix = np.concatenate([dense(SECRET, name, 64, len(values)) for name, values in tensors.items()], axis=1)
    np.testing.assert_array_equal(sums, matrix @ np.concatenate(list(tensors.values())))


def test_each_row_is_marked_with_its_own_amplitude():
    amplitude = np.float32([0.5, 0.25, 2, 0])
    values = np.full((4, 6), 64, np.float32)
    TensorProjection(SECRET, NAME, 64).write(values, amplitude, np.packbits(codewords(64, 0) > 0))
    np.testing.assert_array_equal(np.abs(values - 64), np.broadcast_to(amplitude[:, None], (4, 6)))


@given(st.integers(0, 2**32))
def test_weights_that_are_zero_stay_zero_and_the_others_are_marked_all_the_same(seed):
    values = np.random.default_rng(seed).choice(np.float32([0, -0.0, 64]), (5, 16))
    marked = values.copy()
    codeword = codewords(64, seed)
    TensorProjection(SECRET, NAME, 64).write(marked, np.ones(5, np.float32), np.packbits(codeword > 0))
    np.testing.assert_array_equal(marked == 0, values == 0)
    expected = np.where(values == 0, 0, values + mark(80, codeword).reshape(5, 16))
    np.testing.assert_array_equal(marked, expected)


def test_flipping_the_codeword_flips_the_mark():
    codeword = codewords(64, 1)
    np.testing.assert_array_equal(mark(200, codeword), -mark(200, -codeword))


def test_other_secrets_and_other_tensors_read_other_things():
    codeword = codewords(4096, 2)
    written = mark(40960, codeword)
    right = read(written, length=4096) @ codeword
    assert right == 40960
    for secret, name in [(bytes(32), NAME), (SECRET, "blocks.1.weight")]:
        assert abs(read(written, secret, name, 4096) @ codeword) < 6 * np.sqrt(40960)


def test_signs_are_balanced():
    assert abs(read(np.ones(1 << 16), length=1 << 16).sum()) < 6 * (1 << 8)


def test_offsets_vary_with_the_name_and_leave_whole_bytes():
    offsets = {TensorProjection(SECRET, f"layer.{i}", 4096).offset for i in range(200)}
    assert len(offsets) > 150
    assert all(offset % 8 == 0 and 0 <= offset < 4096 for offset in offsets)
    assert {TensorProjection(SECRET, f"layer.{i}", 8).offset for i in range(20)} == {0}


def test_the_codeword_given_is_left_alone():
    packed = np.packbits(codewords(64, 3) > 0)
    kept = packed.copy()
    TensorProjection(SECRET, NAME, 64).write(np.ones((2, 40), np.float32), np.ones(2, np.float32), packed)
    np.testing.assert_array_equal(packed, kept)


def test_long_sums_are_kept_in_double_precision():
    """A position collects many blocks: 2^26 and then ones would be lost in single precision."""
    out = np.full(64, float(1 << 26))
    TensorProjection(SECRET, NAME, 64).read(np.ones((1, 64), np.float32), out)
    np.testing.assert_array_equal(np.abs(out - (1 << 26)), 1)


@given(st.integers(1, 50), st.integers(0, 300), st.data())
def test_fold_is_adding_at_positions_around_and_around(length, count, data):
    start = data.draw(st.integers(0, length - 1))
    values = np.random.default_rng(count).integers(-9, 10, count).astype(np.float32)
    out, expected = np.ones(length), np.ones(length)
    fold(values, start, out)
    np.add.at(expected, (start + np.arange(count)) % length, values)
    np.testing.assert_array_equal(out, expected)


@given(st.integers(0, 500), st.integers(0, 11), st.sampled_from([8, 16, 96]))
def test_position_counts_are_what_folding_ones_gives(weights, eighths, length):
    offset = 8 * eighths % length
    expected = np.zeros(length)
    fold(np.ones(weights), offset, expected)
    counts = position_counts(weights, offset, length)
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("shape", [(1, 0), (0, 5), (3, 0)])
def test_an_empty_block_changes_nothing(shape):
    projection, out = TensorProjection(SECRET, NAME, 64), np.zeros(64)
    projection.read(np.empty(shape, np.float32), out)
    projection.read(np.ones((1, 64), np.float32), out)
    np.testing.assert_array_equal(out, read(np.ones(64)))
