"""Read files of PyTorch's lite interpreter in FlatBuffers (`.ptl`), whose objects are described like a pickle's.

The newer of the two `.ptl` formats: the other one is a zip that `torch_files.py` reads. The bytecode is not read.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, as_key
from hf_fingerprint.checkpoints.formats.flatbuffers import FlatTable
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.pytorch.nesting import all_tensors, unique_name
from hf_fingerprint.checkpoints.formats.pytorch.quantized_tensors import rebuild_quantized
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, element_bytes


_IDENTIFIER = b"PTMF"
_TENSOR, _STRING, _LIST, _TUPLE, _DICT, _OBJECT = 5, 6, 7, 8, 9, 10  # the union of values in mobile_bytecode.fbs
_WITH_STATE = (2, 3)  # kinds of classes that restore their objects from a state, as packed parameters are
_STATE_OBJECT, _VALUES, _STORAGES, _TYPES = 3, 4, 6, 7  # slots of a module
_DTYPES = (  # c10::ScalarType
    "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64",
    "complex128", "bool", "qint8", "quint8", "qint32", "bfloat16", "quint4x2", "quint2x4",
)  # fmt: skip


def _is_mobile(head: bytes, path: Path) -> bool:
    return head[4:8] == _IDENTIFIER


def load_mobile(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The tensors of a module, under the names of its attributes, and the constants of its code.

    Args:
        path (`Path`): the file.
        left_out (`dict[str, str]`): receives the names of unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged.
        [`OSError`]: if it can't be opened.
    """
    module = FlatTable.root(map_file(path))
    values, state = _Values(module), module.integer(_STATE_OBJECT, "<I")
    own = values.values[state] if state < len(values.values) else None
    taken: dict[str, int] = {}
    tensors: list[tuple[str, LazyTensor]] = []
    known: set[int] = set()
    for name, tensor in (*all_tensors(own, left_out), *all_tensors({"constants": values.roots()}, left_out)):
        if id(tensor) not in known:
            known.add(id(tensor))
            tensors.append((unique_name(name, taken), tensor))
    return FoundTensors(tensors, "PyTorch's lite interpreter")


FORMAT = Format("PyTorch Mobile", (".ptl",), _is_mobile, load_mobile)


class _Values:
    """The values of a module, which refer to one another by their numbers."""

    def __init__(self, module: FlatTable):
        self._tensors: dict[tuple[Any, ...], LazyTensor] = {}  # one that is there twice has one object
        self._children: set[int] = set()
        self._storages = [table.content(0) for table in module.tables(_STORAGES)]
        self._types = [(table.text(0), table.integer(1, "<B"), table.texts(2)) for table in module.tables(_TYPES)]
        kinds = [(table.integer(0, "<B"), table) for table in module.tables(_VALUES)]
        # values of other kinds may be structs
        tables = [(kind, table.table(1) if _TENSOR <= kind <= _OBJECT else None) for kind, table in kinds]
        self.values = [self._empty(kind, table) for kind, table in tables]
        for value, (kind, table) in zip(self.values, tables, strict=True):
            if table is not None:
                self._fill(value, kind, table)

    def roots(self) -> list[Any]:
        """The values to which no other one refers."""
        return [value for number, value in enumerate(self.values) if number not in self._children]

    def _empty(self, kind: int, table: FlatTable | None) -> Any:
        """A value to which others are not added yet."""
        if table is None:
            return None
        if kind == _TENSOR:
            tensor = self._tensor(table)
            layout = table.integer(0, "<I"), tensor.dtype, tensor.shape, tensor.strides, tensor.offset
            return self._tensors.setdefault(layout, tensor) if type(tensor) is LazyTensor else tensor
        if kind == _STRING:
            return table.text(0)
        if kind in (_LIST, _TUPLE):
            return []
        if kind == _OBJECT:
            return CallRecord(GlobalRef("__torch__.", self._type_of(table)[0]), ())
        return {} if kind == _DICT else None

    def _type_of(self, table: FlatTable) -> tuple[str, int, list[str]]:
        """Name, kind and attributes of an object's class."""
        number = table.integer(0, "<I")
        return self._types[number] if number < len(self._types) else ("", 0, [])

    def _fill(self, value: Any, kind: int, table: FlatTable) -> None:
        if kind in (_LIST, _TUPLE):
            value += self._referred(table, 0)
        elif kind == _DICT:
            value.update(zip(map(as_key, self._referred(table, 0)), self._referred(table, 1), strict=False))
        elif kind == _OBJECT:
            _, class_kind, names = self._type_of(table)
            state = table.integer(1, "<I")
            if class_kind not in _WITH_STATE:
                value.state = dict(zip(names, self._referred(table, 2), strict=False))
            elif state < len(self.values):
                self._children.add(state)
                value.state = self.values[state]

    def _referred(self, table: FlatTable, slot: int) -> Iterator[Any]:
        for number in table.numbers(slot, "<u4").tolist():
            self._children.add(number)
            yield self.values[number] if number < len(self.values) else None

    def _tensor(self, table: FlatTable, with_scales: bool = True) -> LazyTensor:
        place, code = table.integer(0, "<I"), table.integer(1, "<b")
        shape, strides = as_sizes(table.numbers(3, "<i4").tolist()), as_sizes(table.numbers(4, "<i4").tolist())
        dtype = _DTYPES[code] if 0 <= code < len(_DTYPES) else "of an unknown number"
        offset, raw = table.integer(2), self._storages[place] if place < len(self._storages) else None
        if shape is None or strides is None or len(shape) != len(strides) or offset < 0 or raw is None:
            return LazyTensor("", reason="impossible sizes")
        storage = Storage("file", dtype, len(raw) // element_bytes(dtype), data=raw)
        scheme = table.table(6) if with_scales else None
        if scheme is None:
            return LazyTensor(dtype, shape, strides, offset, storage)
        scales, zeros = scheme.table(3), scheme.table(4)
        if scales is not None and zeros is not None:
            parameters = ("", self._tensor(scales, False), self._tensor(zeros, False), scheme.integer(5))
            return rebuild_quantized(storage, offset, shape, strides, parameters)
        (scale,) = struct.unpack("<d", struct.pack("<q", scheme.integer(1, "<q")))
        return rebuild_quantized(storage, offset, shape, strides, ("", scale, scheme.integer(2)))
