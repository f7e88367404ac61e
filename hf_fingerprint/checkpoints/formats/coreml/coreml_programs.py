"""Core ML programs (MIL): the weights among the constants of their operations.

A program comes as protobuf in a package, and as text in a compiled folder. Both are read as [`Operation`]s.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import (
    FLOATS,
    Constant,
    Unreadable,
    WeightFiles,
    make_constant,
)
from hf_fingerprint.checkpoints.formats.coreml.coreml_compression import Decompressor
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS, MAX_TENSORS


Value = Constant | Unreadable
SMALLEST = 16  # integers of a constant that may be weights; fewer are strides, axes and shapes
MAX_DEPTH = 8  # of blocks in operations
_TYPES = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 13: "bf16", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2",
    37: "uint1", 38: "uint6", 39: "uint3", 40: "fp8e4m3fn", 41: "fp8e5m2",
}  # fmt: skip
_NUMPY = {"fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "bool": "u1", "int4": "i1", "int8": "i1", "int16": "<i2",
          "int32": "<i4", "int64": "<i8", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """An operation of a program.

    Attributes:
        kind (`str`): what it does, such as `"const"` or `"conv"`.
        outputs (`tuple[str, ...]`): names of its outputs.
        inputs (`dict[str, str | Constant | Unreadable]`): by parameter, the name of an output, or a value.
    """

    kind: str
    outputs: tuple[str, ...]
    inputs: dict[str, str | Value]


def immediate(dtype: str, shape: tuple[int, ...], values: np.ndarray) -> Constant:
    """A constant whose numbers the program holds themselves.

    Raises:
        [`InvalidFileError`]: if they are too few, or of an unknown type.
    """
    wide = dtype if dtype in _NUMPY else "uint8" if dtype.startswith("uint") else ""
    wide = "int8" if dtype == "int4" else wide
    with np.errstate(all="ignore"):
        raw = np.ascontiguousarray(values, _NUMPY.get(wide, "u1")).reshape(-1).view(np.uint8)
    return make_constant(wide or dtype, shape, raw)


def program_weights(
    functions: Iterable[Iterable[Operation]], left_out: dict[str, str]
) -> list[tuple[str, LazyTensor]]:
    """The weights of a program: its constants, unpacked, but those of which others were unpacked.

    Args:
        functions (iterable): for each function its operations, in order.
        left_out (`dict[str, str]`): receives the unreadable ones, each with a short reason.

    Raises:
        [`InvalidFileError`]: if there are too many.
    """
    found: list[tuple[str, LazyTensor]] = []
    seen: set[object] = set()
    decompressor = Decompressor()
    for operations in functions:
        for name, value in _values(operations, decompressor):
            if not _may_be_weights(value):
                continue
            if isinstance(value, Unreadable):
                left_out[name] = value.reason
                continue
            if value.place is not None and (name, value.place) in seen:  # functions that share a weight
                continue
            seen.add((name, value.place))
            found.append((name, value.tensor))
            if len(found) > MAX_TENSORS:
                raise InvalidFileError(f"more than {MAX_TENSORS:,} constants")
    return found


def _values(operations: Iterable[Operation], decompressor: Decompressor) -> Iterator[tuple[str, Value]]:
    """The names and values of the constants of a function that it uses unpacked."""
    values: dict[str, Value] = {}
    given: dict[str, Value] = {}
    unpacked: set[str] = set()
    used: set[str] = set()
    for operation in operations:
        name = operation.outputs[0] if operation.outputs else ""
        inputs = {key: values.get(each) if isinstance(each, str) else each for key, each in operation.inputs.items()}
        if operation.kind == "const":
            value = inputs.get("val")
            if value is not None:
                values[name] = given[name] = value
        elif operation.kind in decompressor and None not in inputs.values():
            unpacked.update(each for each in operation.inputs.values() if isinstance(each, str))
            outputs = _unpack(operation.kind, {key: each for key, each in inputs.items() if each}, decompressor)
            values.update(zip(operation.outputs, outputs, strict=False))
            if len(outputs) == 1 or isinstance(outputs[0], Unreadable):
                given[name] = outputs[0]
        else:
            used.update(each for each in operation.inputs.values() if isinstance(each, str))
            for key, each in operation.inputs.items():
                if not isinstance(each, str):
                    given[f"{name}.{key}"] = each
    for name, value in given.items():
        if name not in unpacked or name in used:
            yield name, value


def _unpack(kind: str, inputs: dict[str, Value], decompressor: Decompressor) -> tuple[Value, ...]:
    """The outputs of an operation that unpacks a constant."""
    readable = {}
    for key, each in inputs.items():
        if isinstance(each, Unreadable):
            if each.dtype != "string":
                return (Unreadable(each.reason),)
        else:
            readable[key] = each
    try:
        return decompressor.outputs(kind, readable)
    except InvalidFileError as error:
        return (Unreadable(str(error)),)


def _may_be_weights(value: Value) -> bool:
    """Whether a constant may be weights, and not a setting."""
    if isinstance(value, Unreadable):
        return value.dtype != "string" and (not value.shape or value.dtype in FLOATS or prod(value.shape) >= SMALLEST)
    return value.size > 1 if value.dtype in FLOATS else value.size >= SMALLEST


def read_program(program: Message, files: WeightFiles) -> Iterator[Iterator[Operation]]:
    """The operations of each function of a program.

    Args:
        program ([`Message`]): the `Program`.
        files ([`WeightFiles`]): the weight files next to it.
    """
    for entry in program.messages(2):
        function = entry.message(2)
        if function is None:
            continue
        blocks = [(each.text(1), each.message(2)) for each in function.messages(3)]
        active = [block for name, block in blocks if name == function.text(2)]
        for block in active or [block for _, block in blocks]:
            if block is not None:
                yield _operations(block, files, MAX_DEPTH)


def _operations(block: Message, files: WeightFiles, depth: int) -> Iterator[Operation]:
    """The operations of a block, and of the blocks inside."""
    if not depth:
        raise InvalidFileError("blocks nested too deep")
    for message in block.messages(3):
        kind = message.text(1)
        inputs: dict[str, str | Value] = {}
        for entry in message.messages(2):
            bindings = [each for argument in entry.messages(2) for each in argument.messages(1)]
            for number, binding in enumerate(bindings):
                key = entry.text(1) if len(bindings) == 1 else f"{entry.text(1)}.{number}"
                value = binding.message(2)
                inputs[key] = binding.text(1) if value is None else read_value(value, files)
        if kind == "const" or kind.startswith("constexpr_"):
            for entry in message.messages(5):
                value = entry.message(2)
                if value is not None and (key := entry.text(1)) != "name":
                    inputs[key] = read_value(value, files)
        yield Operation(kind, tuple(each.text(1) for each in message.messages(3)), inputs)
        for inner in message.messages(4):
            yield from _operations(inner, files, depth - 1)


def read_value(value: Message, files: WeightFiles) -> Value:
    """A value of a program."""
    dtype, shape = _type_of(value.message(2))
    if dtype == "string":
        return Unreadable("text", dtype)
    try:
        blob, inline = value.message(5), value.message(3)
        if blob is not None:
            return files.constant(blob.text(1), blob.integer(2), dtype, shape)
        tensor = inline.message(1) if inline is not None else None
        if tensor is None:
            return Unreadable("no tensor", "string")
        return _immediate(tensor, dtype, shape)
    except InvalidFileError as error:
        return Unreadable(str(error), dtype, shape)


def _type_of(kind: Message | None) -> tuple[str, tuple[int, ...]]:
    """The element type and shape of a tensor type; another type's element type is `"string"`."""
    tensor = kind.message(1) if kind is not None else None
    if tensor is None:
        return "string", ()
    sizes: list[int] = []
    for dimension in tensor.messages(3):
        constant = dimension.message(1)
        sizes.append(constant.integer(1) if constant is not None else 0)
        if len(sizes) > MAX_DIMENSIONS:
            break
    return _TYPES.get(tensor.integer(1), "unknown"), tuple(sizes)


def _immediate(tensor: Message, dtype: str, shape: tuple[int, ...]) -> Constant:
    """A tensor of numbers in the program."""
    for number, read in ((1, Message.floats), (6, Message.doubles), (2, Message.integers), (3, Message.integers),
                         (5, Message.integers)):  # fmt: skip
        values = tensor.message(number)
        if values is not None:
            numbers = np.asarray(read(values, 1))
            return immediate(dtype, shape, numbers.astype(np.int64) if numbers.dtype == object else numbers)
    values = tensor.message(7)
    raw = values.content(1) if values is not None else None
    return make_constant(dtype, shape, np.empty(0, np.uint8) if raw is None else raw)
