"""Dequantize the weights of an exported program as its graph does: integers with scales in tensors of their own.

The graph is JSON. Only the nodes of `quantized_decomposed.dequantize_*` are read, which PT2E quantization writes.
"""

import re
from typing import Any

from hf_fingerprint.checkpoints.formats.pytorch.quantized_tensors import QuantizedTensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor


_DEQUANTIZE = re.compile(r"torch\.ops\.quantized_decomposed\.dequantize_per_(tensor|channel)\..*")
_STORED = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}
_NAMES = ("parameter_name", "buffer_name", "tensor_constant_name")


def dequantize_by_graph(program: Any, tensors: list[tuple[str, LazyTensor]]) -> list[tuple[str, LazyTensor]]:
    """The tensors, with codes dequantized and their scales and zero points left out.

    Args:
        program (anything): the parsed JSON of the program, which may be hostile.
        tensors (`list[tuple[str, LazyTensor]]`): names and tensors of the file.
    """
    module = _entry(program, "graph_module")
    inputs, nodes = _entry(_entry(module, "signature"), "input_specs"), _entry(_entry(module, "graph"), "nodes")
    names = dict(map(_input_name, inputs if isinstance(inputs, list) else ()))
    stored = dict(reversed(tensors))
    computed: dict[str, LazyTensor] = {}
    factors: set[str] = set()
    for node in nodes if isinstance(nodes, list) else ():
        target = _entry(node, "target")
        if not isinstance(target, str) or not _DEQUANTIZE.fullmatch(target):
            continue
        values = [_argument(each, names) for each in _listed(node, "inputs")[:4]]
        codes = stored.get(values[0]) if values and isinstance(values[0], str) else None
        if codes is None or codes.dtype not in _STORED or len(values) < 3:
            continue  # not a weight
        used = [each for each in values[1:3] if isinstance(each, str)]
        parameters = tuple(stored.get(each) if isinstance(each, str) else each for each in values[1:3])
        if "per_channel" in target:
            axis = values[3] if len(values) > 3 else None
            if not isinstance(axis, int) or not 0 <= axis < len(codes.shape):
                continue
            if not all(isinstance(each, LazyTensor) for each in parameters):
                continue
            parameters = (*parameters, axis)
        elif not all(isinstance(each, int | float) for each in parameters):
            continue
        computed.setdefault(str(values[0]), QuantizedTensor(codes, codes.shape, parameters, _STORED[codes.dtype]))
        factors.update(used)
    return [(name, computed.get(name, tensor)) for name, tensor in tensors if name not in factors]


def _entry(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _listed(found: Any, key: str) -> list[Any]:
    listed = _entry(found, key)
    return listed if isinstance(listed, list) else []


def _input_name(spec: Any) -> tuple[str, str]:
    """The graph's name of an input, and the name of the tensor that it stands for; empty if there is none."""
    inner = next(iter(spec.values()), None) if isinstance(spec, dict) else None
    own = next((inner[key] for key in _NAMES if key in inner), None) if isinstance(inner, dict) else None
    name = _entry(_entry(inner, "arg"), "name")
    return (name, own) if isinstance(name, str) and isinstance(own, str) else ("", "")


def _argument(found: Any, names: dict[str, str]) -> Any:
    """A node's argument: the name of a tensor of the file, a number, or `None`."""
    value = _entry(found, "arg")
    tensor = _entry(_entry(value, "as_tensor"), "name")
    if isinstance(tensor, str):
        return names.get(tensor)
    number = _entry(value, "as_float")
    number = _entry(value, "as_int") if number is None else number
    return number if isinstance(number, int | float) and abs(number) < 1 << 62 else None
