"""Read the weights of a frozen TensorFlow graph (`.pb`): its constants.

The file is a `GraphDef`. A SavedModel is another message, whose variables lie in further files.
"""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes, element_bytes
from hf_fingerprint.checkpoints.limits import MAX_NAME, MAX_TENSORS


_FEWEST = 16  # elements; a smaller constant is a setting of an operation
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 11: "int8", 12: "uint8",
    14: "bfloat16", 19: "float16", 24: "float8_e5m2", 25: "float8_e4m3fn",
}  # fmt: skip
_NAMES = {7: "text", 8: "complex64", 10: "bool", 13: "qint32", 17: "uint16", 22: "uint32", 23: "uint64"}
_FIRST = re.compile(rb"\n[\x80-\xff]{0,4}[\x00-\x7f]\n")  # a node's tag and size, and the tag of its name
_OPERATION = re.compile(rb"\x12([\x01-\x7f])([A-Z_][A-Za-z0-9_>]*)")


def load_frozen_graph(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The constants of a frozen graph, with the axes as TensorFlow has them: `(height, width, in, out)`.

    Constants of fewer than 16 elements are settings of operations and not given.

    Args:
        path (`Path`): the `.pb` file.
        left_out (`dict[str, str]`): receives the unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if the file is damaged.
        [`OSError`]: if it can't be read.
    """
    graph = Message(map_file(path))
    found: list[tuple[str, LazyTensor]] = []
    for node in _nodes(graph):
        stored = _constant(node)
        shape = None if stored is None else _shape(stored)
        if stored is None or (shape is not None and prod(shape) < _FEWEST):
            continue
        if len(found) + len(left_out) >= MAX_TENSORS:
            left_out["..."] = f"tensors beyond the first {MAX_TENSORS}"
            break
        name = node.text(1)[:MAX_NAME]
        try:
            found.append((name, _tensor(stored, shape)))
        except InvalidFileError as error:
            left_out[name] = str(error)
    version = graph.message(4)
    return FoundTensors(found, "" if version is None else f"TensorFlow (graph version {version.integer(1)})")


def _nodes(graph: Message) -> Iterator[Message]:
    """The nodes of a graph and of its functions."""
    yield from graph.messages(1)
    for library in graph.messages(2):
        for function in library.messages(1):
            yield from function.messages(3)


def _constant(node: Message) -> Message | None:
    """The tensor of a constant, or `None` for another operation."""
    if node.text(2) != "Const":
        return None
    for entry in node.messages(5):
        value = entry.message(2)
        if entry.text(1) == "value" and value is not None:
            return value.message(8)
    return None


def _shape(stored: Message) -> tuple[int, ...] | None:
    """The shape of a tensor, or `None` if it is not valid."""
    shape = stored.message(2)
    return as_sizes([] if shape is None else [each.integer(1) for each in shape.messages(2)])


def _tensor(stored: Message, shape: tuple[int, ...] | None) -> LazyTensor:
    """A tensor whose values are in one field of bytes, or in a field of values of which the last may be repeated."""
    kind = stored.integer(1)
    dtype = _DTYPES.get(kind)
    if shape is None:
        raise InvalidFileError("an invalid shape")
    if dtype is None:
        raise InvalidFileError(f"dtype {_NAMES.get(kind, kind)}")
    content = stored.content(4)
    if content is None:
        values = _listed(stored, dtype)
        if 0 < len(values) < prod(shape):
            return _repeated(values, shape)
        content = values.view(np.uint8)
    if len(content) < prod(shape) * element_bytes(dtype):
        raise InvalidFileError("too few bytes for its shape")
    return dense_tensor(content, dtype, shape)


def _listed(stored: Message, dtype: str) -> np.ndarray:
    """The values of a tensor that has a field of values, as its own type."""
    if dtype == "float32":
        return np.ascontiguousarray(stored.floats(5))
    if dtype == "float64":
        return np.ascontiguousarray(stored.doubles(6))
    if dtype in ("float16", "bfloat16"):
        return np.array([value & 0xFFFF for value in stored.integers(13)], np.uint16)
    raise InvalidFileError("values that are not stored as bytes")


def _repeated(values: np.ndarray, shape: tuple[int, ...]) -> ComputedTensor:
    """A tensor whose last values are all the same, of which the file has the first."""
    dtype = {4: "float32", 8: "float64"}.get(values.itemsize)
    if dtype is None:
        raise InvalidFileError("repeated values of half precision")
    columns = prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        found = np.full((stop - start) * columns, values[-1], np.float32)
        given = values[start * columns : stop * columns]
        found[: len(given)] = given
        return found.reshape(stop - start, *shape[1:])

    return ComputedTensor(rows, shape, dtype)


def _matches(head: bytes, path: Path) -> bool:
    """Whether a file begins with a node that has a name and an operation."""
    first = _FIRST.match(head)
    if first is None:
        return False
    at, length, shift = first.end(), 0, 0
    for byte in head[at : at + 2]:
        at += 1
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    operation = _OPERATION.match(head[at + length :])
    return operation is not None and len(operation[2]) >= operation[1][0]


FORMAT = Format("TensorFlow", (".pb",), _matches, load_frozen_graph)
