import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_fingerprint
from hf_fingerprint import keys
from hf_fingerprint.keys import SECRET_BYTES, Stream, commitment, derive, new_secret


SECRET = bytes(range(32))
CONTENT = "ab" * 32

# Frozen forever: a copy issued today must trace in ten years. Never edit one; a change is a new version next to it.
DERIVED = {
    ("signs", "blocks.0.weight"): "7678cad4e33f9e9c99337d540db56a9f8fb15374f126aed1a8aa5d2aeed01d1d",
    ("offset", "blocks.0.weight"): "73b6de3d0aced0fef46a51dc3ee172422d5430541e759c74116cfb316072b3c8",
    ("rounding", "blocks.0.weight"): "5e828d0104819f30c16eaa6b10bf07aca6fb233481fed4a76a00bafb20236d12",
    ("biases", "tardos"): "a21ee2b0b07c4a0e282885098f175e812083cfac838d15f3af83f93590ec5acb",
    ("codeword", "tardos"): "5985d1e496e7fa9c49d905bd6e5213552a549cd7406f1fcdc78edce005200785",
    ("codeword", "fair_signs"): "26a4d790c975b44bd5c626807317027eed330c9128fcb46ae76f437019cebd96",
    ("gaussian", "conv.weight"): "985f1281b8d3145a9022662e53c8ae3921be70656ea4859a4066023183cc89c4",
    ("orthonormal", ""): "3a6792ab6c28fc6570a8b4d6cbe429ea9270dd2a0075b1f23052c7c0387884f8",
    ("base", ""): "d5f6e134daf4c8232fbfa9a0dc29ba6265033316deb53502a05128779b7be3fb",
    ("record", ""): "c3a6a317ac527152a19ac74cc7aeb3740ba1e3f9282603429cb26fc6127f5661",
    ("answers", "10"): "136c9822428a1fac81ead8ddbcfd162f6f4662d74d5c5ae97ba94b5d8f73b9b2",
    ("cover", "0"): "b463475c827ed5a0612fab1c8d5ec0e7ce2fdaac4253aff7cec18a1b00448b33",
    ("fingerprint", ""): "7eb8923cc01e47dabb43cbd4ecc4017cfdfa7577d05b55bf9ad568346fe30f17",
    ("key_image", "0"): "5277783e974ab653e5197093510ec03f6be5c41aca46ee32016eeedebefce38f",
    ("image_noise", "ab"): "97dfb31f4e0c23a8f1ce1c03c57ce61a23fb1216897a7d374e07a0cac9a72b2f",
    ("key_images", ""): "f68207f052cde1c74adac5b3b5165cafdcebdb80fad42541d486168953ce2bcc",
    ("own_covers", ""): "a2e40be9c82ec70e76937a4de6898a1c99d2625b202e219eb141e84c575b3140",
    ("owned", ""): "66bdbf3cd08ed6a06173b175f4b26b9c0867be200f3ff27ca4ddeadb729bdabd",
    ("questions", ""): "16ace74e3a7a79fd08b81a9074cd427c5f033e27bfbfce7340cbaf841627dd8b",
    ("questions_record", ""): "f720bd656d14e571539ab1c24d0ddfbef58e3810dc60cbcfe5266e4035f06447",
    ("likeness", ""): "9a846f0f82205ba702c9c30c20198cd81f322fc1294fb72a751215ee376b2c02",
    ("lock", "/tmp/copy"): "53b2598c2780d245202a81da73ed654a509bef9ec64e2dc60633e7ebf3b45776",
}
FIRST_BYTES = "f29000b62a499fd0a9f39a6add2e7780f05d76ae4ab99fe5a6f69b3148c2363d"
MEBIBYTE_AND_64 = "277cc307c2ce18a1a0cc561aa64f789e47bca0addca5054d38ffaaaa39ff6c45"


@pytest.mark.parametrize(("label", "context"), DERIVED)
def test_derive_gives_the_golden_vectors(label, context):
    assert derive(SECRET, label, context).hex() == DERIVED[label, context]


def test_every_label_the_package_derives_with_has_a_golden_vector():
    sources = Path(hf_fingerprint.__file__).parent.rglob("*.py")
    used = {
        label
        for source in sources
        for label in re.findall(r"""(?<![.\w])derive\([^,]+, ["'](\w+)["']""", source.read_text())
    }
    assert {"signs", "codeword"} <= used
    assert used <= {label for label, _ in DERIVED}


@given(st.binary(min_size=32, max_size=32), st.text(max_size=20), st.text(max_size=40))
def test_derive_is_rfc_5869_with_an_empty_salt(secret, label, context):
    info = b"hf_fingerprint/1/" + label.encode() + b"\0" + context.encode()
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    expanded = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    assert derive(secret, label, context) == expanded


