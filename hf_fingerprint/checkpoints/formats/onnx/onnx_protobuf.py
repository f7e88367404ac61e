"""Read the graphs and functions of ONNX files."""

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph, Node, StoredTensor
from hf_fingerprint.checkpoints.formats.onnx.onnx_tensors import OnnxTensors
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.limits import MAX_NAME, MAX_PICKLE_TEXT, MAX_TENSORS


_NODES, _INITIALIZERS, _SPARSE_INITIALIZERS = 1, 5, 15  # of GraphProto
_FUNCTION_NODES = 7
_INPUTS, _OUTPUTS, _NAME, _OP, _ATTRIBUTES, _DOMAIN = 1, 2, 3, 4, 5, 7  # of NodeProto
_ATTRIBUTE_NAME, _INTEGER, _TENSOR, _SUBGRAPH, _FLOATS, _TENSORS, _SUBGRAPHS, _SPARSE = 1, 3, 5, 6, 7, 10, 11, 22
_TENSOR_NAME = 8
_SPARSE_VALUES = 1
_FEW = 4
_MAX_DEPTH = 32  # of subgraphs
_SPARSE_REASON = "sparse"


class GraphReader:
    """Reads graphs.

    Args:
        tensors ([`OnnxTensors`]): reads their tensors.

    Attributes:
        left_out (`dict[str, str]`): tensors that can't be read, each with the reason.
    """

    def __init__(self, tensors: OnnxTensors):
        self.left_out: dict[str, str] = {}
        self._tensors = tensors
        self._text_left = MAX_PICKLE_TEXT
        self._tensors_left = 2 * MAX_TENSORS  # with their scales

    def read_graph(self, message: Message) -> Graph:
        """A `GraphProto` with its subgraphs.

        Raises:
            [`InvalidFileError`]: if it is damaged or too large.
        """
        graph = Graph()
        waiting = [(message, 0)]
        while waiting:
            each, depth = waiting.pop()
            if depth > _MAX_DEPTH:
                raise InvalidFileError(f"subgraphs nested {_MAX_DEPTH} deep")
            for tensor in each.messages(_INITIALIZERS):
                self._add(graph, tensor.text(_TENSOR_NAME), self._tensors.read(tensor))
            for sparse in each.messages(_SPARSE_INITIALIZERS):
                values = sparse.message(_SPARSE_VALUES)
                self.left_out[values.text(_TENSOR_NAME) if values else ""] = _SPARSE_REASON
            waiting += [(inner, depth + 1) for inner in self._read_nodes(each, _NODES, graph)]
        return graph

    def read_function(self, message: Message) -> Graph:
        """A `FunctionProto`."""
        graph = Graph()
        for inner in self._read_nodes(message, _FUNCTION_NODES, graph):
            other = self.read_graph(inner)
            graph.nodes += other.nodes
            for name, tensor in other.tensors.items():
                self._add(graph, name, tensor)
        return graph

    def _read_nodes(self, message: Message, field: int, graph: Graph) -> list[Message]:
        """Adds the nodes in a field of a message to a graph; the subgraphs in their attributes."""
        subgraphs: list[Message] = []
        for part in message.messages(field):
            numbers: dict[str, int] = {}
            inputs, outputs, op = part.texts(_INPUTS), part.texts(_OUTPUTS), part.text(_OP)
            self._count_text(*inputs, *outputs)
            for attribute in part.messages(_ATTRIBUTES):
                name = attribute.text(_ATTRIBUTE_NAME)
                if _INTEGER in attribute:
                    numbers[name[:MAX_NAME]] = attribute.integer(_INTEGER)
                subgraphs += [*attribute.messages(_SUBGRAPH), *attribute.messages(_SUBGRAPHS)]
                called = outputs[0] if op == "Constant" and outputs else f"{part.text(_NAME)}.{name}"
                self._add_constants(graph, called, attribute)
            graph.nodes.append(Node(part.text(_DOMAIN), op, inputs, outputs, numbers))
        return subgraphs

    def _add_constants(self, graph: Graph, name: str, attribute: Message) -> None:
        for field in (_TENSOR, _TENSORS):
            for tensor in attribute.messages(field):
                self._add(graph, name, self._tensors.read(tensor))
        values = attribute.floats(_FLOATS)
        if len(values) >= _FEW:  # fewer are parameters of an activation
            self._add(graph, name, StoredTensor("float32", (len(values),), values.view("u1")))
        if _SPARSE in attribute:
            self.left_out[name] = _SPARSE_REASON

    def _add(self, graph: Graph, name: str, tensor: StoredTensor) -> None:
        self._tensors_left -= 1
        if self._tensors_left < 0:
            raise InvalidFileError(f"more than {2 * MAX_TENSORS:,} tensors")
        self._count_text(name)
        if name in graph.tensors:  # onnxruntime takes the last one
            graph.tensors[f"{name}~{len(graph.tensors)}"] = graph.tensors[name]
        graph.tensors[name] = tensor

    def _count_text(self, *names: str) -> None:
        self._text_left -= sum(map(len, names))
        if self._text_left < 0:
            raise InvalidFileError("too many long names")
