"""The walk over protobuf's wire format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats import protobuf
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.protobuf import Message, first_numbers
from tests.helpers.wire import varint


def field(number, wire, content):
    return varint(number << 3 | wire) + (varint(len(content)) if wire == 2 else b"") + content


def message(*parts):
    return Message(np.frombuffer(b"".join(parts), np.uint8))


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1))
def test_numbers_are_read_packed_or_not(numbers):
    packed = message(field(8, 2, b"".join(map(varint, numbers))))
    single = message(*(field(8, 0, varint(number)) for number in numbers))

    assert packed.integers(8) == single.integers(8) == numbers
    assert single.integer(8) == numbers[-1]


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1), st.integers(1, 40))
def test_many_numbers_are_decoded_in_pieces(numbers, piece):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(protobuf, "_PIECE", max(piece, 10))
        found = message(field(5, 2, b"".join(map(varint, numbers))), field(5, 0, varint(numbers[0])))

        np.testing.assert_array_equal(found.varints(5, "<i8", len(numbers) + 1), [*numbers, numbers[0]])
        narrow = found.varints(5, "<i2", len(numbers) + 1)
        np.testing.assert_array_equal(narrow, np.int64([*numbers, numbers[0]]).astype(np.int16))
        with pytest.raises(InvalidFileError, match="more numbers"):
            found.varints(5, "<i8", len(numbers))


@pytest.mark.parametrize("raw", [b"\xff" * 11 + b"\x01", b"\x01\xff", b"\xff" * 20])
def test_numbers_that_are_cut_off_or_too_long_are_refused(raw):
    with pytest.raises(InvalidFileError):
        message(field(5, 2, raw)).varints(5, "<i8", 100)


def test_each_kind_of_field_is_found_by_its_number():
    inner = field(1, 2, b"name") + field(2, 5, np.float32([1.5]).tobytes())
    values = np.float32([1, 2, 3])
    found = message(
        field(3, 2, inner), field(3, 2, b""), field(4, 2, values.tobytes()), field(5, 1, np.float64([2.5]).tobytes())
    )

    first, second = found.messages(3)
    assert (first.text(1), first.real(2), first.text(7)) == ("name", 1.5, "")
    assert second.numbers == set()
    assert found.message(9) is None
    assert found.numbers == {3, 4, 5}
    assert 3 in found and 9 not in found
    np.testing.assert_array_equal(found.floats(4), values)
    np.testing.assert_array_equal(found.doubles(5), [2.5])
    assert len(found.floats(9)) == 0


def test_bytes_are_views_of_the_file():
    raw = np.frombuffer(field(1, 2, b"weights"), np.uint8)

    content = Message(raw).content(1)

    assert np.shares_memory(content, raw)
    assert bytes(content) == b"weights"


@pytest.mark.parametrize(
    "raw",
    [b"\x0a\x05abc", b"\x80" * 11, b"\x0b", b"\x09abc", b"\x02\x00", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\x7f"],
)
def test_what_is_cut_off_or_no_message_is_refused(raw):
    with pytest.raises(InvalidFileError, match="cut off or damaged"):
        message(raw)


def test_fields_are_counted_over_all_messages_of_a_file(monkeypatch):
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 10)
    found = message(*[field(1, 2, field(1, 0, b"\x01") * 2)] * 5)

    with pytest.raises(InvalidFileError, match="more than 10 fields"):
        for inner in found.messages(1):
            inner.integers(1)


def test_the_first_fields_are_known_without_reading_the_rest():
    raw = np.frombuffer(field(1, 0, b"\x08") + field(2, 2, b"ab") + field(502, 2, b"\xff" * 9) + b"\xff", np.uint8)

    assert first_numbers(raw, 2) == [1, 2]
    assert first_numbers(raw, 9) == [1, 2, 502]
    assert first_numbers(raw[:4], 9) == [1]