def test_derived_keys_differ_by_secret_label_and_context():
    derived = {
        derive(secret, label, context)
        for secret in (SECRET, bytes(32))
        for label in ("signs", "offset")
        for context in ("", "a", "b")
    }
    assert len(derived) == 12
    assert {len(key) for key in derived} == {SECRET_BYTES}


def test_stream_gives_the_golden_bytes():
    assert Stream(SECRET).take(32).tobytes().hex() == FIRST_BYTES
    assert hashlib.sha256(Stream(SECRET).take((1 << 20) + 64).tobytes()).hexdigest() == MEBIBYTE_AND_64


@given(st.binary(min_size=32, max_size=32), st.integers(0, 200))
def test_stream_is_the_encrypted_counter(key, count):
    blocks = -(-count // 16)
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    counters = b"".join(number.to_bytes(16, "big") for number in range(blocks))
    assert Stream(key).take(count).tobytes() == (block.update(counters) + block.finalize())[:count]


@given(st.lists(st.integers(0, 70), min_size=1, max_size=20))
def test_stream_taken_in_pieces_is_the_stream_taken_at_once(counts):
    stream = Stream(SECRET)
    pieces = np.concatenate([stream.take(count) for count in counts])
    np.testing.assert_array_equal(pieces, Stream(SECRET).take(sum(counts)))


@pytest.mark.parametrize("sizes", [(1 << 20, 1, (1 << 20) - 1, 100), (7, 1 << 21, 93), ((1 << 20) + 3, 97)])
def test_stream_crosses_the_chunk_boundary_unbroken(sizes):
    """Inside, a stream is made a mebibyte at a time."""
    whole = Stream(SECRET).take(sum(sizes))
    assert sum(sizes) > len(keys._ZEROS)
    stream = Stream(SECRET)
    np.testing.assert_array_equal(np.concatenate([stream.take(size) for size in sizes]), whole)


def test_stream_far_in_is_still_the_encrypted_counter():
    whole = Stream(SECRET).take((1 << 20) + 4096)
    number = (1 << 20) // 16 + 5
    block = Cipher(algorithms.AES(SECRET), modes.ECB()).encryptor().update(number.to_bytes(16, "big"))
    assert whole[16 * number : 16 * number + 16].tobytes() == block


def test_stream_gives_writable_bytes_and_fills_what_it_is_given():
    taken = Stream(SECRET).take(8)
    assert taken.dtype == np.uint8
    taken ^= 0xFF  # would raise if it were read-only
    given_array = np.zeros(8, np.uint8)
    assert Stream(SECRET).fill(given_array) is given_array
    np.testing.assert_array_equal(given_array, ~taken)


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("ACME Robotics", "a6f47b607cb84ccf3750024e5049d9d3810003d9c782bb916a99ec1ecb32e985"),
        ("Zoë 株式会社", "2997adfb0ac821355427397ee9845274ce9eac77ea0c59b9e409bc8650c0442c"),
    ],
)
def test_commitment_gives_the_golden_vectors(recipient, expected):
    assert commitment(SECRET, recipient, CONTENT) == expected


@given(st.binary(min_size=32, max_size=32), st.text(max_size=30), st.binary(min_size=32, max_size=32))
def test_commitment_is_the_documented_hash(key, recipient, content):
    name = recipient.encode("utf-8")
    message = b"hf_fingerprint/1/commitment\0" + key + len(name).to_bytes(8, "big") + name + content
    assert commitment(key, recipient, content.hex()) == hashlib.sha256(message).hexdigest()


def test_commitment_binds_key_recipient_and_content():
    commitments = {
        commitment(SECRET, "a", CONTENT),
        commitment(bytes(32), "a", CONTENT),
        commitment(SECRET, "b", CONTENT),
        commitment(SECRET, "a", "cd" * 32),
    }
    assert len(commitments) == 4


def test_new_secrets_are_the_systems_and_fresh(monkeypatch):
    given = []
    monkeypatch.setattr(secrets, "token_bytes", lambda size: given.append(os.urandom(size)) or given[-1])

    made = [new_secret() for _ in range(20)]

    assert made == given
    assert len(set(made)) == 20
    assert {len(secret) for secret in made} == {32}


def test_keys_of_a_test_are_the_same_on_every_run():
    """So that no test passes or fails by chance of keys."""
    assert (new_secret().hex()[:16], new_secret().hex()[:16]) == ("df7ed72fb176181a", "b89326e13a39e698")


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32))
def test_stream_bits_are_balanced(key):
    """5 standard deviations of 80,000 fair bits; a stream that repeats or sticks would be far out."""
    ones = int(np.unpackbits(Stream(key).take(10_000)).sum())
    assert abs(ones - 40_000) < 5 * 141.5


@given(st.integers(0, 5000), st.integers(1, 100))
def test_a_stream_can_start_anywhere(start, count):
    np.testing.assert_array_equal(Stream(SECRET, start).take(count), Stream(SECRET).take(start + count)[start:])
