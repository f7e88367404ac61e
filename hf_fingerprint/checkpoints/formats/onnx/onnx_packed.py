"""Weights of onnxruntime's nodes for a few bits: MatMulNBits, MatMulBnb4 and GatherBlockQuantized.

`model_q4.onnx` and `model_bnb4.onnx` of repos for transformers.js hold them.
"""

from collections.abc import Callable

import numpy as np

from hf_fingerprint.checkpoints.formats.code_tables import NF4
from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows, dequantize, packed_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node, StoredTensor
from hf_fingerprint.checkpoints.formats.onnx.onnx_quantized import Scales
from hf_fingerprint.checkpoints.formats.torch_tensors import is_size


_FLOAT = (0, 0.0052083333, 0.6666667, 1, 0.33333334, 0.5, 0.16666667, 0.25)
_BNB4 = {0: np.array([*_FLOAT, *(-each for each in _FLOAT)], np.float32), 1: NF4}
_LARGE_BLOCK = 1 << 16  # padding that a short row may have
_BAD_SIZES = "sizes that don't fit"


def unpack_weights(graph: Graph, scales: Scales, left_out: dict[str, str]) -> dict[str, ComputedTensor]:
    """The weights that a graph stores in blocks of a few bits, by their tensors' names.

    Args:
        graph ([`Graph`]): the graph.
        scales ([`Scales`]): reads scales.
        left_out (`dict[str, str]`): receives the tensors whose scales don't fit.
    """
    found: dict[str, ComputedTensor] = {}
    for node in graph.nodes:
        place, unpack = _OPERATORS.get(node.op, (0, None))
        name = graph.tensor_behind(node.input(place)) if unpack else ""
        if unpack is None or not name or name in found:
            continue
        try:
            found[name] = unpack(graph, scales, node, graph.tensors[name])
        except InvalidFileError as error:
            left_out[name] = str(error)
    return found


def _matmul_n_bits(graph: Graph, scales: Scales, node: Node, tensor: StoredTensor) -> ComputedTensor:
    """The matrix (N, K) of a MatMulNBits: each row in blocks, padded to whole ones."""
    rows, columns = node.numbers.get("N", 0), node.numbers.get("K", 0)
    bits, block = node.numbers.get("bits", 4), node.numbers.get("block_size", 0)
    if bits not in (1, 2, 4, 8) or not _are_sizes(rows, columns, block):
        raise InvalidFileError(_BAD_SIZES)
    if node.input(4):
        raise InvalidFileError("groups in an order of their own")
    if tensor.dtype != "uint8" or tensor.reason:
        raise InvalidFileError(tensor.reason or f"codes of dtype {tensor.dtype}")
    blocks = -(-columns // block)
    if blocks * block > max(2 * columns, _LARGE_BLOCK):
        raise InvalidFileError(_BAD_SIZES)
    codes = _cut(packed_rows(tensor.raw, bits, (rows, blocks * block)), columns)
    scale = _read(graph, scales, node.input(2), (rows, blocks))
    name = graph.tensor_behind(node.input(3))
    zeros: np.ndarray = np.array(1 << (bits - 1), np.float32)
    if name and graph.tensors[name].dtype == "uint8":
        padded = -(-blocks * bits // 8) * 8 // bits
        packed = scales.read(name, graph.tensors[name]).astype(np.uint8).reshape(-1)
        zeros = packed_rows(packed, bits, (rows, padded))(0, rows)[:, :blocks]
    elif name:
        zeros = _read(graph, scales, name, (rows, blocks))
    elif node.input(3):
        raise InvalidFileError("zero points that are computed")
    scales.spend(columns)
    return dequantize(codes, (rows, columns), scale, zeros, f"int{bits}", (1, block))


def _matmul_bnb4(graph: Graph, scales: Scales, node: Node, tensor: StoredTensor) -> ComputedTensor:
    """The matrix (N, K), or (K, N), of a MatMulBnb4: blocks of the flat matrix, each with its largest magnitude."""
    rows, columns = node.numbers.get("N", 0), node.numbers.get("K", 0)
    block, table = node.numbers.get("block_size", 0), _BNB4.get(node.numbers.get("quant_type", -1))
    if table is None or not _are_sizes(rows, columns, block):
        raise InvalidFileError(_BAD_SIZES)
    if tensor.dtype != "uint8" or tensor.reason:
        raise InvalidFileError(tensor.reason or f"codes of dtype {tensor.dtype}")
    shape = (rows, columns) if node.numbers.get("transB", 1) else (columns, rows)
    codes, width = packed_rows(tensor.raw, 4, shape, high_first=True), shape[1]
    largest = _read(graph, scales, node.input(2), (-(-rows * columns // block),))

    def compute(start: int, stop: int) -> np.ndarray:
        places = np.arange(start * width, stop * width) // block
        return table[codes(start, stop)] * largest[places].reshape(stop - start, width)

    return ComputedTensor(compute, shape, "nf4" if node.numbers.get("quant_type") else "fp4")


def _gather_blocks(graph: Graph, scales: Scales, node: Node, tensor: StoredTensor) -> ComputedTensor:
    """The table of a GatherBlockQuantized, whose codes are int4 or uint4, or several in a byte along the last axis."""
    bits, block = node.numbers.get("bits", 4), node.numbers.get("block_size", 128)
    axis, shape, default = node.numbers.get("quantize_axis", 1), tensor.shape, 0
    packed = tensor.dtype == "uint8"
    if bits not in (2, 4, 8) or not _are_sizes(block) or not -len(shape) <= axis < len(shape):
        raise InvalidFileError(_BAD_SIZES)
    if packed:
        shape, default = (*shape[:-1], shape[-1] * 8 // bits), 1 << (bits - 1)
    codes = packed_rows(tensor.raw, bits, shape) if packed and not tensor.reason else tensor.rows()
    sizes, counts = [1] * len(shape), list(shape)
    sizes[axis], counts[axis] = block, -(-shape[axis] // block)
    scale, name = _read(graph, scales, node.input(2), tuple(counts)), graph.tensor_behind(node.input(3))
    zeros: np.ndarray = np.array(default, np.float32)
    if name and packed and graph.tensors[name].dtype == "uint8":
        last = -(-counts[-1] * bits // 8) * 8 // bits
        bytes_ = scales.read(name, graph.tensors[name]).astype(np.uint8).reshape(-1)
        zeros = packed_rows(bytes_, bits, (*counts[:-1], last))(0, counts[0])[..., : counts[-1]]
    elif name:
        zeros = _read(graph, scales, name, tuple(counts))
    scales.spend(shape[axis])
    return dequantize(codes, shape, scale, zeros, f"int{bits}", tuple(sizes))


_Unpack = Callable[[Graph, Scales, Node, StoredTensor], ComputedTensor]
_OPERATORS: dict[str, tuple[int, _Unpack | None]] = {
    "MatMulNBits": (1, _matmul_n_bits),
    "MatMulBnb4": (1, _matmul_bnb4),
    "GatherBlockQuantized": (0, _gather_blocks),
}


def _are_sizes(*numbers: int) -> bool:
    return all(is_size(number) and number for number in numbers)


def _cut(codes: Rows, columns: int) -> Rows:
    return lambda start, stop: codes(start, stop)[:, :columns]


def _read(graph: Graph, scales: Scales, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The scales of blocks, in this shape."""
    name = graph.tensor_behind(name)
    if not name:
        raise InvalidFileError("scales that are computed")
    return scales.read(name, graph.tensors[name], shape)
