"""Weights of ONNX graphs that are integers: the node that uses one says which tensors are its scale and zero point."""

import re
from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, dequantize
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node, StoredTensor


MAX_SCALES = 1 << 25  # scales and zero points of one model, and indices to them, which are in memory
_CODES = frozenset({"int8", "uint8", "int16", "uint16", "int32", "int4", "uint4", "int2", "uint2", "float4_e2m1"})
_FLOAT8 = frozenset({"float8_e4m3fn", "float8_e5m2"})
_QUANTIZED = re.compile(r"_quantized$")
_NO_SCALES = "scales of another shape"


class _Use(NamedTuple):
    """Inputs of a node: a weight, the scales whose product is its scale, its zero point, and the axis of these."""

    weight: int
    scales: tuple[int, ...]
    zero: int | None = None
    axis: int | None = None


_USES: dict[str, tuple[_Use, ...]] = {
    "DequantizeLinear": (_Use(0, (1,), 2),),
    "QLinearConv": (_Use(3, (4,), 5, 0), _Use(8, (1, 4), None, 0)),
    "QLinearMatMul": (_Use(3, (4,), 5, -1), _Use(0, (1,), 2, -2)),
    "QGemm": (_Use(3, (4,), 5), _Use(6, (1, 4), None, -1)),
    "MatMulInteger": (_Use(1, (), 3, -1), _Use(0, (), 2, -2)),
    "ConvInteger": (_Use(1, (), 3, 0),),
    "MatMulIntegerToFloat": (_Use(1, (3,), 5, -1),),
    "DynamicQuantizeMatMul": (_Use(1, (2,), 3, -1),),
    "QAttention": (_Use(1, (4,), 7, -1),),
    "QLinearAdd": (_Use(0, (1,), 2), _Use(3, (4,), 5)),
    "QLinearMul": (_Use(0, (1,), 2), _Use(3, (4,), 5)),
}


class Scales:
    """Reads the scales and zero points of a model, a bounded number.

    Attributes:
        used (`set[str]`): names of the tensors read, which are no weights.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._left = MAX_SCALES

    def read(self, name: str, tensor: StoredTensor, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The values of a tensor, as `float32`, perhaps in another shape.

        Raises:
            [`InvalidFileError`]: if it can't be read or is too large.
        """
        self.spend(tensor.size)
        self.used.add(name)
        return tensor.values(shape).astype(np.float32, copy=False)

    def spend(self, count: int) -> None:
        """Counts numbers that are kept in memory.

        Raises:
            [`InvalidFileError`]: if there are too many.
        """
        self._left -= count
        if self._left < 0:
            raise InvalidFileError(f"more than {MAX_SCALES:,} scales")


def dequantize_weights(graph: Graph, scales: Scales, left_out: dict[str, str]) -> dict[str, ComputedTensor]:
    """The weights that a graph stores as integers and whose scales it shows, by their tensors' names.

    Args:
        graph ([`Graph`]): the graph.
        scales ([`Scales`]): reads scales.
        left_out (`dict[str, str]`): receives the tensors whose scales don't fit.
    """
    found: dict[str, ComputedTensor] = {}
    for node, use in _uses(graph):
        name = graph.tensor_behind(node.input(use.weight))
        if not name or name in found or graph.tensors[name].dtype not in _CODES | _FLOAT8:
            continue
        try:
            named = _scale_names(graph, node, use, name)
            if named:
                zero = graph.tensor_behind(node.input(use.zero))
                found[name] = _dequantized(graph, scales, node, use, name, named, zero)
        except InvalidFileError as error:
            left_out[name] = str(error)
    for name in graph.tensors:
        if name not in found and _QUANTIZED.search(name):
            _dequantize_by_name(graph, scales, name, found)
    return found


def _uses(graph: Graph) -> Iterator[tuple[Node, _Use]]:
    for node in graph.nodes:
        for use in _USES.get(node.op, ()):
            yield node, use


