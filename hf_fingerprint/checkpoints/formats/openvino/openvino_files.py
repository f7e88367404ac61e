"""Read the weights of an OpenVINO IR: `model.xml`, and `model.bin` next to it.

Weights are constants of the graph. Compressed ones are dequantized as the graph does it:

    Const (int8) -> Convert -> Subtract (zero points) -> Multiply (scales) -> Reshape -> Convert
    Const (uint4) -> Convert -> Gather (in a codebook) -> Multiply (scales) -> Reshape -> Convert
"""

import re
from collections.abc import Collection, Iterable
from math import prod
from pathlib import Path, PurePosixPath

import numpy as np

from hf_fingerprint.checkpoints.formats.code_tables import F4_E2M1, NF4
from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.computed_tensors import (
    ComputedTensor,
    dequantize,
    look_up,
    packed_rows,
    stored_rows,
    stored_values,
)
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.openvino.openvino_graph import Graph, Layer, read_graphs
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS, MAX_TENSORS


_LONGEST_CHAIN = 12  # layers from a constant to the one that uses it
_MOST_USERS = 8
_FEWEST = 16  # elements; a smaller constant is a setting of a layer
_LARGEST_TABLE = 256  # values of a codebook
_HEAD = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*\?>\s*)?(<!--[^>]*-->\s*)?<net\s+name\s*=")
_UNNAMED = re.compile(r"[A-Z][A-Za-z]*_\d+(_compressed)?|\d+")  # as OpenVINO numbers layers
_DENSE = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2", "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8",
}  # fmt: skip
_PACKED = {"i4": 4, "u4": 4, "u2": 2, "u1": 1, "nf4": 4, "f4e2m1": 4, "f8e8m0": 8}  # bits
_TABLES: dict[str, np.ndarray] = {
    "nf4": NF4,
    "f4e2m1": F4_E2M1,
    "f8e8m0": np.array([*np.exp2(np.arange(255) - 127.0), np.nan], np.float32),
}  # fmt: skip


