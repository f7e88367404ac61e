"""A graph as ONNX and onnxruntime describe it: tensors that are stored, and nodes that use them.

The readers of both containers make a [`Graph`];
[`find_graph_weights`](hf_fingerprint.checkpoints.formats.onnx.onnx_weights)
finds its weights.
"""

from collections import defaultdict
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows, packed_rows, stored_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.torch_tensors import NO_DATA, LazyTensor


DATA_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1", 24: "float8_e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"})
_WIDE = {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}  # that PyTorch's files don't hold
_PACKED = {"uint4": 4, "int4": 4, "uint2": 2, "int2": 2, "float4_e2m1": 4}
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_SAME_VALUES = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice"}
_MAX_STEPS = 8  # nodes between a tensor and the node that uses it


class StoredTensor(NamedTuple):
    """A tensor as a model stores it.

    Attributes:
        dtype (`str`): one of [`DATA_TYPES`].
        shape (`tuple[int, ...]`): its shape.
        raw (`np.ndarray`): its bytes in row-major order, `uint8`; small integers are packed, the first in low bits.
        reason (`str` or `None`): why it can't be read.
    """

    dtype: str
    shape: tuple[int, ...]
    raw: np.ndarray
    reason: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether its values are floats of 8 bits or more."""
        return self.dtype in _FLOATS

    def rows(self, shape: tuple[int, ...] | None = None) -> Rows:
        """Its values by rows: integers as such, floats as `float32`.

        Args:
            shape (`tuple[int, ...]`, *optional*): another shape of as many elements.

        Raises:
            [`InvalidFileError`]: if it can't be read.
        """
        shape = self.shape if shape is None else shape
        if self.reason is not None or prod(shape) != self.size:
            raise InvalidFileError(self.reason or "another shape than its node's")
        if self.dtype in _PACKED:
            bits, signed = _PACKED[self.dtype], self.dtype.startswith("int")
            codes = packed_rows(self.raw, bits, shape or (1,), signed)
            if self.dtype == "float4_e2m1":
                return lambda start, stop: _FLOAT4[codes(start, stop)]
            return codes
        if self.dtype in _WIDE:
            typed = np.dtype(_WIDE[self.dtype])
            if self.raw.nbytes < self.size * typed.itemsize:
                raise InvalidFileError("too few bytes for its shape")
            wide = self.raw[: self.size * typed.itemsize].view(typed).reshape(shape or (1,))
            return lambda start, stop: wide[start:stop]
        return stored_rows(dense_tensor(self.raw, self.dtype, shape))

    def values(self, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """All values of a small tensor; see [`rows`]."""
        shape = self.shape if shape is None else shape
        return self.rows(shape)(0, shape[0] if shape else 1).reshape(shape)

    def tensor(self) -> LazyTensor:
        """The tensor, unchanged. Integers that PyTorch has no dtype for are given as `float32`."""
        if self.reason is None and (self.dtype in _PACKED or self.dtype in _WIDE):
            try:
                return ComputedTensor(self.rows(), self.shape, self.dtype)
            except InvalidFileError as error:
                return LazyTensor(self.dtype, self.shape, reason=str(error))
        if self.reason is None and self.dtype not in _FLOATS and not len(self.raw) and self.size:
            return LazyTensor(self.dtype, self.shape, reason=NO_DATA)
        if self.reason is not None:
            return LazyTensor(self.dtype, self.shape, reason=self.reason)
        return dense_tensor(self.raw, self.dtype, self.shape)


class Node(NamedTuple):
    """An operation.

    Attributes:
        domain, op (`str`): which one; the domain is empty for ONNX's own.
        inputs, outputs (`list[str]`): names of values and tensors; empty for one that is left out.
        numbers (`dict[str, int]`): its attributes that are integers.
    """

    domain: str
    op: str
    inputs: list[str]
    outputs: list[str]
    numbers: dict[str, int]

    def input(self, place: int | None) -> str:
        """The name of an input, empty if there is none."""
        return self.inputs[place] if place is not None and place < len(self.inputs) else ""


class Graph:
    """The tensors and nodes of a graph and its subgraphs, whose names are unique.

    Attributes:
        tensors (`dict[str, StoredTensor]`): initializers and constants.
        nodes (`list[Node]`): all nodes.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.nodes: list[Node] = []

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Each value's node."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that use a value or a tensor."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in set(node.inputs):
                found[name].append(node)
        return found

    def tensor_behind(self, name: str) -> str:
        """The name of the tensor that a value is, perhaps in another shape, or an empty one."""
        for _ in range(_MAX_STEPS):
            if name in self.tensors:
                return name
            node = self.producers.get(name)
            if node is None or node.op not in _SAME_VALUES or not node.inputs:
                return ""
            name = node.inputs[0]
        return ""
