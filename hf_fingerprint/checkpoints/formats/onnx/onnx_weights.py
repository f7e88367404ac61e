"""The weights of an ONNX graph: plain, dequantized, unpacked or taken out of blocks."""

import re

from hf_fingerprint.checkpoints.formats.onnx.onnx_blocked import unblock_weights
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph
from hf_fingerprint.checkpoints.formats.onnx.onnx_packed import unpack_weights
from hf_fingerprint.checkpoints.formats.onnx.onnx_quantized import Scales, dequantize_weights
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


_TINY = 16  # elements of integers that can't be weights
_OF_QUANTIZERS = re.compile(r"(_quantized|(_DQ)?_Q\d|_Bnb4|_quant)$")


def find_graph_weights(graph: Graph, left_out: dict[str, str]) -> list[tuple[str, LazyTensor]]:
    """The weights of a graph, in its order. One that is dequantized loses the end that quantizers add to its name.

    Scales, zero points, single numbers and a few integers are no weights. Integers without known scales are given
    unchanged.

    Args:
        graph ([`Graph`]): the graph.
        left_out (`dict[str, str]`): receives the tensors that can't be read, each with the reason.
    """
    scales, problems = Scales(), dict[str, str]()
    made: dict[str, LazyTensor] = {**unblock_weights(graph, problems)}
    made.update(unpack_weights(graph, scales, problems))
    quantized = dequantize_weights(graph, scales, problems)
    made.update((name, tensor) for name, tensor in quantized.items() if name not in made)
    found = []
    for name, stored in graph.tensors.items():
        if name in made:
            tensor, called = made[name], _OF_QUANTIZERS.sub("", name) or name
        elif name in problems:
            tensor, called = LazyTensor(stored.dtype, reason=problems[name]), name
        elif stored.reason or (name not in scales.used and stored.size > (1 if stored.is_float else _TINY - 1)):
            tensor, called = stored.tensor(), name
        else:
            continue
        if reason := tensor.unreadable_reason():
            left_out[name] = reason
        elif tensor.numel() > 1:
            found.append((called, tensor))
    return found
