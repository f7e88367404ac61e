"""Schemes whose libraries need a GPU, or whose files are as large as the model, from tensors that are made here."""

import json

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.code_tables import F4_E2M1 as FP4
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.schemes import bitsandbytes, compressed_tensors, gptq, hqq, mlx, quanto, torchao
from tests.helpers.quantized import Unsigned, dequantized, packed_bits, stored, values_of


RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, 16, (16, 64)).astype(np.uint8)
SCALES = RANDOM.random((16, 4)).astype(np.float32)
ZEROS = RANDOM.integers(4, 12, (16, 4)).astype(np.int8)
EACH = np.repeat(SCALES, 16, 1), np.repeat(ZEROS, 16, 1)


def pairs(codes, high_first=False):
    first, second = codes[:, ::2], codes[:, 1::2]
    return first << 4 | second if high_first else first | second << 4


def exactly(found, expected, name="a.weight"):
    assert found.name == name
    np.testing.assert_allclose(values_of(found.tensor), expected, rtol=1e-6, atol=1e-6)


def test_torchao_int4_has_groups_by_columns_and_a_zero_that_is_a_weight():
    lower = RANDOM.random((16, 4)).astype(np.float32)

    found = dequantized(
        torchao.PLAIN,
        "a.weight.qdata",
        **{"a__weight.qdata": pairs(CODES), "a__weight.scale": SCALES.T, "a__weight.zero_point": lower.T},
    )
    from_codes = (CODES ^ 8).astype(np.int8) - 8  # two's complement

    exactly(found, from_codes * EACH[0] + np.repeat(lower, 16, 1))


def test_torchao_int4_in_integers_of_32_bits():
    parts = {"_weight_qdata": packed_bits(CODES, 4), "_weight_scale": SCALES.T, "_weight_zero_point": ZEROS.T}

    found = dequantized(torchao.PLAIN, "a._weight_qdata", **{f"a__{key}": each for key, each in parts.items()})

    exactly(found, (CODES - EACH[1].astype(np.float32)) * EACH[0])


def test_torchao_scales_of_the_inputs_belong_to_the_weight():
    codes, before = CODES.astype(np.int8), RANDOM.random(64).astype(np.float32)
    parts = {"qdata": codes, "scale": SCALES[:, :1], "act_pre_scale": before}

    found = dequantized(torchao.PLAIN, "a.weight.qdata", **{f"a__weight.{key}": each for key, each in parts.items()})

    exactly(found, codes * SCALES[:, :1] * before)
    with pytest.raises(InvalidFileError):
        parts["act_pre_scale"] = before[:9]
        dequantized(torchao.PLAIN, "a.weight.qdata", **{f"a__weight.{key}": each for key, each in parts.items()})


@pytest.mark.parametrize("nest", ["tensor_impl", "layout_tensor", "original_weight_tensor.tensor_impl"])
def test_torchao_before_0_12_has_zeros_that_are_codes_or_weights(nest):
    lower = RANDOM.random((16, 4)).astype(np.float32)
    parts = {f"a__weight.{nest}.int_data": CODES, f"a__weight.{nest}.scale": SCALES}
    name, zero = f"a.weight.{nest}.int_data", f"a__weight.{nest}.zero_point"

    codes = dequantized(torchao.PLAIN, name, **parts, **{zero: ZEROS})
    weights = dequantized(torchao.PLAIN, name, **parts, **{zero: lower})

    exactly(codes, (CODES - EACH[1].astype(np.float32)) * EACH[0])
    exactly(weights, (CODES - 8.0) * EACH[0] + np.repeat(lower, 16, 1))


def test_torchao_floats_of_four_bits_stay_codes():
    scales = stored(np.full((16, 4), 0x38, np.uint8), "float8_e4m3fn")

    assert dequantized(torchao.PLAIN, "a._weight_qdata", a___weight_qdata=CODES, a___weight_scale=scales) is None


