"""Writes small ONNX files by hand, also ones that no library would write."""

from pathlib import Path

import numpy as np

from tests.helpers.wire import field, varint


FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, UINT4, INT4 = 1, 2, 3, 6, 7, 10, 21, 22
MICROSOFT = "com.microsoft"
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int32": INT32, "int64": INT64, "float16": FLOAT16}


def packed(numbers) -> bytes:
    """Numbers of a repeated field."""
    return b"".join(map(varint, numbers))


def tensor(name: str, values: np.ndarray | None = None, dtype: int = 0, dims=(), extra: bytes = b"") -> bytes:
    """A `TensorProto`: of an array, or of a dtype and dimensions with fields of its own."""
    if values is not None:
        dtype, dims = dtype or _TYPES[values.dtype.name], dims or values.shape
        extra += field(9, values.tobytes())
    return field(1, packed(dims)) + field(2, dtype) + field(8, name) + extra


def external(name: str, dims, location: str, offset: int | str = 0, length: int | None = None) -> bytes:
    """A `TensorProto` of float32 in another file."""
    entries = {"location": location, "offset": str(offset)} | ({} if length is None else {"length": str(length)})
    extra = b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries.items())
    return tensor(name, None, FLOAT, dims, extra + field(14, 1))


def attribute(name: str, value: int | bytes, number: int = 3) -> bytes:
    """An `AttributeProto`: a number, or content in a field of its own."""
    return field(5, field(1, name) + field(number, value))


def node(op: str, inputs, outputs, domain: str = "", extra: bytes = b"", **numbers: int) -> bytes:
    """A `NodeProto`."""
    found = b"".join(field(1, each) for each in inputs) + b"".join(field(2, each) for each in outputs)
    found += field(4, op) + field(7, domain)
    return found + b"".join(attribute(name, value) for name, value in numbers.items()) + extra


def graph(tensors=(), nodes=()) -> bytes:
    """A `GraphProto`."""
    return b"".join(field(1, each) for each in nodes) + b"".join(field(5, each) for each in tensors)


def model(tensors=(), nodes=(), extra: bytes = b"") -> bytes:
    """A `ModelProto`."""
    opset = field(8, field(2, 21))
    return field(1, 10) + field(2, "hand") + field(3, "1.0") + field(7, graph(tensors, nodes)) + opset + extra


def write(path: Path, content: bytes) -> Path:
    """The file, written."""
    path.write_bytes(content)
    return path