def load_openvino(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of an OpenVINO IR, dequantized to `float32` where they are compressed.

    A weight has the name of its constant or of the layer that completes it, whichever says more. Constants of fewer
    than 16 elements are settings of layers and not given.

    Args:
        path (`Path`): the `.xml` file, next to its `.bin` file.
        left_out (`dict[str, str]`): receives the unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if the graph is damaged, or there are no weights.
        [`OSError`]: if a file can't be read.
    """
    graphs, version = read_graphs(path)
    weights = find_companion(path, PurePosixPath(path.with_suffix(".bin").name))
    constants = _Constants(map_file(weights))
    tensors = [found for graph in graphs for found in constants.weights_of(graph, left_out)]
    return FoundTensors(tensors, f"OpenVINO {version.partition('-')[0]}" if version else "", (weights,))


class _Constants:
    """Reads the constants of one file.

    Args:
        data (`np.ndarray`): the bytes of the `.bin` file, `uint8`.
    """

    def __init__(self, data: np.ndarray):
        self._data = data

    def weights_of(self, graph: Graph, left_out: dict[str, str]) -> list[tuple[str, LazyTensor]]:
        """The names and tensors of a graph's weights."""
        found: dict[str, tuple[str, LazyTensor]] = {}
        used: set[str] = set()
        for key, layer in graph.items():
            sizes = _sizes(layer)
            if layer.kind != "Const" or (sizes is not None and prod(sizes) < _FEWEST) or _is_range(graph, layer):
                continue
            if len(found) + len(left_out) >= MAX_TENSORS:
                left_out["..."] = f"tensors beyond the first {MAX_TENSORS}"
                break
            try:
                found[key] = self._follow(graph, key, used)
            except InvalidFileError as error:
                left_out[layer.name] = str(error)
        return [each for key, each in found.items() if key not in used]

    def _follow(self, graph: Graph, key: str, used: set[str]) -> tuple[str, LazyTensor]:
        """A constant as the graph uses it, and its name. Adds the constants that are its scales and such to `used`."""
        tensor = self._read(graph[key])
        names = [graph[key].name]
        for _ in range(_LONGEST_CHAIN):
            for user, port in graph[key].users[:_MOST_USERS]:
                try:
                    following = self._apply(graph, key, user, port, tensor, used)
                except InvalidFileError:  # its scales can't be read: the codes are given unchanged
                    following = None
                if following is not None:
                    key, tensor = user, following
                    names.append(graph[key].name)
                    break
            else:
                break
        telling_names = [name for name in names if not _UNNAMED.fullmatch(name)]
        return min(telling_names, key=len, default=names[0]), tensor

    def _apply(
        self, graph: Graph, key: str, user: str, port: str, tensor: LazyTensor, used: set[str]
    ) -> LazyTensor | None:
        """The result of a layer that uses a tensor, if it is part of the weight, or `None`."""
        layer, shape = graph[user], tensor.shape
        if layer.inputs.get(port) != key or port not in ("0", "1"):
            return None
        if layer.kind == "Convert":
            return tensor
        other = _constant_before(graph, layer.inputs.get("1" if port == "0" else "0", ""))
        sizes = None if other is None else _sizes(graph[other])
        if other is None or sizes is None:
            return None
        if layer.kind == "Reshape" and port == "0":
            return _reshape(tensor, stored_values(self._read(graph[other]))) if prod(sizes) <= MAX_DIMENSIONS else None
        if layer.kind == "Gather" and port == "1":
            if len(sizes) != 1 or sizes[0] > _LARGEST_TABLE or not _stored(tensor).startswith("uint"):
                return None
            found = look_up(stored_rows(tensor), shape, stored_values(self._read(graph[other])), _stored(tensor))
        elif layer.kind == "Multiply" or (layer.kind == "Subtract" and port == "0"):
            factor = (1,) * (len(shape) - len(sizes)) + sizes
            spreads = len(factor) == len(shape) and all(a in (1, b) for a, b in zip(factor, shape, strict=True))
            if not spreads or (factor == shape and port != "0"):
                return None
            values = self._read(graph[other], factor)
            scales, zeros = (1.0, values) if layer.kind == "Subtract" else (values, None)
            found = dequantize(stored_rows(tensor), shape, scales, zeros, _stored(tensor))
        else:
            return None
        used.add(other)
        return found

    def _read(self, layer: Layer, shape: tuple[int, ...] | None = None) -> LazyTensor:
        """A constant as it is stored, in its own shape or one of as many elements."""
        kind, shape = layer.data.get("element_type", ""), _sizes(layer) if shape is None else shape
        offset, size = _number(layer.data.get("offset", "")), _number(layer.data.get("size", ""))
        if shape is None or offset is None or size is None:
            raise InvalidFileError("an invalid shape or place")
        raw = slice_bytes(self._data, offset, size)
        if kind in _DENSE:
            tensor = dense_tensor(raw, _DENSE[kind], shape)
            if (reason := tensor.unreadable_reason()) is not None:
                raise InvalidFileError(reason)
            return tensor
        if kind not in _PACKED:
            raise InvalidFileError(f"element type {kind[:20]}")
        bits, stored = _PACKED[kind], kind.replace("i", "int").replace("u", "uint")
        rows = packed_rows(raw, bits, shape, signed=kind.startswith("i"), high_first=bits == 1)
        if kind in _TABLES:
            return look_up(rows, shape, _TABLES[kind], kind)
        return ComputedTensor(rows, shape, stored)


def _is_range(graph: Graph, layer: Layer) -> bool:
    """Whether a constant is nothing but a bound between which other values are rounded."""
    users = layer.users[:_MOST_USERS]
    return bool(users) and all(port != "0" and graph[user].kind == "FakeQuantize" for user, port in users)


def _constant_before(graph: Graph, key: str) -> str | None:
    """The constant that a layer is, or that it converts, or `None`."""
    for _ in range(3):
        layer = graph.get(key)
        if layer is None or layer.kind == "Const":
            return None if layer is None else key
        if layer.kind != "Convert":
            return None
        key = layer.inputs.get("0", "")
    return None


def _reshape(tensor: LazyTensor, target: np.ndarray) -> LazyTensor | None:
    """A dequantized tensor in another shape of as many rows, such as without its groups, or `None`."""
    shape = tensor.shape
    if not isinstance(tensor, ComputedTensor) or target.ndim != 1 or target.dtype.kind != "i":
        return None
    sizes = [shape[i] if size == 0 and i < len(shape) else int(size) for i, size in enumerate(target)]
    if sizes.count(-1) == 1:
        known = prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = prod(shape) // known if known else 0
    if not sizes or min(sizes) < 0 or prod(sizes) != prod(shape) or sizes[0] != shape[0]:
        return None
    rows = stored_rows(tensor)
    return ComputedTensor(lambda a, b: rows(a, b).reshape(b - a, *sizes[1:]), tuple(sizes), tensor.stored)


def _stored(tensor: LazyTensor) -> str:
    """How a tensor's values are stored."""
    return tensor.stored if isinstance(tensor, ComputedTensor) else tensor.dtype


def _sizes(layer: Layer) -> tuple[int, ...] | None:
    """The shape of a constant, or `None`."""
    text = layer.data.get("shape")
    listed = text.split(",") if text and text.strip() else []
    if layer.kind != "Const" or text is None or len(listed) > MAX_DIMENSIONS:
        return None
    sizes = [_number(each) for each in listed]
    return None if None in sizes else tuple(size for size in sizes if size is not None)


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 19 else None


def _companions(name: str, names: Collection[str]) -> Iterable[str]:
    stem = name[: -len(".xml")] if name.lower().endswith(".xml") else name
    return [f"{stem}.bin"] if f"{stem}.bin" in names else []


FORMAT = Format("OpenVINO", (".xml",), lambda head, path: _HEAD.match(head) is not None, load_openvino, _companions)