def tiles(codes):
    """Codes in the layout of `test_packed_codes.py`, with inner tiles of 8."""
    blocks, outer = codes.shape[0] // 8, codes.shape[1] // 128
    packed = np.zeros((blocks, outer, 32, 4), np.uint32)
    for block, part, lane, pair in np.ndindex(packed.shape):
        first = (part * 8 + 2 * pair) * 16 + lane % 4 * 2
        columns = first + np.array([0, 8, 16, 24, 1, 9, 17, 25])
        nibbles = codes[block * 8 + lane // 4, columns].astype(np.uint32)
        packed[block, part, lane, pair] = np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, dtype=np.uint32))
    return packed.view(np.int32)


@pytest.mark.parametrize("shape", [[6, 100], None, [6, 2000], [-1, 5], "text"])
def test_torchao_tiles_are_cut_to_the_shape_that_the_file_tells(shape):
    codes = RANDOM.integers(0, 16, (8, 1024)).astype(np.uint8)
    both = RANDOM.random((16, 8, 2)).astype(np.float32)
    metadata = {"a.weight": json.dumps({"_type": "Int4TilePackedTo4dTensor", "_data": {"shape": shape}})}
    whole = (codes - 8.0) * np.repeat(both[..., 0].T, 64, 1) + np.repeat(both[..., 1].T, 64, 1)
    parts = {"a___weight_qdata": tiles(codes), "a___weight_scale_and_zero": both}
    if shape == [6, 2000]:
        with pytest.raises(InvalidFileError):
            dequantized(torchao.PLAIN, "a._weight_qdata", metadata, **parts)
        return

    found = dequantized(torchao.PLAIN, "a._weight_qdata", metadata, **parts)

    exactly(found, whole[:6, :100] if shape == [6, 100] else whole)


def test_torchao_nf4_has_scales_that_are_codes_around_a_mean():
    table, inner = np.sort(RANDOM.normal(size=16)).astype(np.float32), np.array([3.0, 5.0], np.float32)
    scales = RANDOM.integers(-100, 100, 16).astype(np.int8)
    parts = {
        "quantized_data": pairs(CODES.reshape(16, 64), high_first=True).reshape(-1), "quantized_scalers": scales,
        "quantization_factor": inner, "scaler_mean": np.float32(2), "nf4": table, "shape": np.array([32, 32]),
    }  # fmt: skip

    found = dequantized(torchao.NF4, "a.weight.quantized_data", **{f"a__weight.{k}": v for k, v in parts.items()})

    scale = scales / np.repeat(inner, 8) + 2
    exactly(found, (table[CODES] * scale[:, None]).reshape(32, 32))


def state(**changes):
    content = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [16, 64]} | changes
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def four_bits(raw_state, **more):
    parts = {"": pairs(CODES, True).reshape(-1, 1), ".absmax": SCALES[:, 0], ".quant_map": FP4} | more
    parts[".quant_state.bitsandbytes__nf4"] = raw_state
    name = "a.weight.quant_state.bitsandbytes__nf4"
    return dequantized(bitsandbytes.FOUR_BITS, name, **{f"a__weight{key}": each for key, each in parts.items()})


def test_bitsandbytes_four_bits_and_any_shape_of_as_many_elements():
    expected = FP4[CODES] * SCALES[:, :1]

    exactly(four_bits(state()), expected)
    exactly(four_bits(state(shape=[4, 4, 64])), expected.reshape(4, 4, 64))
    half = pairs(CODES, True).reshape(-1).view(np.float16)  # another type to store bytes in
    exactly(four_bits(state(), **{"": half}), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [16, 65]}, {"shape": [-16, -64]}, {"shape": None}, {"shape": [1 << 70]}, {"blocksize": 0},
        {"blocksize": 63}, {"blocksize": True}, {"blocksize": 1 << 40}, {"shape": [[16], 64]}, {"shape": [0, 64]},
    ],
)  # fmt: skip
def test_a_hostile_state_of_bitsandbytes_is_refused(changes):
    with pytest.raises(InvalidFileError):
        four_bits(state(**changes))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"[" * 5000, b"\xff", b'{"shape": NaN}'])
def test_a_state_of_bitsandbytes_that_is_no_dictionary_is_refused(raw):
    with pytest.raises(InvalidFileError):
        four_bits(np.frombuffer(raw or b" ", np.uint8))


