"""Read PyTorch's exported programs (`torch.export.save`): `.pt2` files, zips with the raw bytes of each weight.

Before PyTorch 2.8 the weights were a nested PyTorch file, and some tensors still are. The graph
is read for the scales of integers alone.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.pytorch.exported_graphs import dequantize_by_graph
from hf_fingerprint.checkpoints.formats.pytorch.nesting import all_tensors, unique_name
from hf_fingerprint.checkpoints.formats.pytorch.torch_files import load_torch_zip
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, element_bytes, is_size
from hf_fingerprint.checkpoints.formats.zip_members import TRUNCATED, ZIP_MAGIC, ZipMembers, names_if_zip
from hf_fingerprint.checkpoints.limits import MAX_JSON, MAX_TENSORS, parse_json
from hf_fingerprint.printable import printable


_DTYPES = {  # torch._export.serde.schema.ScalarType
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 29: "float8_e4m3fn", 30: "float8_e5m2",
}  # fmt: skip
_STRIDED = 7
_PYTORCH = re.compile(rb"PK\x03\x04.{26}[^/]{0,400}/data\.pkl", re.DOTALL)  # the first member of a PyTorch file
_MARK = re.compile(r"([^/]+/)?(serialized_exported_program\.json|data/(weights|constants)/.+)")
_NESTED = re.compile(r"([^/]+/)?(serialized_(state_dict|constants)\.(pt|json)|data/(weights|constants)/[^/]+\.pt)")
_CONFIG = re.compile(r"([^/]+/)?data/(weights|constants)/[^/]+_config\.json")
_MODEL = re.compile(r"([^/]+/)?(models/[^/]+|serialized_exported_program)\.json")
_MOST_CONFIGS, _MOST_GRAPHS = 64, 2
_MOST_PICKLED, _LARGEST_PART = 5_000, 4_096  # tensors with a pickle of their own; bytes of it and of its directory
_VERSION = re.compile(rb'"torch_version": ?"([^"\\]{1,40})"')


def _is_exported(head: bytes, path: Path) -> bool:
    return not _PYTORCH.match(head) and any(map(_MARK.fullmatch, names_if_zip(head, path)))


def load_exported_program(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights, buffers and constants of an exported program, under the names of its state dict.

    Args:
        path (`Path`): the file.
        left_out (`dict[str, str]`): receives the names of unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged, or holds no weights.
        [`OSError`]: if it can't be opened.
    """
    data = map_file(path)
    with path.open("rb", buffering=0) as stream:
        members = ZipMembers(stream, data)
    tensors: list[tuple[str, LazyTensor]] = []
    taken: dict[str, int] = {}
    configs = sorted(filter(_CONFIG.fullmatch, members), reverse=True)  # weights before constants
    if len(configs) > _MOST_CONFIGS:
        raise InvalidFileError(f"more than {_MOST_CONFIGS} models in one file")
    for name in configs:
        _add_config(members, name, tensors, taken, left_out)
    for name in sorted(filter(_NESTED.fullmatch, members), reverse=True)[:_MOST_CONFIGS]:
        raw = members.read(name)
        if raw is not None and raw[:4].tobytes() == ZIP_MAGIC:  # a file of no tensors may have another format
            found = all_tensors(load_torch_zip(raw).content, left_out)
            tensors += [(unique_name(own, taken), tensor) for own, tensor in found]
    if not tensors and not left_out:
        raise InvalidFileError("no weights")
    return FoundTensors(_dequantized(members, tensors), _producer(members))


FORMAT = Format("PyTorch exported program", (".pt2",), _is_exported, load_exported_program)


