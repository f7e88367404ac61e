"""Read Flax's `.msgpack` files, as `flax.serialization` and Transformers write them. Arrays are views of the file."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED, dense_tensor, map_file
from hf_fingerprint.checkpoints.formats.msgpack import Extension, Pairs, Unpacker
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes, element_bytes
from hf_fingerprint.checkpoints.formats.unpacked_tensors import UnpackedTensor
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS, MAX_NAME


_ARRAY, _NUMBER = 1, 3
_CHUNKED = b"__msgpack_chunked_array__"  # a map with this key is an array of more than 1 GB, in parts
_NAMES = {"float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", "bfloat16": "bfloat16", "bool": "bool"}
_NAMES |= {f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_NAMES |= {f"float{bits}": f"float{bits}" for bits in (16, 32, 64)} | {"complex64": "complex64"}
_MAP = re.compile(rb"[\x81-\x8f\xde\xdf]")
_FIRST_ARRAY = re.compile(  # the extension, a list of three, the shape, the dtype
    rb"(\xc7.|\xc8..|\xc9....)\x01\x93[\x90-\x9f].{0,40}?[\xa4-\xad](bool|b?float\d|u?int\d|complex)", re.DOTALL
)


def load_flax(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The arrays of a file, under the keys that lead to them, joined by `/`, such as `params/Dense_0/kernel`.

    Args:
        path (`Path`): a file.
        left_out (`dict[str, str]`): receives the unreadable arrays, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged or is nested too deep.
        [`OSError`]: if it can't be opened.
    """
    unpacker = Unpacker(map_file(path))
    tree = unpacker.read()
    if not unpacker.ended:
        raise InvalidFileError(TRUNCATED)
    tensors = []
    for name, value in _find_arrays("", tree):
        try:
            tensors.append((name, _join(value) if isinstance(value, Pairs) else _read_array(value)))
        except InvalidFileError as error:
            left_out[name] = str(error)
    return FoundTensors(tensors, "Flax")


def _find_arrays(name: str, value: Any) -> Iterator[tuple[str, Extension | Pairs]]:
    """Yields the arrays in a tree, whole or in parts, with their names."""
    whole = isinstance(value, Extension) and value.kind in (_ARRAY, _NUMBER)
    if whole or (isinstance(value, Pairs) and _CHUNKED in (key for key, _ in value if isinstance(key, bytes))):
        yield name, value
    elif isinstance(value, list):
        for key, inner in value if isinstance(value, Pairs) else enumerate(value):
            yield from _find_arrays(f"{name}/{_key_text(key)}"[-MAX_NAME:].lstrip("/"), inner)


def _read_array(value: Extension) -> LazyTensor:
    """An array: its shape, the name of its dtype, and its bytes in row-major order."""
    parts = Unpacker(value.content, MAX_DIMENSIONS + 4).read()
    if not isinstance(parts, list) or len(parts) != 3:
        raise InvalidFileError(TRUNCATED)
    shape, named, raw = parts
    shape = as_sizes(shape)
    dtype = _key_text(named)
    if shape is None or not isinstance(raw, np.ndarray):
        raise InvalidFileError("an invalid shape")
    if dtype not in _NAMES:
        raise InvalidFileError(f"dtype {dtype[:20]}")
    if prod(shape) * element_bytes(dtype) != len(raw):
        raise InvalidFileError("bytes of another size than its shape")
    return dense_tensor(raw, dtype, shape)


def _join(value: Pairs) -> LazyTensor:
    """An array that was split, flattened, into parts."""
    found = {_key_text(key): inner for key, inner in value}
    shape = as_sizes([size for _, size in _in_order(found.get("shape"))])
    parts = [_read_array(part) for _, part in _in_order(found.get("chunks")) if isinstance(part, Extension)]
    if shape is None or not parts or len({part.dtype for part in parts}) > 1:
        raise InvalidFileError("an invalid shape")
    if sum(part.nbytes for part in parts) != prod(shape) * element_bytes(parts[0].dtype):
        raise InvalidFileError("bytes of another size than its shape")
    begins = [0, *accumulate(part.nbytes for part in parts)]

    def unpack(start: int, stop: int) -> np.ndarray:
        first = bisect_right(begins, start) - 1
        found = []
        for number in range(first, len(parts)):
            if begins[number] >= stop:
                break
            offset = begins[number]
            found.append(parts[number].read(max(start - offset, 0), min(stop - offset, parts[number].nbytes)))
        return np.concatenate(found)

    return UnpackedTensor(parts[0].dtype, shape, unpack)


def _in_order(value: Any) -> list[tuple[int, Any]]:
    """What a map holds under the keys 0, 1, 2 and so on."""
    if not isinstance(value, Pairs):
        raise InvalidFileError(TRUNCATED)
    found = {_key_text(key): inner for key, inner in value}
    if found.keys() != {str(number) for number in range(len(found))}:
        raise InvalidFileError(TRUNCATED)
    return [(number, found[str(number)]) for number in range(len(found))]


def _key_text(key: Any) -> str:
    if isinstance(key, bytes):
        return key[:MAX_NAME].decode("utf-8", "replace")
    return str(key) if type(key) is int else type(key).__name__


def _matches(head: bytes, path: Path) -> bool:
    """Whether a file is a map by its first byte, and has the suffix or an array soon after."""
    named = path.suffix.lower() == ".msgpack"
    return _MAP.match(head) is not None and (named or _FIRST_ARRAY.search(head) is not None)


FORMAT = Format("Flax", (".msgpack",), _matches, load_flax)