def test_other_layouts_of_bitsandbytes_stay_as_they_are():
    parts = {"a__weight": CODES.astype(np.int8), "a__SCB": SCALES[:, 0]}

    assert dequantized(bitsandbytes.INT8, "a.SCB", **parts, a__weight_format=np.uint8(2)) is None
    exactly(dequantized(bitsandbytes.INT8, "a.SCB", **parts), CODES * SCALES[:, :1] / 127)


def test_quanto_groups_are_rows_again_by_the_number_of_biases():
    groups, shifts = CODES.reshape(32, 32), RANDOM.random((32, 1)).astype(np.float32)
    scales = RANDOM.random((32, 1)).astype(np.float32)
    parts = {"._data._data": groups[:16] | groups[16:] << 4, "._scale": scales, "._shift": shifts}
    parts = {f"a__weight{key}": each for key, each in parts.items()}
    expected = groups * scales - shifts

    exactly(dequantized(quanto.STACKED, "a.weight._data._data", **parts), expected)
    found = dequantized(quanto.STACKED, "a.weight._data._data", **parts, a__bias=np.zeros(16))
    exactly(found, expected.reshape(16, 64))
    shape = {"a__weight.shape": np.array([8, 2, 8, 8])}  # as a whole module's pickle describes it
    exactly(dequantized(quanto.STACKED, "a.weight._data._data", **parts, **shape), expected.reshape(8, 2, 8, 8))
    with pytest.raises(InvalidFileError):
        shape = {"a__weight.shape": np.array([8, 2, 8, -8])}
        dequantized(quanto.STACKED, "a.weight._data._data", **parts, **shape)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_hqq_in_a_pickle_tells_neither_bits_nor_shape(bits):
    """`axis` 0: a group is a column."""
    top, parts = (1 << bits) - 1, 8 // bits
    codes = RANDOM.integers(0, top + 1, (16, 24)).astype(np.uint8)
    scales, zeros = RANDOM.random((1, 24)).astype(np.float32), np.float32(top / 2 + RANDOM.normal(size=(1, 24)) / 9)
    stacks = codes.reshape(parts, -1, 24) << (bits * np.arange(parts)[::-1])[:, None, None].astype(np.uint8)
    packed = np.bitwise_or.reduce(stacks, 0)

    found = dequantized(hqq.GROUPS, "a.W_q", a__W_q=packed, a__scale=scales, a__zero=zeros, a__bias=np.zeros(8))

    exactly(found, ((codes - zeros) * scales).reshape(8, 48))


def test_compressed_tensors_with_an_index_of_groups_and_zeros_of_their_own():
    index = RANDOM.permutation(np.repeat(np.arange(4), 16)).astype(np.int32)
    parts = {
        "weight_packed": packed_bits(CODES, 4), "weight_scale": SCALES, "weight_zero_point": ZEROS - 8,
        "weight_g_idx": index, "weight_shape": np.array([16, 64]),
    }  # fmt: skip

    found = dequantized(
        compressed_tensors.PACKED, "a.weight_packed", **{f"a__{key}": each for key, each in parts.items()}
    )

    exactly(found, (CODES - ZEROS[:, index].astype(np.float32)) * SCALES[:, index])


def test_floats_of_four_bits_with_two_scales_or_an_exponent():
    eight_bits = stored(np.full((16, 4), 0x38, np.uint8), "float8_e4m3fn")  # 1.0
    exponents = np.array([[127, 128, 126, 127]] * 16, np.uint8)
    plain = {"a__weight": pairs(CODES), "a__weight_scale": eight_bits, "a__weight_scale_2": np.float32(3)}
    packed = {
        "a__weight_packed": pairs(CODES), "a__weight_scale": eight_bits, "a__weight_global_scale": np.float32([4])
    }  # fmt: skip
    mx = {"a__weight_packed": pairs(CODES), "a__weight_scale": exponents}

    exactly(dequantized(compressed_tensors.PLAIN, "a.weight_scale", **plain), FP4[CODES] * 3)
    exactly(dequantized(compressed_tensors.PACKED, "a.weight_packed", **packed), FP4[CODES] / 4)
    found = dequantized(compressed_tensors.PACKED, "a.weight_packed", **mx)
    exactly(found, FP4[CODES] * np.repeat(np.exp2(exponents - 127.0), 16, 1))