def _add_config(
    members: ZipMembers,
    config: str,
    tensors: list[tuple[str, LazyTensor]],
    taken: dict[str, int],
    left_out: dict[str, str],
) -> None:
    """Appends the tensors that a member such as `model_weights_config.json` describes."""
    described = _read_json(members, config)
    entries = described.get("config") if isinstance(described, dict) else None
    if not isinstance(entries, dict):
        raise InvalidFileError(TRUNCATED)
    if len(entries) + len(tensors) > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS:,} tensors")
    folder = config.rpartition("/")[0]
    payloads: dict[str, np.ndarray | None] = {}
    pickled = 0
    for name, entry in entries.items():
        entry = entry if isinstance(entry, dict) else {}
        place = entry.get("path_name")
        if not isinstance(place, str) or f"{folder}/{place}" not in members:
            left_out[printable(name)] = "not in the file"
            continue
        if place.startswith(("custom_obj", "opaque_obj")):
            left_out[printable(name)] = "an object of code"
            continue
        if place not in payloads:
            payloads[place] = members.read(f"{folder}/{place}")
        raw = payloads[place]
        assert raw is not None
        if entry.get("use_pickle"):
            pickled += 1
            found = _pickled(raw) if pickled <= _MOST_PICKLED else "beyond the limit of pickled tensors"
        else:
            found = _described(raw, entry.get("tensor_meta"))
        if isinstance(found, str):
            left_out[printable(name)] = found
        else:
            tensors.append((unique_name(name, taken), found))


def _pickled(raw: np.ndarray) -> LazyTensor | str:
    """The tensor of a nested PyTorch file, or why there is none."""
    content = load_torch_zip(raw, _LARGEST_PART, _LARGEST_PART).content
    return content if isinstance(content, LazyTensor) else "an object of code"


def _described(raw: np.ndarray, meta: Any) -> LazyTensor | str:
    """A view of raw bytes by a serialized `TensorMeta`, or why there is none."""
    if not isinstance(meta, dict):
        return "no description"
    shape, strides = as_sizes(_integers(meta.get("sizes"))), as_sizes(_integers(meta.get("strides")))
    [offset] = _integers([meta.get("storage_offset")])
    if shape is None or strides is None or len(shape) != len(strides) or not is_size(offset):
        return "impossible sizes"
    if meta.get("layout") != _STRIDED:
        return "a sparse layout"
    code = meta.get("dtype")
    dtype = _DTYPES.get(code) if isinstance(code, int) else None
    if dtype is None:
        return "an unknown dtype"
    storage = Storage("file", dtype, len(raw) // element_bytes(dtype), data=raw)
    return LazyTensor(dtype, shape, strides, offset, storage)


def _integers(found: Any) -> list[Any]:
    """The values of a list of serialized `SymInt`, such as `{"as_int": 3}`; `None` for those of another kind."""
    each = found if isinstance(found, list) else [None]
    return [value.get("as_int") if isinstance(value, dict) else None for value in each]


def _dequantized(members: ZipMembers, tensors: list[tuple[str, LazyTensor]]) -> list[tuple[str, LazyTensor]]:
    """The tensors, with integers dequantized as the graphs do."""
    if any(tensor.dtype in ("int8", "uint8") for _, tensor in tensors):
        for name in list(filter(_MODEL.fullmatch, members))[:_MOST_GRAPHS]:
            with suppress(InvalidFileError):  # then the scales are fitted
                tensors = dequantize_by_graph(_read_json(members, name), tensors)
    return tensors


def _producer(members: ZipMembers) -> str:
    """Such as `"torch.export of PyTorch 2.8"`."""
    for name in filter(_MODEL.fullmatch, members):
        raw = members.read(name)
        if raw is not None and (found := _VERSION.search(raw[-(1 << 20) :].tobytes())):
            return f"torch.export of PyTorch {printable(found[1].decode('utf-8', 'replace'))}"
    return "torch.export"


def _read_json(members: ZipMembers, name: str) -> Any:
    raw = members.read(name)
    if raw is None or len(raw) > MAX_JSON:
        raise InvalidFileError("a list of weights or a graph that is too large")
    try:
        return parse_json(raw.tobytes())
    except ValueError:  # UnicodeDecodeError, too
        raise InvalidFileError(TRUNCATED) from None
