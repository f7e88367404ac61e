"""Compiled Core ML neural networks (Espresso), as apps for before iOS 15 hold them.

A compiled folder has `model.espresso.net`, a JSON list of layers that refer to blobs by number, and
`model.espresso.weights`: how many blobs there are, the number and size of each, and then their bytes.
"""

from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.computed_tensors import packed_rows
from hf_fingerprint.checkpoints.formats.containers import FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml.coreml_blobs import MAX_ROW
from hf_fingerprint.checkpoints.formats.coreml.coreml_networks import shifted
from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, is_size
from hf_fingerprint.checkpoints.limits import MAX_JSON, MAX_TENSORS, parse_json


NET, WEIGHTS = ".espresso.net", ".espresso.weights"
_BLOB, _HALF = "blob_", "_f16"
_SCALES, _SHIFTS = "per_ch_qscale", "per_ch_qbias"
_CODES = {"W_U8": "uint8", "W_S8": "int8", "W_int8": "int8", "W_t_int8": "int8"}
_NONE = np.empty(0, np.uint8)
_NORMALIZATION = ("gamma", "beta", "mean", "variance")


def load_network(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of a compiled neural network.

    Args:
        path (`Path`): its `.espresso.net`.
        left_out (`dict[str, str]`): receives the unreadable weights, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is invalid.
        [`OSError`]: if it can't be read.
    """
    data = map_file(path)
    if len(data) > MAX_JSON:
        raise InvalidFileError("a description that is too long")
    try:
        network = parse_json(bytes(data))
    except ValueError:
        raise InvalidFileError("a description that is no JSON") from None
    layers = network.get("layers") if isinstance(network, dict) else None
    if not isinstance(layers, list):
        raise InvalidFileError("a description without layers")
    weights = find_companion(path, PurePosixPath(path.name.removesuffix(NET) + WEIGHTS))
    blobs = _read_blobs(map_file(weights))
    found: list[tuple[str, LazyTensor]] = []
    for layer in layers:
        if len(found) + len(left_out) > MAX_TENSORS:
            raise InvalidFileError(f"more than {MAX_TENSORS:,} weights")
        if isinstance(layer, dict):
            for name, each in _layer_weights(layer, blobs).items():
                if isinstance(each, str):
                    left_out[name] = each
                else:
                    found.append((name, each))
    return FoundTensors(found, companions=(weights,))


def _read_blobs(data: np.ndarray) -> dict[int, np.ndarray]:
    """The bytes of each blob by its number."""
    count = int(slice_bytes(data, 0, 8).view("<u8")[0])
    if count > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS:,} blobs")
    table = slice_bytes(data, 8, count * 16).view("<u8").reshape(-1, 2)
    blobs, at = {}, 8 + count * 16
    for number, size in table.tolist():
        blobs[number] = slice_bytes(data, at, size)
        at += size
    return blobs


def _layer_weights(layer: dict[str, Any], blobs: dict[int, np.ndarray]) -> dict[str, LazyTensor | str]:
    """The weights of a layer by their names, or why one can't be read."""
    inside = layer.get("weights")
    named = {key.removeprefix(_BLOB): each for key, each in layer.items() if key.startswith(_BLOB)}
    named |= {key: each for key, each in layer.items() if key == "constant_blob"}
    if isinstance(inside, dict):
        named |= inside
    raw = {key: blobs[each] for key, each in named.items() if is_size(each) and each in blobs}
    found: dict[str, LazyTensor | str] = {}
    name = layer["name"] if isinstance(layer.get("name"), str) else "layer"
    for key, content in raw.items():
        if key in (_SCALES, _SHIFTS):
            continue
        try:
            if key == "batchnorm_params":
                found |= {f"{name}.{part}": each for part, each in _normalization(layer, content).items()}
            elif key in _CODES:
                found[f"{name}.{key}"] = _codes(layer, key, raw)
            else:
                found[f"{name}.{key.removesuffix(_HALF)}"] = _floats(layer, key, content)
        except InvalidFileError as error:
            found[f"{name}.{key}"] = str(error)
    return found


def _shape(layer: dict[str, Any], key: str, count: int) -> tuple[int, ...]:
    """The shape of a layer's weights of `count` elements."""

    def sizes(*names: str) -> tuple[int, ...]:
        found = as_sizes([layer.get(each, 1) for each in names])
        if found is None:
            raise InvalidFileError("an invalid shape")
        return found

    shape: tuple[int, ...] = (count,)
    if key == "constant_blob":
        shape = sizes("n", "k", "h", "w")
    elif ("weights" in key or key in _CODES) and layer.get("type") in ("convolution", "deconvolution"):
        outputs, inputs, high, wide, groups = sizes("C", "K", "Ny", "Nx", "n_groups")
        shape = (outputs, inputs // max(groups, 1), high, wide)
    elif ("weights" in key or key in _CODES) and layer.get("type") == "inner_product":
        shape = sizes("nC", "nB")
    if prod(shape) != count:
        raise InvalidFileError("weights of another shape than their layer says")
    return shape


def _floats(layer: dict[str, Any], key: str, content: np.ndarray) -> LazyTensor:
    """Weights in floating point."""
    dtype, size = ("float16", 2) if key.endswith(_HALF) else ("float32", 4)
    if len(content) % size:
        raise InvalidFileError("weights of unknown form")
    return dense_tensor(content, dtype, _shape(layer, key, len(content) // size))


def _codes(layer: dict[str, Any], key: str, raw: dict[str, np.ndarray]) -> LazyTensor:
    """Weights as integers, dequantized where their scales are known."""
    content, dtype = raw[key], _CODES[key]
    shape = _shape(layer, key, len(content))
    if _SCALES not in raw:
        return dense_tensor(content, dtype, shape)
    scale, bias = (each[: len(each) - len(each) % 4].view("<f4") for each in (raw[_SCALES], raw.get(_SHIFTS, _NONE)))
    if prod(shape[1:]) > MAX_ROW:
        raise InvalidFileError("too large a row")
    return shifted(packed_rows(content, 8, shape, signed=dtype == "int8"), shape, scale, bias, 0, dtype)


def _normalization(layer: dict[str, Any], content: np.ndarray) -> dict[str, LazyTensor]:
    """The parts of a normalization, whose values take turns."""
    channels = len(content) // 16
    if len(content) % 16 or layer.get("C") != channels:
        raise InvalidFileError("weights of another shape than their layer says")
    storage = Storage("file", "float32", channels * 4, data=content)
    return {part: LazyTensor("float32", (channels,), (4,), at, storage) for at, part in enumerate(_NORMALIZATION)}