def test_blocks_of_128_whose_last_is_smaller():
    codes, scales = RANDOM.integers(-9, 9, (200, 300)).astype(np.int8), RANDOM.random((2, 3)).astype(np.float32)

    found = dequantized(compressed_tensors.PLAIN, "a.weight_scale_inv", a__weight=codes, a__weight_scale_inv=scales)

    exactly(found, codes * np.repeat(np.repeat(scales, 128, 0), 128, 1)[:200, :300])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_mlx_tells_the_bits_only_by_its_codes(bits, group):
    weight = RANDOM.normal(size=(32, 256)).astype(np.float32)
    grouped = weight.reshape(32, -1, group)
    biases = grouped.min(-1)
    scales = (grouped.max(-1) - biases) / ((1 << bits) - 1)
    codes = np.rint((grouped - biases[..., None]) / scales[..., None]).astype(np.uint8)
    packed = Unsigned(packed_bits(codes.reshape(32, -1), bits))

    found = dequantized(mlx.GROUPS, "a.scales", a__weight=packed, a__scales=scales, a__biases=biases)

    exactly(found, (codes * scales[..., None] + biases[..., None]).reshape(32, 256))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gptq_whose_versions_store_the_zeros_or_one_less(bits, less, shuffled):
    top, index = (1 << bits) - 1, np.repeat(np.arange(4), 16)
    index = RANDOM.permutation(index) if shuffled else index
    middle = 1 << (bits - 1)
    codes = np.clip(RANDOM.normal(middle, top / 6 + 0.5, (64, 32)).round(), 0, top).astype(np.uint8)
    zeros, scales = np.full((4, 32), middle), RANDOM.random((4, 32)).astype(np.float32)
    parts = {
        "qweight": np.ascontiguousarray(packed_bits(codes.T, bits).T), "qzeros": packed_bits(zeros - less, bits),
        "scales": scales, "g_idx": index.astype(np.int32),
    }  # fmt: skip

    found = dequantized(gptq.COLUMNS, "a.qweight", **{f"a__{key}": each for key, each in parts.items()})

    exactly(found, (codes - zeros[index].astype(np.float32)) * scales[index])


def test_awq_interleaves_the_columns_of_an_integer():
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    zeros, scales = RANDOM.integers(4, 12, (4, 64)).astype(np.uint8), RANDOM.random((4, 64)).astype(np.float32)

    def packed(codes):
        return packed_bits(codes.reshape(len(codes), -1, 8)[..., order].reshape(len(codes), -1), 4)

    found = dequantized(gptq.COLUMNS, "a.qweight", a__qweight=packed(CODES), a__qzeros=packed(zeros), a__scales=scales)

    exactly(found, (CODES - np.repeat(zeros, 4, 0).astype(np.float32)) * np.repeat(scales, 4, 0))


def test_groups_that_would_be_computed_again_and_again_are_refused():
    """A weight of short rows, each a part of a row of the codes that is as long as the file."""
    size = (1 << 20) + 8
    parts = {"W_q": np.zeros((2, size), np.uint8), "scale": np.zeros((1, size)), "zero": np.full((1, size), 127.5)}
    shape = np.array([size // 4, 8])

    with pytest.raises(InvalidFileError):
        dequantized(hqq.GROUPS, "a.W_q", **{f"a__{key}": each for key, each in parts.items()}, a__shape=shape)


def test_torchao_groups_that_are_as_small_as_a_code_are_refused():
    zeros = np.zeros((64, 16), np.float32)
    parts = {"a___weight_qdata": pairs(CODES), "a___weight_scale": zeros, "a___weight_zero_point": zeros}

    with pytest.raises(InvalidFileError):
        dequantized(torchao.PLAIN, "a._weight_qdata", **parts)
