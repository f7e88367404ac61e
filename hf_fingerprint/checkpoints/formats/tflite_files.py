"""TFLite files, also called LiteRT: the constant tensors of all subgraphs.

Tensors keep the file's names and axes: a convolution is `(out, height, width, in)`, a depthwise one
`(1, height, width, out)`. Fields are read by their slots in TensorFlow's `schema.fbs`.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.tflite_quantization import CODES, FLOATS, dequantize_codes, stored
from hf_fingerprint.checkpoints.formats.tflite_sparsity import SparseTensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes, element_bytes
from hf_fingerprint.checkpoints.limits import (
    MAX_DIMENSIONS,
    MAX_NAME,
    MAX_TENSORS,
)
from hf_fingerprint.printable import printable


_MODEL_SUBGRAPHS, _MODEL_DESCRIPTION, _MODEL_BUFFERS, _MODEL_METADATA = 2, 3, 4, 6
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY, _EXTERNAL_BUFFER = 0, 1, 2, 3, 4, 6, 10
_OTHERS = {8: "complex64", 11: "complex128", 13: "resource", 14: "variant"}
_STRING, _BOOL = 5, 6
_SMALLEST = 16  # elements of unscaled integers: fewer are shapes and axes


def load_tflite(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of a TFLite file, dequantized.

    Args:
        path (`Path`): the file.
        left_out (`dict[str, str]`): receives the names of unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged or cut off.
        [`OSError`]: if it can't be read.
    """
    data = map_file(path)
    model = FlatTable.root(data)
    buffers = [_buffer_bytes(buffer, data) for buffer in model.tables(_MODEL_BUFFERS)]
    found = list(_read_tensors(model, buffers, left_out))
    if len(found) > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS:,} tensors")
    return FoundTensors(found, _producer(model, buffers))


def _read_tensors(
    model: FlatTable, buffers: Sequence[np.ndarray | None], left_out: dict[str, str]
) -> Iterator[tuple[str, LazyTensor]]:
    for name, table, raw, siblings in _constants(model, buffers):
        try:
            tensor = _read_tensor(table, raw, siblings)
        except InvalidFileError as error:
            left_out[printable(name)] = str(error)
            continue
        if tensor is not None:
            yield name, tensor


def _buffer_bytes(buffer: FlatTable, data: np.ndarray) -> np.ndarray | None:
    """The bytes of a buffer, of which a file of over 2 GB has some behind the tables. `None` if there are too few."""
    offset = buffer.integer(_BUFFER_OFFSET, "<Q")
    if offset > 1:
        try:
            return slice_bytes(data, offset, buffer.integer(_BUFFER_SIZE, "<Q"))
        except InvalidFileError:
            return None
    found = buffer.content(_BUFFER_DATA)
    return np.empty(0, np.uint8) if found is None else found


def _constants(
    model: FlatTable, buffers: Sequence[np.ndarray | None]
) -> Iterator[tuple[str, FlatTable, np.ndarray | None, "_Siblings"]]:
    """Names, tables and bytes of the tensors that have bytes, each with the tensors of its subgraph.

    A file of several signatures has a subgraph for each, and they share the weights: these are given once.
    """
    earlier: set[tuple[int, int, bytes]] = set()
    for subgraph in model.tables(_MODEL_SUBGRAPHS):
        tables = list(subgraph.tables(0))
        siblings = _Siblings(tables, buffers)
        own = set()
        for index, table in enumerate(tables):
            number, raw = siblings.bytes_of(index)
            external = table.integer(_EXTERNAL_BUFFER, "<I")
            if not external and raw is not None and not len(raw):
                continue
            key = (number or -external, table.integer(_TYPE, "<b"), table.numbers(_SHAPE, "<i4")[:64].tobytes())
            own.add(key)
            if key not in earlier:
                yield table.text(_NAME)[:MAX_NAME] or f"tensor {index}", table, raw, siblings
        earlier |= own


