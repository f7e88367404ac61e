"""TFLite files, also called LiteRT: the constant tensors of all subgraphs.

Tensors keep the file's names and axes: a convolution is `(out, height, width, in)`, a depthwise one
`(1, height, width, out)`. Fields are read by their slots in TensorFlow's `schema.fbs`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file
from hf_fingerprint.checkpoints.formats.tflite.tflite_buffers import TfliteBuffers
from hf_fingerprint.checkpoints.formats.tflite.tflite_quantization import (
    CODES,
    FLOATS,
    dequantize_codes,
    scaling_key,
    stored,
)
from hf_fingerprint.checkpoints.formats.tflite.tflite_sparsity import SparseTensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes, element_bytes
from hf_fingerprint.checkpoints.limits import (
    MAX_DIMENSIONS,
    MAX_NAME,
    MAX_TENSORS,
)


_SUBGRAPH_LIST, _DESCRIPTION, _METADATA = 2, 3, 6  # of Model
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY, _EXTERNAL_BUFFER = 0, 1, 2, 3, 4, 6, 10  # of Tensor
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
    buffers = TfliteBuffers(path, data, model)
    found: list[tuple[str, LazyTensor]] = []
    for name, table, siblings in _distinct_tensors(model, buffers):
        try:
            tensor = _read_tensor(table, siblings)
        except InvalidFileError as error:
            left_out[name] = str(error)
            continue
        if tensor is not None:
            found.append((name, tensor))
        if len(found) > MAX_TENSORS:
            raise InvalidFileError(f"more than {MAX_TENSORS:,} tensors")
    return FoundTensors(found, _producer(model, buffers), tuple(buffers.companions))


class _Siblings:
    """The tensors of a subgraph."""

    def __init__(self, tables: Sequence[FlatTable], buffers: TfliteBuffers):
        self._tables, self._buffers = tables, buffers

    def bytes_of(self, table: FlatTable) -> np.ndarray:
        """The bytes of a tensor.

        Raises:
            [`InvalidFileError`]: if they are missing.
        """
        if external := table.integer(_EXTERNAL_BUFFER, "<I"):
            return self._buffers.outer(external)
        return self._buffers.inner(table.integer(_BUFFER, "<I"))

    def reshaped(self, index: int, shape: tuple[int, ...]) -> LazyTensor | None:
        """A tensor of scales or zeros in another shape, or `None` if there is none such."""
        if not 0 <= index < len(self._tables):
            return None
        table = self._tables[index]
        kind, raw = table.integer(_TYPE, "<b"), self.bytes_of(table)
        if not len(raw) or kind not in FLOATS | CODES or prod(_shape(table)) != prod(shape):
            return None
        return ComputedTensor(stored(raw, kind, shape), shape, "scales")


def _distinct_tensors(model: FlatTable, buffers: TfliteBuffers) -> Iterator[tuple[str, FlatTable, _Siblings]]:
    """Names and tables of all tensors, constant or not, each with the tensors of its subgraph.

    A file of several signatures has a subgraph for each, and they share the weights: these are given once, unless
    subgraphs scale the same integers in different ways.
    """
    earlier: set[tuple[object, ...]] = set()
    for subgraph in model.tables(_SUBGRAPH_LIST):
        tables = list(subgraph.tables(0))
        siblings, own = _Siblings(tables, buffers), set[tuple[object, ...]]()
        for index, table in enumerate(tables):
            key = _values_key(table)
            own.add(key)
            if key not in earlier:
                yield table.text(_NAME)[:MAX_NAME] or f"tensor {index}", table, siblings
        earlier |= own


def _values_key(table: FlatTable) -> tuple[object, ...]:
    """Equal for tensors of subgraphs only if they have the same values."""
    quantization, sparsity = table.table(_QUANTIZATION), table.table(_SPARSITY)
    return (
        *(table.integer(slot, "<I") for slot in (_BUFFER, _EXTERNAL_BUFFER)),
        table.integer(_TYPE, "<b"),
        table.numbers(_SHAPE, "<i4")[:MAX_DIMENSIONS].tobytes(),
        None if quantization is None else scaling_key(quantization),
        None if sparsity is None else sparsity.place,
    )


def _read_tensor(table: FlatTable, siblings: _Siblings) -> LazyTensor | None:
    """A constant, or `None` if the tensor is none or no weight.

    Raises:
        [`InvalidFileError`]: if it can't be read.
    """
    kind = table.integer(_TYPE, "<b")
    if kind in (_STRING, _BOOL):
        return None
    raw = siblings.bytes_of(table)
    if not len(raw):
        return None
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
    scaled = dequantize_codes(rows, shape, quantization, siblings.reshaped, name)
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


def _producer(model: FlatTable, buffers: TfliteBuffers) -> str:
    """The converter: TensorFlow's version if the file names it, or the file's description."""
    for entry in model.tables(_METADATA):
        if entry.text(0) == "CONVERSION_METADATA":
            with suppress(InvalidFileError):
                environment = FlatTable.root(buffers.inner(entry.integer(1, "<I"))).table(0)
                if environment is not None and (version := environment.text(0)):
                    return f"TensorFlow {version}"
    return model.text(_DESCRIPTION)


def _is_tflite(head: bytes, path: Path) -> bool:
    return head[4:8] == b"TFL3"


FORMAT = Format("TensorFlow Lite", (".tflite", ".lite"), _is_tflite, load_tflite)
