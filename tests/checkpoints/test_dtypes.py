import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_fingerprint.checkpoints.dtypes import READABLE, SIZES, WRITABLE, from_float32, to_float32


TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def as_torch_reads(raw, dtype):
    return torch.from_numpy(raw.copy()).view(TORCH[dtype]).float().numpy()


def bits(values):
    return values.view(np.uint32)


def test_every_dtype_has_the_size_torch_gives_it():
    assert {name: dtype.itemsize for name, dtype in TORCH.items()} == SIZES


def test_what_can_be_written_can_be_read():
    assert {"F32", "F16", "BF16"} == WRITABLE
    assert WRITABLE < READABLE <= set(SIZES)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_all_256_codes_of_a_float8_read_as_torch_reads_them(dtype):
    """Bit for bit, signed zeros included. Non-finite values only stay non-finite, since extraction drops them."""
    raw = np.arange(256, dtype=np.uint8)
    ours, theirs = to_float32(raw, dtype), as_torch_reads(raw, dtype)
    finite = np.isfinite(theirs)
    assert ours.dtype == np.float32
    assert finite.sum() == {"F8_E4M3": 254, "F8_E5M2": 248}[dtype]
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    np.testing.assert_array_equal(bits(ours[finite]), bits(theirs[finite]))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_codes_of_a_half_read_as_torch_reads_them_and_come_back(dtype):
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    ours, theirs = to_float32(raw, dtype), as_torch_reads(raw, dtype)
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~number)
    np.testing.assert_array_equal(bits(ours[number]), bits(theirs[number]))
    back = from_float32(ours, dtype).view("<u2")
    np.testing.assert_array_equal(back[number], np.arange(1 << 16)[number])


@pytest.mark.parametrize("dtype", sorted(READABLE))
@given(data=st.data())
def test_random_bytes_read_as_torch_reads_them(dtype, data):
    count = data.draw(st.integers(1, 40)) * SIZES[dtype]
    raw = data.draw(hnp.arrays(np.uint8, count))
    ours, theirs = to_float32(raw, dtype), as_torch_reads(raw, dtype)
    assert ours.shape == theirs.shape == (count // SIZES[dtype],)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    np.testing.assert_array_equal(ours[finite], theirs[finite])


@pytest.mark.parametrize("dtype", sorted(WRITABLE))
@given(data=st.data())
def test_writing_gives_the_bytes_that_torch_writes(dtype, data):
    values = data.draw(hnp.arrays(np.float32, (3, 5), elements=st.floats(-60000, 60000, width=16)))
    exact = torch.from_numpy(values).to(TORCH[dtype])
    raw = from_float32(exact.float().numpy(), dtype)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, exact.view(torch.uint8).numpy().reshape(-1))
    np.testing.assert_array_equal(to_float32(raw, dtype), exact.float().numpy().reshape(-1))


def test_values_beyond_single_precision_read_as_infinite_without_a_warning(recwarn):
    raw = np.array([1e300, -1e300, 1.5]).view(np.uint8)
    np.testing.assert_array_equal(to_float32(raw, "F64"), np.float32([np.inf, -np.inf, 1.5]))
    assert not recwarn.list


def test_single_precision_is_read_without_a_copy():
    raw = np.zeros(16, np.uint8)
    assert np.shares_memory(to_float32(raw, "F32"), raw)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read_into_new_memory(dtype):
    """The marker changes the values in place; the block that it was given must not change."""
    raw = np.zeros(16, np.uint8)
    to_float32(raw, dtype)[:] = 1
    assert not raw.any()


def test_values_that_are_not_contiguous_are_written_in_order():
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(from_float32(values, "F32").view("<f4"), values.reshape(-1))
    np.testing.assert_array_equal(from_float32(values, "BF16").view("<u2") >> 7, bits(values.reshape(-1)) >> 23)


@pytest.mark.parametrize("dtype", sorted(READABLE))
def test_an_empty_tensor_reads_as_no_values(dtype):
    values = to_float32(np.empty(0, np.uint8), dtype)
    assert values.shape == (0,)
    assert values.dtype == np.float32
