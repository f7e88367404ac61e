"""Read ONNX files: a walk over the protobuf wire format with the field numbers of `onnx.proto`.

Tensors stay views of the mapped file, or of the files with external data next to it.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.onnx.onnx_graph import Graph
from hf_fingerprint.checkpoints.formats.onnx.onnx_protobuf import GraphReader
from hf_fingerprint.checkpoints.formats.onnx.onnx_tensors import OnnxTensors
from hf_fingerprint.checkpoints.formats.onnx.onnx_weights import find_graph_weights
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.limits import MAX_TENSORS


_VARINT, _BYTES = 0, 2
_WIRES = {  # fields of ModelProto
    1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES, 14: _BYTES,
    20: _BYTES, 25: _BYTES, 26: _BYTES,
}  # fmt: skip
_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSETS, _FUNCTIONS = 1, 2, 3, 7, 8, 25
_GRAPH_FIELDS = {1, 2, 5, 10, 11, 12, 13, 14, 15, 16}
_MAX_VERSION = 100
_SUFFIX = ".onnx"
_DATA = re.compile(r"([._]data|[._]weights|[._]bin)([._-]?\d+)?", re.IGNORECASE)


def load_onnx(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of an ONNX file; see [`Format`]."""
    model = Message(map_file(path))
    if _GRAPH not in model:
        raise InvalidFileError("no graph")
    tensors = OnnxTensors(path)
    reader = GraphReader(tensors)
    graphs: list[Graph] = []
    for each in model.messages(_GRAPH):
        graphs.append(reader.read_graph(each))
    for each in model.messages(_FUNCTIONS):
        graphs.append(reader.read_function(each))
    left_out.update(reader.left_out)
    found = [one for graph in graphs for one in find_graph_weights(graph, left_out)]
    if len(found) > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS:,} tensors")
    producer = f"{model.text(_PRODUCER)} {model.text(_PRODUCER_VERSION)}".strip()
    return FoundTensors(found, producer, tuple(tensors.companions))


def _matches(head: bytes, path: Path) -> bool:
    """Whether a file begins with fields of a model, among them its graph."""
    named, seen, at = path.name.lower().endswith(_SUFFIX), set(), 0
    while at < len(head):
        key, at = _varint(head, at)
        number, wire = key >> 3, key & 7
        if _WIRES.get(number) != wire:
            return False
        value, at = _varint(head, at)
        if at > len(head):
            break
        if number == _VERSION and not 0 < value <= _MAX_VERSION:
            return False
        if number == _GRAPH and at < len(head) and not _begins_graph(head, at, value):
            return False
        seen.add(number)
        at += value if wire == _BYTES else 0
    if _GRAPH in seen and (_VERSION in seen or _OPSETS in seen):
        return True
    return named and bool(seen)


def _begins_graph(head: bytes, at: int, size: int) -> bool:
    key, _ = _varint(head, at)
    return size > 0 and key & 7 == _BYTES and key >> 3 in _GRAPH_FIELDS


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it, beyond the end if it is cut off."""
    value = 0
    for place, byte in enumerate(head[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    return value, len(head) + 1


def _companions(name: str, names: Collection[str]) -> Iterable[str]:
    """Files with external data as exporters name them: `model.onnx_data`, `model.onnx.data`, `model.data`."""
    file = PurePosixPath(name)
    stem = file.name[: -len(_SUFFIX)] if file.name.lower().endswith(_SUFFIX) else file.name
    there = set(names)
    for each in sorted(there):
        other = PurePosixPath(each)
        if other.parent != file.parent or not other.name.startswith(stem):
            continue
        rest = other.name[len(file.name) :] if other.name.startswith(file.name) else other.name[len(stem) :]
        if rest.lower() == ".bin" and str(file.with_name(f"{stem}.xml")) in there:
            continue  # OpenVINO's
        if _DATA.fullmatch(rest):
            yield each


FORMAT = Format("ONNX", (_SUFFIX,), _matches, load_onnx, _companions)
