"""Integers in ONNX graphs, with the scales that their nodes name."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node, StoredTensor
from hf_fingerprint.checkpoints.formats.onnx.onnx_weights import find_graph_weights


CODES = np.random.default_rng(0).integers(-8, 8, (6, 32)).astype(np.int8)
SCALE = np.float32([0.5])
ZERO = np.int8([3])
NIBBLES = (CODES + 8).astype(np.uint8)


def pack(codes: np.ndarray) -> np.ndarray:
    pairs = codes.reshape(-1, 2).astype(np.uint8) & 15
    return pairs[:, 0] | pairs[:, 1] << 4


def make(nodes: list[Node], **tensors: np.ndarray | tuple[str, tuple[int, ...], np.ndarray]) -> Graph:
    graph = Graph()
    graph.nodes += nodes
    for name, each in tensors.items():
        dtype, shape, raw = each if isinstance(each, tuple) else (each.dtype.name, each.shape, each)
        graph.tensors[name] = StoredTensor(dtype, shape, np.ascontiguousarray(raw).reshape(-1).view(np.uint8))
    return graph


def read(graph: Graph) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    left_out: dict[str, str] = {}
    return {name: stored_values(each) for name, each in find_graph_weights(graph, left_out)}, left_out


def use(op: str, *inputs: str, **numbers: int) -> Node:
    return Node("", op, list(inputs), ["out"], numbers)


@pytest.mark.parametrize(
    ("node", "axis"),
    [
        (use("DequantizeLinear", "w", "s", "z", axis=0), 0),
        (use("DequantizeLinear", "w", "s", "z", axis=1), 1),
        (use("QLinearConv", "x", "xs", "xz", "w", "s", "z"), 0),
        (use("QLinearMatMul", "x", "xs", "xz", "w", "s", "z"), 1),
        (use("QGemm", "x", "xs", "xz", "w", "s", "z", transB=1), 0),
        (use("QGemm", "x", "xs", "xz", "w", "s", "z"), 1),
        (use("MatMulIntegerToFloat", "x", "w", "xs", "s", "xz", "z"), 1),
        (use("DynamicQuantizeMatMul", "x", "w", "s", "z"), 1),
    ],
)
def test_each_operator_names_the_scales_of_its_weight(node, axis):
    count = CODES.shape[axis]
    scales, zeros = np.linspace(0.1, 1, count, dtype=np.float32), np.arange(count, dtype=np.int8)
    broad = (count, 1) if axis == 0 else (1, count)
    wanted = (CODES - zeros.reshape(broad)) * scales.reshape(broad)

    for each_scales, each_zeros, each_wanted in ((scales, zeros, wanted), (SCALE, ZERO, (CODES - 3) * 0.5)):
        found, left_out = read(make([node], w=CODES, s=each_scales, z=each_zeros))
        assert list(found) == ["w"] and not left_out
        np.testing.assert_allclose(found["w"], each_wanted, rtol=1e-6)


def test_a_scale_behind_an_integer_product_is_found():
    nodes = [
        Node("", "MatMulInteger", ["x", "w", "xz", "z"], ["product"], {}),
        Node("", "Cast", ["product"], ["cast"], {}),
        Node("", "Mul", ["xs", "s"], ["both"], {}),
        Node("", "Mul", ["cast", "both"], ["out"], {}),
    ]
    found, _ = read(make(nodes, w=CODES, s=SCALE, z=ZERO))

    np.testing.assert_array_equal(found["w"], (CODES - 3) * 0.5)


def test_scales_of_a_table_are_found_by_the_names_that_the_quantizer_gives():
    nodes = [Node("", "Split", ["t_quantized"], ["part"], {})]
    found, _ = read(make(nodes, t_quantized=CODES, t_scale=SCALE, t_zero_point=ZERO))

    assert list(found) == ["t"]
    np.testing.assert_array_equal(found["t"], (CODES - 3) * 0.5)


def test_biases_have_the_scales_of_their_products():
    bias, by_channel = np.arange(6, dtype=np.int32) * 1000, np.linspace(0.1, 1, 6, dtype=np.float32)
    node = use("QLinearConv", "x", "xs", "xz", "w", "s", "z", "ys", "yz", "b")
    codes, zeros = CODES.reshape(6, 2, 4, 4), np.zeros(6, np.int8)
    found, _ = read(make([node], w=codes, s=by_channel, z=zeros, b=bias, xs=SCALE, xz=ZERO))

    np.testing.assert_allclose(found["b"], bias * by_channel * 0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("axis", [0, 1])
def test_int4_in_blocks_is_dequantized(dtype, axis):
    codes = CODES if dtype == "int4" else NIBBLES
    counts = (2, 32) if axis == 0 else (6, 2)
    scales = np.linspace(0.1, 1, prod := counts[0] * counts[1], dtype=np.float32).reshape(counts)
    zeros = (np.arange(prod).reshape(counts) % 8).astype(np.uint8)
    node = use("DequantizeLinear", "w", "s", "z", axis=axis, block_size=4 if axis == 0 else 16)
    spread = np.arange(6) // 4 if axis == 0 else np.arange(32) // 16
    wanted = (codes - np.take(zeros.astype(int), spread, axis)) * np.take(scales, spread, axis)
    found, left_out = read(make([node], w=(dtype, CODES.shape, pack(codes)), s=scales, z=(dtype, counts, pack(zeros))))

    assert not left_out
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-6)


@pytest.mark.parametrize("zero", [None, "packed", "floats"])
def test_matmul_of_few_bits_with_a_cut_last_block(zero):
    columns, codes = 30, np.pad(NIBBLES[:, :30], ((0, 0), (0, 2)))
    scales = np.linspace(0.1, 1, 12, dtype=np.float32).reshape(6, 2)
    zeros = np.full((6, 2), 8) if zero is None else np.arange(12).reshape(6, 2)
    tensors = {"packed": {"z": pack(zeros)}, "floats": {"z": zeros.astype(np.float32).reshape(-1)}}.get(zero, {})
    inputs = ["x", "w", "s", *tensors]
    node = use("MatMulNBits", *inputs, N=6, K=columns, bits=4, block_size=16)
    found, left_out = read(make([node], w=pack(codes).reshape(6, 2, 8), s=scales.reshape(-1), **tensors))

    assert list(found) == ["w"] and not left_out
    spread = np.arange(columns) // 16
    np.testing.assert_allclose(found["w"], (NIBBLES[:, :30] - zeros[:, spread]) * scales[:, spread], rtol=1e-6)


@pytest.mark.parametrize("kind", [0, 1])
def test_four_bit_floats_have_the_first_number_in_the_high_bits(kind):
    raw = pack(NIBBLES[:, [each ^ 1 for each in range(32)]])
    largest = np.linspace(0.5, 2, 12, dtype=np.float32)
    node = use("MatMulBnb4", "x", "w", "s", N=6, K=32, block_size=16, quant_type=kind)
    found, _ = read(make([node], w=raw, s=largest))

    scaled = found["w"] / np.repeat(largest, 16).reshape(6, 32)
    levels = [float(np.unique(scaled[code == NIBBLES].round(5))[0]) for code in range(16)]
    assert (levels == sorted(levels)) == (kind == 1)
    assert levels[3] == pytest.approx(1 if kind == 0 else -0.39492, abs=1e-4)


def test_a_table_of_few_bits_is_unpacked():
    scales = np.linspace(0.1, 1, 12, dtype=np.float32).reshape(6, 2)
    node = use("GatherBlockQuantized", "w", "i", "s", bits=4, block_size=16, quantize_axis=1)
    found, _ = read(make([node], w=pack(NIBBLES).reshape(6, 16), s=scales))

    np.testing.assert_allclose(found["w"], (NIBBLES - 8.0) * np.repeat(scales, 16, 1), rtol=1e-6)


def test_floats_of_eight_and_four_bits_have_scales_as_well():
    small = np.uint8([0x38, 0xB8, 0x40, 0x30] * 8)  # 1, -1, 2 and 0.5 as float8 e4m3
    node = use("DequantizeLinear", "w", "s")
    found, _ = read(make([node], w=("float8_e4m3fn", (4, 8), small), s=SCALE))
    np.testing.assert_array_equal(found["w"][0, :4], [0.5, -0.5, 1, 0.25])

    tiny = pack(np.uint8([2, 10, 4, 1] * 8))
    found, _ = read(make([node], w=("float4_e2m1", (4, 8), tiny), s=SCALE))
    np.testing.assert_array_equal(found["w"][0, :4], [0.5, -0.5, 1, 0.25])


def test_integers_without_scales_are_given_as_they_are():
    found, left_out = read(make([], w=CODES, n=("int4", CODES.shape, pack(CODES)), few=np.arange(5, dtype=np.int8)))

    assert list(found) == ["w", "n"] and not left_out
    np.testing.assert_array_equal(found["w"], CODES)
    np.testing.assert_array_equal(found["n"], CODES)


@pytest.mark.parametrize(
    "node",
    [
        use("DequantizeLinear", "w", "s", "", axis=9), use("DequantizeLinear", "w", "s", axis=1, block_size=1 << 60),
        use("MatMulNBits", "x", "w", "s", N=1 << 62, K=1 << 62, bits=4, block_size=16),
        use("MatMulNBits", "x", "w", "s", N=6, K=32, bits=4, block_size=0),
        use("MatMulNBits", "x", "w", "s", N=6, K=1 << 40, bits=4, block_size=16),
        use("MatMulBnb4", "x", "w", "s", N=6, K=-1, block_size=64, quant_type=1),
        use("MatMulBnb4", "x", "w", "nothing", N=6, K=32, block_size=64, quant_type=1),
        use("GatherBlockQuantized", "w", "i", "s", bits=4, block_size=16, quantize_axis=7),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_leave_a_tensor_out(node):
    found, left_out = read(make([node], w=NIBBLES.reshape(-1)[:192].reshape(6, 32), s=np.ones(7, np.float32)))

    assert "w" not in found and list(left_out) == ["w"]