def _scale_names(graph: Graph, node: Node, use: _Use, name: str) -> list[str]:
    """The tensors whose product is a weight's scale. None, if they can't be found."""
    if use.scales:
        named = [graph.tensor_behind(node.input(place)) for place in use.scales]
    else:
        named = [_scale_after(graph, node) or _named_like(graph, name, "_scale")]
    return named if all(each in graph.tensors for each in named) else []


def _scale_after(graph: Graph, node: Node) -> str:
    """The scale that a node's integer result is multiplied by: `Cast(result) * (input_scale * weight_scale)`."""
    value = node.outputs[0] if node.outputs else ""
    for _ in range(4):
        for next_node in graph.consumers.get(value, ())[:4]:
            if next_node.op != "Mul":
                continue
            for other in next_node.inputs[:2]:
                factors = [other] if other in graph.tensors else []
                if not factors and other != value and (made := graph.producers.get(other)) and made.op == "Mul":
                    factors = [each for each in made.inputs[:2] if each in graph.tensors]
                if factors:
                    return factors[0]
        casts = [each for each in graph.consumers.get(value, ())[:4] if each.op in ("Cast", "Reshape", "Transpose")]
        if not casts or not casts[0].outputs:
            return ""
        value = casts[0].outputs[0]
    return ""


def _named_like(graph: Graph, name: str, end: str) -> str:
    """The tensor that onnxruntime's quantizer names after a weight, or an empty name."""
    stem = _QUANTIZED.sub("", name)
    return next((each for each in (stem + end, name + end) if each in graph.tensors), "")


def _dequantize_by_name(graph: Graph, scales: Scales, name: str, found: dict[str, ComputedTensor]) -> None:
    scale, zero = _named_like(graph, name, "_scale"), _named_like(graph, name, "_zero_point")
    if scale and graph.tensors[name].dtype in _CODES:
        node = Node("", "", [], [], {})
        try:
            found[name] = _dequantized(graph, scales, node, _Use(0, ()), name, [scale], zero)
        except InvalidFileError:
            return  # it is given as it is stored


def _dequantized(
    graph: Graph, scales: Scales, node: Node, use: _Use, name: str, named: list[str], zero: str
) -> ComputedTensor:
    tensor = graph.tensors[name]
    axis, block = use.axis, node.numbers.get("block_size", 0)
    if node.op == "DequantizeLinear":
        axis = node.numbers.get("axis", 1)
    elif node.op == "QGemm" and use.axis is None:
        axis = 0 if node.numbers.get("transB", 0) else 1

    def fit(each: str) -> np.ndarray:
        return _along_axis(scales.read(each, graph.tensors[each]), tensor.shape, axis)

    factors = [fit(each) for each in named]
    zeros = fit(zero) if zero else None
    blocks = None
    if block > 0 and axis is not None and -len(tensor.shape) <= axis < len(tensor.shape):
        sizes = [1] * len(tensor.shape)
        sizes[axis] = block
        blocks = tuple(sizes)
    with np.errstate(all="ignore"):
        scale = reduce(np.multiply, factors)
    for each in (scale, *(() if zeros is None else (zeros,))):
        scales.spend(sum(size for size, count in zip(tensor.shape, each.shape, strict=True) if count not in (1, size)))
    return dequantize(tensor.rows(), tensor.shape, scale, zeros, tensor.dtype, blocks)


def _along_axis(values: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """Scales in as many dimensions as their tensor: for all, for each place along an axis, or for each block."""
    if values.size == 1:
        return values.reshape((1,) * len(shape))
    if values.ndim == len(shape) and values.ndim > 1:
        return values
    if values.ndim != 1:
        raise InvalidFileError(_NO_SCALES)
    if axis is None or not -len(shape) <= axis < len(shape) or shape[axis] != len(values):
        fitting = [place for place, size in enumerate(shape) if size == len(values)]
        if len(fitting) != 1:
            raise InvalidFileError(_NO_SCALES)
        axis = fitting[0]
    sizes = [1] * len(shape)
    sizes[axis] = len(values)
    return values.reshape(sizes)
