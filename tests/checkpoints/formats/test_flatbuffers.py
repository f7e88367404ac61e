"""The walk over FlatBuffers' wire format."""

from contextlib import suppress
from struct import pack_into

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats import flatbuffers
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from tests.helpers.flatbuffers import flatbuffer


FIELDS = {
    0: ("<b", -3),
    1: "name",
    3: {0: ("<Q", 1 << 40), 1: ("<f", 1.5)},
    4: [{0: ("<i", 7)}, {}],
    5: ["a", "b"],
    6: np.int64([5, -6]),
    7: b"weights",
}


def root(fields):
    return FlatTable.root(np.frombuffer(flatbuffer(fields, b"TEST"), np.uint8))


def visit(table):
    """Everything in a file of these fields."""
    inner = table.table(3)
    return (
        table.integer(0, "<b"),
        table.text(1),
        inner and (inner.integer(0, "<Q"), inner.real(1)),
        [each.integer(0) for each in table.tables(4)],
        table.texts(5),
        table.numbers(6, "<i8").tolist(),
        None if (content := table.content(7)) is None else bytes(content),
    )


def test_each_kind_of_field_is_found_by_its_slot():
    assert visit(root(FIELDS)) == (-3, "name", (1 << 40, 1.5), [7, 0], ["a", "b"], [5, -6], b"weights")


def test_absent_fields_have_defaults():
    table = root({2: ("<i", 1)})

    assert visit(table) == (0, "", None, [], [], [], None)
    assert (table.integer(0, default=-1), table.integer(9, default=-1), table.real(1, default=2.0)) == (-1, -1, 2.0)


def test_bytes_and_numbers_are_views_of_the_file():
    data = np.frombuffer(flatbuffer(FIELDS, b"TEST"), np.uint8)
    table = FlatTable.root(data)

    assert np.shares_memory(table.content(7), data)
    assert np.shares_memory(table.numbers(6, "<i8"), data)


def test_a_long_text_is_cut():
    assert root({0: "x" * 10_000}).text(0) == "x" * 4_096


@given(st.data())
def test_a_damaged_file_is_an_error_or_read_within_its_bytes(data):
    raw = bytearray(flatbuffer(FIELDS, b"TEST"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 4))
        pack_into("<I", raw, at, data.draw(st.sampled_from([0, 1, 4, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0])))
    damaged = np.frombuffer(bytes(raw[: data.draw(st.integers(0, len(raw)))]), np.uint8)
    with suppress(InvalidFileError):
        visit(FlatTable.root(damaged))


def test_a_table_may_not_begin_before_the_file():
    raw = bytearray(flatbuffer({0: ("<i", 1)}, b"TEST"))
    at = int.from_bytes(raw[:4], "little")
    pack_into("<i", raw, at, 1_000)

    with pytest.raises(InvalidFileError, match="cut off"):
        FlatTable.root(np.frombuffer(bytes(raw), np.uint8))


def test_one_table_can_not_be_visited_forever(monkeypatch):
    monkeypatch.setattr(flatbuffers, "MAX_VISITED", 100)

    with pytest.raises(InvalidFileError, match="more than 100 fields"):
        list(root({0: [{}] * 30}).tables(0))
    with pytest.raises(InvalidFileError, match="more than 100 fields"):
        root({0: np.zeros(10_000, np.float32)}).numbers(0, "<f4")
