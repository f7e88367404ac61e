"""Convolutions in the blocked layout to which onnxruntime optimizes a model for a processor.

At the level "all", a filter (O, I, H, W) is stored in blocks of 8 or 16 channels: as (O/b, I/b, H, W, bI, bO), or as
(O/b, I, H, W, bO) if it is depthwise or has few input channels. Channels are padded with zeros to whole blocks. The
file doesn't tell the size of a block, nor always the number of channels.
"""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import MAX_BLOCK, ComputedTensor
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


_DOMAIN = "com.microsoft.nchwc"
_SIZES = (16, 8)
_SAMPLE = 1 << 22  # weights looked at to tell the size of a block
_COUNTED = 1 << 26  # weights looked at to tell the number of channels
_SAME_CHANNELS = {  # operators whose results have the channels of their inputs
    "Add", "AveragePool", "BatchNormalization", "Clip", "Erf", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "QuickGelu", "Relu", "ReorderInput", "ReorderOutput",
    "Resize", "Sigmoid", "Sum", "Tanh", "Upsample",
}  # fmt: skip


class _Filter(NamedTuple):
    """A blocked convolution: the names of its filter and bias, the stored values, and its values' names."""

    name: str
    bias: str
    data: np.ndarray  # float32, flat
    shape: tuple[int, ...]
    groups: int
    source: str
    result: str

    def is_by_output(self, block: int) -> bool:
        """Whether only the output channels are in blocks."""
        return self.shape[1] == 1 if self.groups > 1 else self.shape[1] < block

    def fits(self, block: int) -> bool:
        """Whether its channels are whole blocks."""
        return self.shape[0] % block == 0 and (self.is_by_output(block) or self.shape[1] % block == 0)

    def rows(self, block: int, start: int, stop: int) -> np.ndarray:
        """Some output channels, each (I, H, W)."""
        channels, places = self.shape[1], prod(self.shape[2:])
        first, last = start // block, -(-stop // block)
        row = channels * places * block
        piece = self.data[first * row : last * row]
        if self.is_by_output(block):
            plain = piece.reshape(last - first, channels * places, block).transpose(0, 2, 1)
        else:
            split = piece.reshape(last - first, channels // block, places, block, block)
            plain = split.transpose(0, 4, 1, 3, 2)
        values = plain.reshape((last - first) * block, *self.shape[1:])
        return values[start - first * block : stop - first * block]


def unblock_weights(graph: Graph, left_out: dict[str, str]) -> dict[str, LazyTensor]:
    """The filters and biases of blocked convolutions in their plain layout, by their tensors' names.

    Padding is cut where the graph shows the number of channels, or where output channels are zero in both.

    Args:
        graph ([`Graph`]): the graph.
        left_out (`dict[str, str]`): receives the filters that can't be read.
    """
    filters = list(_filters(graph, left_out))
    if not filters:
        return {}
    block = _block_size(filters, graph)
    channels = _Channels(graph, filters, block)
    found: dict[str, LazyTensor] = {}
    for each in filters:
        if not each.fits(block):
            left_out[each.name] = "blocks of another size"
            continue
        outputs = channels.outputs(each)
        inputs = each.shape[1] if each.groups > 1 else channels.inputs(each)
        found[each.name] = _plain(each, block, outputs, inputs)
        bias = graph.tensors.get(each.bias)
        if bias is not None and bias.shape == (each.shape[0],) and bias.dtype == "float32" and not bias.reason:
            found[each.bias] = dense_tensor(bias.raw, "float32", (outputs,))
    return found


def _plain(each: _Filter, block: int, outputs: int, inputs: int) -> ComputedTensor:
    def compute(start: int, stop: int) -> np.ndarray:
        return each.rows(block, start, stop)[:, :inputs]

    return ComputedTensor(compute, (outputs, inputs, *each.shape[2:]), "float32")


def _filters(graph: Graph, left_out: dict[str, str]) -> Iterable[_Filter]:
    seen = set()
    for node in graph.nodes:
        name = node.input(1)
        tensor = graph.tensors.get(name)
        if node.domain != _DOMAIN or node.op != "Conv" or tensor is None or name in seen:
            continue
        seen.add(name)
        try:
            if max(_SIZES) * prod(tensor.shape[1:]) > MAX_BLOCK:
                raise InvalidFileError("filters that are too large")
            if tensor.reason or tensor.dtype != "float32" or len(tensor.shape) != 4 or not tensor.size:
                raise InvalidFileError(tensor.reason or "blocked, with another dtype or shape")
            if tensor.raw.nbytes < tensor.size * 4:
                raise InvalidFileError("too few bytes for its shape")
        except InvalidFileError as error:
            left_out[name] = str(error)
            continue
        data = tensor.raw[: tensor.size * 4].view("<f4")
        result = node.outputs[0] if node.outputs else ""
        groups = node.numbers.get("group", 1)
        yield _Filter(name, node.input(2), data, tensor.shape, groups, node.input(0), result)


def _block_size(filters: list[_Filter], graph: Graph) -> int:
    """The size of a block: the one that all shapes fit, else the one with which channels differ the most.

    With the wrong size, two output channels are mixed in each row, which evens out their norms.
    """
    fitting = [size for size in _SIZES if all(each.fits(size) for each in filters)]
    if len(fitting) < 2:
        return fitting[0] if fitting else max(_SIZES, key=lambda size: sum(each.fits(size) for each in filters))
    for each in filters:
        for node in graph.consumers.get(each.result, ())[:4]:
            true = node.numbers.get("channels", 0) if node.op == "ReorderOutput" else 0
            if 0 < true <= each.shape[0] - min(_SIZES):
                return max(_SIZES)  # blocks of 8 would have been fewer
    evenness, left = dict.fromkeys(fitting, 0.0), _SAMPLE
    for each in sorted(filters, key=lambda one: one.data.size):
        for size in fitting:
            evenness[size] += _evenness(each, size)
        left -= each.data.size
        if left < 0:
            break
    return min(fitting, key=lambda size: evenness[size])


def _evenness(each: _Filter, block: int) -> float:
    stop = min(each.shape[0], max(block, _SAMPLE // prod(each.shape[1:])))
    values = each.rows(block, 0, stop).astype(np.float64).reshape(stop, -1)
    values[~np.isfinite(values)] = 0
    power = np.square(values).mean(1)
    mean = power.mean()
    return float(np.log(power / mean + 1e-12).sum() * values.shape[1]) if mean > 0 else 0.0


class _Channels:
    """How many channels the values of a graph have without their padding."""

    def __init__(self, graph: Graph, filters: list[_Filter], block: int):
        self._graph, self._block = graph, block
        self._parents: dict[str, str] = {}
        self._known: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._left = _COUNTED
        for node in graph.nodes:
            if node.op in _SAME_CHANNELS:
                self._join([name for name in node.inputs if name not in graph.tensors] + node.outputs[:1])
            elif node.domain == _DOMAIN and node.op == "Conv":
                self._join([name for name in node.inputs[3:4] if name] + node.outputs[:1])
        for node in graph.nodes:
            self._learn(node)
        for each in filters:
            if self._root(each.result) not in self._known and each.groups <= 1 and each.fits(block):
                root = self._root(each.result)
                self._ends[root] = max(self._ends.get(root, 0), self._count(each))

    def outputs(self, each: _Filter) -> int:
        """Output channels of a convolution."""
        return self._padded_to(self._root(each.result), each.shape[0]) if each.groups <= 1 else each.shape[0]

    def inputs(self, each: _Filter) -> int:
        """Input channels of a convolution without groups."""
        return (
            each.shape[1]
            if each.is_by_output(self._block)
            else self._padded_to(self._root(each.source), each.shape[1])
        )

    def _padded_to(self, root: str, stored: int) -> int:
        true = self._known.get(root) or self._ends.get(root, stored)
        return true if stored - self._block < true <= stored else stored

    def _learn(self, node: Node) -> None:
        """Takes the channels that a node shows: one that leaves the blocked layout, or a plain convolution."""
        if node.op == "ReorderOutput" and node.numbers.get("channels", 0) > 0:
            self._known[self._root(node.input(0))] = node.numbers["channels"]
        elif node.op == "Conv" and node.domain != _DOMAIN and node.input(1) in self._graph.tensors:
            shape = self._graph.tensors[node.input(1)].shape
            if len(shape) > 2:
                self._known.setdefault(self._root(node.input(0)), shape[1] * max(node.numbers.get("group", 1), 1))
                self._known.setdefault(self._root(node.outputs[0] if node.outputs else ""), shape[0])

    def _count(self, each: _Filter) -> int:
        """Output channels up to the last one that isn't zero, in the last block."""
        total = each.shape[0]
        start = total - self._block
        self._left -= prod(each.shape[1:]) * self._block
        if self._left < 0:
            return total
        used = np.abs(each.rows(self._block, start, total)).reshape(self._block, -1).max(1) > 0
        bias = self._graph.tensors.get(each.bias)
        if bias is not None and bias.shape == (total,) and bias.dtype == "float32" and bias.raw.nbytes >= 4 * total:
            used |= bias.raw[4 * start : 4 * total].view("<f4") != 0
        return start + int(np.flatnonzero(used)[-1]) + 1 if used.any() else total

    def _root(self, name: str) -> str:
        while (parent := self._parents.get(name, name)) != name:
            self._parents[name] = name = self._parents.get(parent, parent)
        return name

    def _join(self, names: list[str]) -> None:
        roots = [self._root(name) for name in names if name]
        for root in roots[1:]:
            self._parents[self._root(root)] = self._root(roots[0])