class _Siblings:
    """The tensors of a subgraph."""

    def __init__(self, tables: Sequence[FlatTable], buffers: Sequence[np.ndarray | None]):
        self._tables, self._buffers = tables, buffers

    def bytes_of(self, index: int) -> tuple[int, np.ndarray | None]:
        """The number of a tensor's buffer, and its bytes."""
        number = self._tables[index].integer(_BUFFER, "<I")
        return number, self._buffers[number] if number < len(self._buffers) else None

    def rows(self, index: int, shape: tuple[int, ...]) -> Rows | None:
        """The rows of a tensor in a shape, or `None` if it has none such."""
        if not 0 <= index < len(self._tables):
            return None
        table, raw = self._tables[index], self.bytes_of(index)[1]
        kind = table.integer(_TYPE, "<b")
        if raw is None or not len(raw) or kind not in FLOATS | CODES or prod(_shape(table)) != prod(shape):
            return None
        return stored(raw, kind, shape)


def _read_tensor(table: FlatTable, raw: np.ndarray | None, siblings: _Siblings) -> LazyTensor | None:
    """A constant as a tensor, or `None` if it is no weight.

    Raises:
        [`InvalidFileError`]: if it can't be read.
    """
    kind = table.integer(_TYPE, "<b")
    if kind in (_STRING, _BOOL):
        return None
    if table.integer(_EXTERNAL_BUFFER, "<I"):
        raise InvalidFileError("in a separate file")
    if raw is None:
        raise InvalidFileError("its buffer is missing")
    if kind not in FLOATS | CODES:
        raise InvalidFileError(f"dtype {_OTHERS.get(kind, kind)}")
    shape, sparsity = _shape(table), table.table(_SPARSITY)
    if not prod(shape):
        return None
    if sparsity is None and kind in FLOATS:
        tensor = dense_tensor(raw, FLOATS[kind], shape)
        if (reason := tensor.unreadable_reason()) is not None:
            raise InvalidFileError(reason)
        return tensor
    rows = stored(raw, kind, shape) if sparsity is None else _sparse_rows(sparsity, raw, kind, shape)
    if kind in FLOATS:
        return ComputedTensor(rows, shape, f"sparse {FLOATS[kind]}")
    name, quantization = CODES[kind].name, table.table(_QUANTIZATION)
    scaled = dequantize_codes(rows, shape, quantization, siblings.rows, name)
    if scaled is not None or prod(shape) < _SMALLEST:
        return scaled
    tensor = dense_tensor(raw, name, shape)
    return ComputedTensor(rows, shape, name) if sparsity is not None or tensor.unreadable_reason() else tensor


def _sparse_rows(sparsity: FlatTable, raw: np.ndarray, kind: int, shape: tuple[int, ...]) -> Rows:
    bits = CODES[kind].bits if kind in CODES else 8 * element_bytes(FLOATS[kind])
    count = len(raw) * 8 // bits
    return SparseTensor(sparsity, stored(raw, kind, (count,)), count, shape).rows


def _shape(table: FlatTable) -> tuple[int, ...]:
    sizes = as_sizes(table.numbers(_SHAPE, "<i4")[: MAX_DIMENSIONS + 1].tolist())
    if sizes is None:
        raise InvalidFileError("an invalid shape")
    return sizes


def _producer(model: FlatTable, buffers: Sequence[np.ndarray | None]) -> str:
    """The converter: TensorFlow's version if the file tells it, or the file's description."""
    for entry in model.tables(_MODEL_METADATA):
        number = entry.integer(1, "<I")
        raw = buffers[number] if number < len(buffers) else None
        if raw is None or entry.text(0) != "CONVERSION_METADATA":
            continue
        try:
            environment = FlatTable.root(raw).table(0)
        except InvalidFileError:
            continue
        if environment is not None and (version := environment.text(0)):
            return f"TensorFlow {version}"
    return model.text(_MODEL_DESCRIPTION)


def _is_tflite(head: bytes, path: Path) -> bool:
    return head[4:8] == b"TFL3"


FORMAT = Format("TensorFlow Lite", (".tflite", ".lite"), _is_tflite, load_tflite)
