import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.wire import HEADER_BYTES, MAGIC, MessageKind, pack, unpack


@given(
    kind=st.sampled_from(MessageKind),
    step=st.integers(0, 2**40),
    numbers=arrays("float32", array_shapes(min_dims=1, max_dims=4, max_side=5)),
)
def test_a_message_says_what_was_put_in_and_nothing_else(kind, step, numbers):
    message = pack(kind, step, torch.from_numpy(numbers))

    got_kind, got_step, tensor = unpack(message)

    assert (got_kind, got_step) == (kind, step)
    assert tensor.numpy().tobytes() == numbers.tobytes()
    assert tensor.shape == numbers.shape
    assert len(message) == HEADER_BYTES + 4 * numbers.size
    assert message[HEADER_BYTES:] == numbers.tobytes()


def test_the_header_is_as_written_down():
    message = pack(MessageKind.GRADIENTS, 5, torch.zeros((2, 3)))

    assert struct.unpack("<8s8q", message[:HEADER_BYTES]) == (b"hffpwir1", 3, 5, 2, 2, 3, 0, 0, 24)
    assert int.from_bytes(b"hffpwir1", "little") == MAGIC


def header(*numbers: int) -> bytes:
    return struct.pack("<9q", *numbers)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x" * HEADER_BYTES,
        pack(MessageKind.OUTPUTS, 1, torch.zeros(4))[:-1],
        pack(MessageKind.OUTPUTS, 1, torch.zeros(4)) + b"x",
        header(MAGIC, 4, 0, 1, 1, 0, 0, 0, 4) + bytes(4),
        header(MAGIC, 1, 0, 5, 1, 0, 0, 0, 4) + bytes(4),
        header(MAGIC, 1, 0, 1, -1, 0, 0, 0, -4),
        header(MAGIC, 1, 0, 1, 1, 1, 0, 0, 4) + bytes(4),
        header(MAGIC, 1, 0, 1, 2**60, 0, 0, 0, 4) + bytes(4),
    ],
)
def test_anything_else_is_refused_in_a_sentence(message):
    with pytest.raises(FingerprintError, match=r"(check both sides' versions|it was cut off)\."):
        unpack(message)


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_be_refused(message):
    with pytest.raises(FingerprintError):
        unpack(message)


def test_a_tensor_of_too_many_axes_is_refused():
    with pytest.raises(FingerprintError, match="can't hold a tensor of 5 axes"):
        pack(MessageKind.FEATURES, 0, torch.zeros((1, 1, 1, 1, 1)))
