"""onnxruntime's own files (`.ort`): the graph of an ONNX model after optimization, as a FlatBuffer.

Fields are read by their slots in onnxruntime's `ort.fbs`. Weights are found as in ONNX files.
"""

from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import DATA_TYPES, Graph, Node, StoredTensor
from hf_fingerprint.checkpoints.formats.onnx.onnx_weights import find_graph_weights
from hf_fingerprint.checkpoints.formats.torch_tensors import as_sizes
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS, MAX_TENSORS


_MODEL = 1  # of InferenceSession
_PRODUCER, _PRODUCER_VERSION, _GRAPH = 2, 3, 7  # of Model
_INITIALIZERS, _NODES, _SPARSE_INITIALIZERS = 0, 2, 7  # of Graph
_NODE_NAME, _DOMAIN, _OP, _INPUTS, _OUTPUTS, _ATTRIBUTES = 0, 2, 5, 8, 9, 10
_ATTRIBUTE_NAME, _ATTRIBUTE_TYPE, _INTEGER, _TENSOR, _SUBGRAPH, _FLOATS, _TENSORS, _SUBGRAPHS = (
    0,
    2,
    4,
    6,
    7,
    8,
    11,
    12,
)
_TENSOR_NAME, _DIMS, _DATA_TYPE, _RAW, _EXTERNAL_OFFSET = 0, 2, 3, 4, 6
_SPARSE_VALUES = 0
_INTEGER_TYPE = 2
_MAX_DEPTH = 32  # of subgraphs
_NOTHING = np.empty(0, np.uint8)


def load_ort(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of an `.ort` file; see [`Format`]."""
    model = FlatTable.root(map_file(path)).table(_MODEL)
    top = None if model is None else model.table(_GRAPH)
    if model is None or top is None:
        raise InvalidFileError("no graph")
    graph = Graph()
    waiting = [(top, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise InvalidFileError(f"subgraphs nested {_MAX_DEPTH} deep")
        waiting += [(inner, depth + 1) for inner in _read_graph(each, graph, left_out)]
    found = find_graph_weights(graph, left_out)
    if len(found) > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS:,} tensors")
    return FoundTensors(found, f"{model.text(_PRODUCER)} {model.text(_PRODUCER_VERSION)}".strip())


def _read_graph(table: FlatTable, graph: Graph, left_out: dict[str, str]) -> list[FlatTable]:
    """Adds the tensors and nodes of a table to a graph; the subgraphs in the nodes' attributes."""
    subgraphs: list[FlatTable] = []
    for tensor in table.tables(_INITIALIZERS):
        _add(graph, tensor.text(_TENSOR_NAME), _read_tensor(tensor))
    for sparse in table.tables(_SPARSE_INITIALIZERS):
        values = sparse.table(_SPARSE_VALUES)
        left_out[values.text(_TENSOR_NAME) if values is not None else ""] = "sparse"
    for node in table.tables(_NODES):
        numbers: dict[str, int] = {}
        for attribute in node.tables(_ATTRIBUTES):
            name = attribute.text(_ATTRIBUTE_NAME)
            if attribute.integer(_ATTRIBUTE_TYPE) == _INTEGER_TYPE:
                numbers[name] = attribute.integer(_INTEGER, "<q")
            subgraphs += [each for each in (attribute.table(_SUBGRAPH),) if each is not None]
            subgraphs += attribute.tables(_SUBGRAPHS)
            _add_constants(graph, f"{node.text(_NODE_NAME)}.{name}", attribute)
        graph.nodes.append(
            Node(node.text(_DOMAIN), node.text(_OP), node.texts(_INPUTS), node.texts(_OUTPUTS), numbers)
        )
    return subgraphs


def _add_constants(graph: Graph, name: str, attribute: FlatTable) -> None:
    tensor, values = attribute.table(_TENSOR), attribute.numbers(_FLOATS, "<f4")
    if tensor is not None:
        _add(graph, name, _read_tensor(tensor))
    for each in attribute.tables(_TENSORS):
        _add(graph, name, _read_tensor(each))
    if len(values):
        _add(graph, name, StoredTensor("float32", (len(values),), values.view(np.uint8)))


def _add(graph: Graph, name: str, tensor: StoredTensor) -> None:
    if name in graph.tensors:
        graph.tensors[f"{name}~{len(graph.tensors)}"] = graph.tensors[name]
    graph.tensors[name] = tensor


def _read_tensor(table: FlatTable) -> StoredTensor:
    """A tensor. If it can't be read, it says why."""
    number = table.integer(_DATA_TYPE)
    dtype = DATA_TYPES.get(number, f"number {number}")
    shape = as_sizes(table.numbers(_DIMS, "<i8")[: MAX_DIMENSIONS + 1].tolist())
    if shape is None:
        return StoredTensor(dtype, (), _NOTHING, "an invalid shape")
    if table.integer(_EXTERNAL_OFFSET, "<q", default=-1) >= 0:
        return StoredTensor(dtype, shape, _NOTHING, "in a separate file")
    raw = table.content(_RAW)
    return StoredTensor(dtype, shape, _NOTHING if raw is None else raw)


def _is_ort(head: bytes, path: Path) -> bool:
    return head[4:8] == b"ORTM"


FORMAT = Format("ONNX Runtime", (".ort",), _is_ort, load_ort)
