"""Core ML neural networks, as `.mlmodel` files of before iOS 15 hold them: layers with weights of their own.

A layer's parameters give the shapes of its weights. Weights are named by their layer and their field in Core ML's
schema, such as `conv1.weights` and `conv1.bias`.
"""

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, Rows, look_up, packed_rows
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import MAX_ROW
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.protobuf import Message
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes
from hf_fingerprint.checkpoints.limits import MAX_TENSORS


Field = tuple[str, int, tuple[int, ...], int]  # name, number, shape, and the axis of its outputs
MAX_DEPTH = 8  # of networks in layers
_OUTPUTS = "scales of another shape"


def _convolution(layer: Message) -> list[Field]:
    outputs, channels, groups = layer.integer(1), layer.integer(2), layer.integer(10) or 1
    size = tuple(layer.integers(20)) or (3, 3)
    if layer.integer(60):
        return [("weights", 90, (channels, outputs // groups, *size), 1), ("bias", 91, (outputs,), 0)]
    return [("weights", 90, (outputs, channels, *size), 0), ("bias", 91, (outputs,), 0)]


def _convolution_3d(layer: Message) -> list[Field]:
    outputs, inputs, groups = layer.integer(1), layer.integer(2), layer.integer(10) or 1
    size = tuple(layer.integer(number) for number in (20, 21, 22))
    if layer.integer(86):
        return [("weights", 60, (inputs, outputs // groups, *size), 1), ("bias", 61, (outputs,), 0)]
    return [("weights", 60, (outputs, inputs // groups, *size), 0), ("bias", 61, (outputs,), 0)]


def _matrix(weights: int, bias: int, inputs: int = 1, outputs: int = 2) -> Callable[[Message], list[Field]]:
    def fields(layer: Message) -> list[Field]:
        shape = (layer.integer(outputs), layer.integer(inputs))
        return [("weights", weights, shape, 0), ("bias", bias, shape[:1], 0)]

    return fields


def _normalization(layer: Message) -> list[Field]:
    names = ("gamma", "beta", "mean", "variance")
    return [(name, 15 + at, (layer.integer(1),), 0) for at, name in enumerate(names)]


def _layer_normalization(layer: Message) -> list[Field]:
    return [(name, 3 + at, tuple(layer.integers(1)), 0) for at, name in enumerate(("gamma", "beta"))]


def _shaped(*fields: tuple[str, int, int]) -> Callable[[Message], list[Field]]:
    """Weights whose shape is in another field: name, number of the weights' field, number of the shape's."""
    return lambda layer: [(name, number, tuple(layer.integers(shape)), 0) for name, number, shape in fields]


def _gates(weights: dict[str, int], bias: dict[str, int]) -> Callable[[Message], list[Field]]:
    """Weights of a recurrent layer, by the numbers of their fields; those after the first half are recurrent."""

    def fields(layer: Message) -> list[Field]:
        inputs, outputs = layer.integer(1), layer.integer(2)
        half = len(weights) // 2
        found = [
            (name, number, (outputs, inputs if at < half else outputs), 0)
            for at, (name, number) in enumerate(weights.items())
        ]
        return found + [(name, number, (outputs,), 0) for name, number in bias.items()]

    return fields


_LSTM = _gates(
    {f"{gate}{kind}Matrix": number + at for kind, number in (("Weight", 1), ("Recursion", 20))
     for at, gate in enumerate(("inputGate", "forgetGate", "blockInput", "outputGate"))},
    {f"{gate}BiasVector": 40 + at for at, gate in enumerate(("inputGate", "forgetGate", "blockInput", "outputGate"))}
    | {f"{gate}PeepholeVector": 60 + at for at, gate in enumerate(("inputGate", "forgetGate", "outputGate"))},
)  # fmt: skip
_GRU = _gates(
    {f"{gate}Gate{kind}Matrix": number + at for kind, number in (("Weight", 30), ("Recursion", 50))
     for at, gate in enumerate(("update", "reset", "output"))},
    {f"{gate}GateBiasVector": 70 + at for at, gate in enumerate(("update", "reset", "output"))},
)  # fmt: skip
_RECURRENT = _gates({"weightMatrix": 30, "recursionMatrix": 31}, {"biasVector": 32})
_LAYERS: dict[int, Callable[[Message], list[Field]]] = {  # by the number of a layer's field
    100: _convolution,
    140: _matrix(20, 21),
    150: _matrix(20, 21),  # an embedding
    160: _normalization,
    245: _shaped(("scale", 2, 1), ("bias", 5, 4)),
    250: _shaped(("bias", 2, 1)),
    290: _shaped(("data", 2, 1)),
    400: _RECURRENT,
    410: _GRU,
    1040: _matrix(20, 21),
    1045: _matrix(8, 9, inputs=5, outputs=6),
    1070: _shaped(("data", 2, 1)),
    1350: _layer_normalization,
    1471: _convolution_3d,
}
_LSTMS, _ACTIVATION, _CUSTOM = (420, 430), 130, 500
_INNER = {605: (1, 2), 615: (3, 4)}  # layers with networks inside: branches and loops
_ALPHAS = (25, 71)  # activations with parameters of their own


def network_weights(
    network: Message, left_out: dict[str, str], depth: int = MAX_DEPTH
) -> list[tuple[str, LazyTensor]]:
    """The weights of a neural network.

    Args:
        network ([`Message`]): a `NeuralNetwork`, or one of its classifiers and regressors.
        left_out (`dict[str, str]`): receives the unreadable ones, each with a short reason.
        depth (`int`, *optional*): how many networks may be inside each other.

    Raises:
        [`InvalidFileError`]: if it is damaged, or holds too many.
    """
    if not depth:
        raise InvalidFileError("networks nested too deep")
    found: list[tuple[str, LazyTensor]] = []
    for layer in network.messages(1):
        name = layer.text(1)
        for field, weights, shape, axis in _fields(layer):
            try:
                tensor = read_weights(weights, shape, axis)
            except InvalidFileError as error:
                left_out[f"{name}.{field}"] = str(error)
                continue
            if tensor is not None:
                found.append((f"{name}.{field}", tensor))
        for number, parts in _INNER.items():
            inside = layer.message(number) if number in layer else None
            for part in parts if inside is not None else ():
                inner = inside.message(part) if inside is not None else None
                if inner is not None:
                    found += network_weights(inner, left_out, depth - 1)
        if len(found) > MAX_TENSORS:
            raise InvalidFileError(f"more than {MAX_TENSORS:,} weights")
    return found


def _fields(layer: Message) -> Iterator[tuple[str, Message, tuple[int, ...] | None, int]]:
    """The name, message, shape and axis of outputs of each weight of a layer; a shape that is not known is `None`."""
    for number in layer.numbers:
        if number not in (*_LAYERS, *_LSTMS, _ACTIVATION, _CUSTOM) or (inside := layer.message(number)) is None:
            continue
        if number == _CUSTOM:
            for at, weights in enumerate(inside.messages(20)):
                yield f"weights.{at}", weights, None, 0
        elif number == _ACTIVATION:
            for kind in _ALPHAS:
                activation = inside.message(kind)
                for name, at in (("alpha", 1), ("beta", 2)) if activation is not None else ():
                    found = activation.message(at) if activation is not None else None
                    if found is not None:
                        yield name, found, None, 0
        elif number in _LSTMS:
            for at, gates in enumerate(inside.messages(20)):
                for name, each, shape, axis in _LSTM(inside):
                    if (weights_of := gates.message(each)) is not None:
                        yield f"{at}.{name}" if number == _LSTMS[1] else name, weights_of, shape, axis
        else:
            for name, each, shape, axis in _LAYERS[number](inside):
                if (weights_of := inside.message(each)) is not None:
                    yield name, weights_of, shape, axis


def read_weights(weights: Message, shape: tuple[int, ...] | None, axis: int) -> LazyTensor | None:
    """The tensor in a `WeightParams`, or `None` if it is empty.

    Args:
        weights ([`Message`]): the message.
        shape (`tuple[int, ...]` or `None`): its shape, or `None` for one dimension.
        axis (`int`): axis of the outputs, along which there may be a scale each.

    Raises:
        [`InvalidFileError`]: if it has another size, or an unknown form.
    """
    floats, half, codes = weights.floats(1), weights.content(2), weights.content(30)
    signed = codes is None or not len(codes)
    codes = weights.content(31) if signed else codes
    if len(floats):
        return _dense(floats.view(np.uint8), "float32", shape)
    if half is not None and len(half):
        return _dense(half, "float16", shape)
    if codes is None or not len(codes):
        return None
    scheme = weights.message(40)
    bits = 8 if signed else scheme.integer(1) if scheme is not None else 0
    if scheme is None or not 1 <= bits <= 8:
        raise InvalidFileError("integers of unknown form")
    shape = (len(codes) * 8 // bits,) if shape is None else shape
    if as_sizes(shape) is None or prod(shape[1:]) > MAX_ROW:
        raise InvalidFileError("too large a row, or an invalid shape")
    rows = packed_rows(codes, bits, shape, signed=signed, high_first=True)
    linear, table = scheme.message(101), scheme.message(102)
    if table is not None:
        return look_up(rows, shape, table.floats(1), f"palette{bits}")
    if linear is None:
        raise InvalidFileError("integers of unknown form")
    return shifted(rows, shape, linear.floats(1), linear.floats(2), axis, f"int{bits}" if signed else f"uint{bits}")


def shifted(
    rows: Rows, shape: tuple[int, ...], scale: np.ndarray, bias: np.ndarray, axis: int, stored: str
) -> ComputedTensor:
    """The tensor `codes * scale + bias`.

    Args:
        rows ([`Rows`]): the codes.
        shape (`tuple[int, ...]`): their shape.
        scale, bias (`np.ndarray`): one value, or one for each output; no bias is 0.
        axis (`int`): axis of the outputs.
        stored (`str`): how the codes are stored.

    Raises:
        [`InvalidFileError`]: if the shapes don't fit.
    """
    if not len(scale) or axis >= len(shape) or any(len(each) not in (0, 1, shape[axis]) for each in (scale, bias)):
        raise InvalidFileError(_OUTPUTS)
    wide = [1] * len(shape)
    wide[axis] = -1
    factors = [np.asarray(each, np.float32).reshape(wide) for each in (scale, bias)]

    def compute(start: int, stop: int) -> np.ndarray:
        values = rows(start, stop).astype(np.float32)
        for each, apply in zip(factors, (np.multiply, np.add), strict=True):
            if each.size:
                apply(values, each[start:stop] if axis == 0 and len(each) > 1 else each, out=values)
        return values

    return ComputedTensor(compute, shape, stored)


def _dense(raw: np.ndarray, dtype: str, shape: tuple[int, ...] | None) -> LazyTensor:
    """A tensor of floating-point numbers."""
    count = len(raw) // (4 if dtype == "float32" else 2)
    tensor = dense_tensor(raw, dtype, (count,) if shape is None else shape)
    if (reason := tensor.unreadable_reason()) is not None:
        raise InvalidFileError(reason)
    if tensor.numel() != count:
        raise InvalidFileError("weights of another shape than their layer says")
    return tensor
