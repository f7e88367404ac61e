import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.blackbox.key_images.payload import MAX_BITS, coded_bits, decode_payload, encode
from hf_fingerprint.errors import CodeError


# Frozen for ever: a key image made today must be read in ten years.
ENCODED = (
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324254ea214286562a6f73f9ce4c771d24b7b574c102c"
    "7fce5e728f2be1f8dd3a58c9225100708e124dc0faea16ae3183d5a4d5f3202173713ec27240d6b15dec1f35cd8c927cd6c070327f1605cd1426"
    "7fb535e6af8de5963fa9ac6bbe8ca6b3dd"
)


def noisy(signs: np.ndarray, wrong: int, seed: int = 0, certainty: float = 1.0) -> np.ndarray:
    """Flips every bit of `wrong` bytes, and gives these a certainty other than 1."""
    signs = signs.copy().reshape(-1, 8)
    signs[np.random.default_rng(seed).choice(len(signs), wrong, replace=False)] *= -certainty
    return signs.reshape(-1)


def test_the_code_gives_the_golden_vector():
    signs = encode(bytes(range(38)))

    assert np.packbits(signs < 0).tobytes().hex() == ENCODED
    assert set(signs) == {-1.0, 1.0}
    assert len(signs) == coded_bits() == 1064


@given(st.binary(min_size=1, max_size=MAX_BITS // 8))
def test_what_is_encoded_is_decoded(payload):
    signs = encode(payload)

    assert len(signs) == coded_bits(8 * len(payload)) <= 8 * 255
    assert decode_payload(signs, 8 * len(payload)) == payload


@given(st.binary(min_size=38, max_size=38), st.integers(0, 47), st.integers(0, 1000))
def test_a_third_of_the_bytes_may_be_wrong(payload, wrong, seed):
    assert decode_payload(noisy(encode(payload), wrong, seed)) == payload


@given(st.binary(min_size=38, max_size=38), st.integers(48, 62))
def test_more_may_be_if_they_are_read_with_doubt(payload, wrong):
    assert decode_payload(noisy(encode(payload), wrong, certainty=0.1)) == payload


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_taken_for_a_payload(seed):
    assert decode_payload(np.random.default_rng(seed).standard_normal(coded_bits())) is None


def test_nothing_read_is_no_payload_of_zeros():
    assert decode_payload(np.zeros(coded_bits())) is None


@pytest.mark.parametrize("bits", [0, 7, -8, MAX_BITS + 8])
def test_capacities_that_cannot_be_are_refused(bits):
    with pytest.raises(CodeError, match=f"can't carry {bits} bits"):
        coded_bits(bits)
