"""Tensors that are joined from chunks in two dimensions, or from pieces of flat vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.pytorch.sharded_tensors import Chunk, FlatPiece, join_chunks, join_pieces
from tests.helpers.forms import read_tensor


def tensor_of(values: np.ndarray):
    return dense_tensor(np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(-1), "float32", values.shape)


def chunk(whole: np.ndarray, rows: slice, columns: slice) -> Chunk:
    return Chunk((rows.start, columns.start), tensor_of(whole[rows, columns]))


@given(st.integers(1, 9), st.integers(1, 6), st.data())
def test_chunks_in_any_order_make_up_the_tensor(rows, columns, data):
    whole = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    row, column = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    both = ((slice(0, row), slice(row, rows)), (slice(0, column), slice(column, columns)))
    chunks = [chunk(whole, up, across) for up in both[0] for across in both[1]]

    np.testing.assert_array_equal(read_tensor(join_chunks(data.draw(st.permutations(chunks)), whole.shape)), whole)


def test_one_chunk_keeps_its_type():
    only = dense_tensor(np.arange(4, dtype=np.uint8), "int32", (1,))

    assert join_chunks([Chunk((0,), only)], (1,)) is only


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 0)], "missing"),
        ([(0, 0), (3, 0)], "beyond"),
        ([(0, 0), (2, 0), (2, 0)], "missing"),
        ([(0,), (2, 0)], "another shape"),
        ([(0, 0), (1 << 60, 0)], "beyond"),
    ],
)
def test_chunks_that_do_not_make_up_the_tensor_are_refused(places, message):
    half = tensor_of(np.ones((2, 3), np.float32))

    with pytest.raises(InvalidFileError, match=message):
        join_chunks([Chunk(place, half) for place in places], (4, 3))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_pieces_of_flat_vectors_follow_one_another(sizes, columns):
    values = np.arange(100, dtype=np.float32)
    pieces = [FlatPiece(tensor_of(values[10 * k : 10 * k + 10]), 1, size) for k, size in enumerate(sizes)]
    flat = np.concatenate([values[10 * k + 1 : 10 * k + 1 + size] for k, size in enumerate(sizes)])
    rows = len(flat) // columns

    found = join_pieces(pieces, (rows, columns))

    np.testing.assert_array_equal(read_tensor(found), flat[: rows * columns].reshape(rows, columns))
