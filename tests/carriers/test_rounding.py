import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_fingerprint.carriers.rounding import round_stochastically
from hf_fingerprint.keys import Stream, derive


COPY_KEY = bytes(range(100, 132))
DTYPES = ["F16", "BF16"]
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}
LARGEST = {"F16": 65504.0, "BF16": 2.0**127}
HALF_STEP = 2.0**-24  # the spacing of subnormal halves


class EveryRandomNumber:
    """In place of a stream: each of the 65,536 random numbers once, so that means come out without sampling error."""

    def take(self, count):
        assert count == 2 << 16
        return np.arange(1 << 16, dtype="<u2").view(np.uint8)


class AlwaysHighest:
    """In place of a stream: the random number that rounds up whatever can be rounded up."""

    def take(self, count):
        return np.full(count, 0xFF, np.uint8)


def neighbors(values, dtype):
    """The numbers of the dtype next below and next above, both the value itself if it is one."""
    exact = torch.from_numpy(values)
    near = exact.to(TORCH[dtype])
    infinity = torch.full_like(near, torch.inf)
    low = torch.where(near.float() > exact, torch.nextafter(near, -infinity), near)
    high = torch.where(near.float() < exact, torch.nextafter(near, infinity), near)
    return low.float().numpy(), high.float().numpy()


def grid(dtype):
    """All finite numbers of the dtype."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(TORCH[dtype]).float().numpy()
    return values[np.isfinite(values)]


@pytest.mark.parametrize(
    ("dtype", "first", "middle", "digest"),
    [
        (
            "BF16",
            "2cb82bb82cb82cb82bb82bb82bb82bb8",
            "83bb44bb04bb83ba0000833a033b453b",
            "46ffe5d62ca8ac1a9b261c6b223e90243bcdebc756c230f135bd4289557785ef",
        ),
        (
            "F16",
            "af82af82ae82ae82ae82ae82ad82ad82",
            "189c259a19981894000018141818251a",
            "bc7cc94cedf27223785bdf74588e28a0b4785eb773a3bf0a21828f0d8618174c",
        ),
    ],
    ids=["BF16", "F16"],
)
def test_rounding_is_golden(dtype, first, middle, digest):
    """The first 64 values are subnormal halves; the others run through 0 from -2 to 2."""
    values = (np.arange(-2048, 2048) / np.float32(1000)).astype(np.float32)
    values[:64] *= np.float32(2e-5)
    rounded = round_stochastically(values, dtype, Stream(derive(COPY_KEY, "rounding", "blocks.0.weight")))
    stored = torch.from_numpy(rounded).to(TORCH[dtype]).view(torch.uint8).numpy()
    assert stored[:16].tobytes().hex() == first
    assert stored[4088:4104].tobytes().hex() == middle
    assert hashlib.sha256(stored.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), key=st.binary(min_size=32, max_size=32))
def test_results_are_on_the_grid_and_next_to_the_value(dtype, data, key):
    elements = st.floats(-LARGEST[dtype], LARGEST[dtype], width=32, allow_nan=False)
    small = st.floats(-(2.0**-13), 2.0**-13, width=32)
    values = data.draw(hnp.arrays(np.float32, (4, 5), elements=elements | small))
    rounded = round_stochastically(values, dtype, Stream(key))
    assert rounded.dtype == np.float32
    assert rounded.shape == values.shape
    np.testing.assert_array_equal(torch.from_numpy(rounded).to(TORCH[dtype]).float().numpy(), rounded)
    low, high = neighbors(values, dtype)
    assert np.all((rounded == low) | (rounded == high))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("BF16", 1.001),
        ("BF16", -0.0314159),
        ("BF16", 2.7e-39),
        ("F16", 1.0003),
        ("F16", -3.14159),
        ("F16", 2.0**-14 * 1.0005),
        ("F16", 1023.4 * HALF_STEP),
        ("F16", -1023.4 * HALF_STEP),
        ("F16", 3.25 * HALF_STEP),
        ("F16", -0.2 * HALF_STEP),
        ("F16", 0.01 * HALF_STEP),
    ],
)
def test_the_mean_over_all_random_numbers_is_the_value(dtype, value):
    values = np.full(1 << 16, value, np.float32)
    rounded = round_stochastically(values, dtype, EveryRandomNumber())
    low, high = neighbors(values[:1], dtype)
    assert set(rounded.tolist()) == {low[0], high[0]}
    assert abs(rounded.mean(dtype=float) - float(values[0])) <= 2.0**-14 * (float(high[0]) - float(low[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mark_far_below_half_a_unit_in_the_last_place_survives_on_average(dtype):
    """Rounding to nearest would lose all of it."""
    weights = grid(dtype)
    weights = np.repeat(weights[(weights > 0.01) & (weights < 1)][:1000], 200)
    mark = np.float32(1 / 32) * (neighbors(weights * np.float32(1.00001), dtype)[1] - weights)
    marked = weights + mark
    assert np.array_equal(torch.from_numpy(marked).to(TORCH[dtype]).float().numpy(), weights)
    kept = (round_stochastically(marked, dtype, Stream(COPY_KEY)) - weights).astype(float) / mark
    assert abs(kept.mean() - 1) < 5 * kept.std() / np.sqrt(len(kept))
    assert kept.std() > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_the_dtype_stay_what_they_are(dtype):
    values = grid(dtype)
    for stream in (AlwaysHighest(), Stream(COPY_KEY)):
        np.testing.assert_array_equal(round_stochastically(values, dtype, stream), values)


def test_single_precision_is_returned_unchanged_and_takes_nothing_from_the_stream():
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    kept = values.copy()
    stream = Stream(COPY_KEY)
    assert round_stochastically(values, "F32", stream) is values
    np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(stream.take(8), Stream(COPY_KEY).take(8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_takes_two_bytes_for_each_value_and_leaves_the_values_alone(dtype):
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    kept = values.copy()
    stream = Stream(COPY_KEY)
    round_stochastically(values, dtype, stream)
    np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(stream.take(8), Stream(COPY_KEY).take(38)[30:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_key_rounds_the_same_and_another_key_otherwise(dtype):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first, again, other = (round_stochastically(values, dtype, Stream(key)) for key in (COPY_KEY, COPY_KEY, bytes(32)))
    np.testing.assert_array_equal(first, again)
    assert 0.25 < (first != other).mean() < 0.42  # one in three: the mean of 2 f (1 - f)
