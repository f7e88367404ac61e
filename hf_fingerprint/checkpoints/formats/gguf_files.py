"""Read the weights of a GGUF file, as llama.cpp and the converters for stable-diffusion.cpp and vit.cpp write it.

The file has a header, metadata, the names and shapes of the tensors, and their data. Version 1 has counts and lengths
of 32 bits, and later ones of 64.
"""

from math import prod
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.ggml_blocks import BLOCK_TYPES, blocks_tensor
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED, dense_tensor, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, element_bytes
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS


MAX_ITEMS = 2_000_000  # values of the metadata: a tokenizer has 500,000
MAX_NESTING = 4  # arrays of arrays, which no program writes
_MAGIC = b"GGUF"
_VERSIONS = (1, 2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of the metadata
_UINT32, _TEXT, _ARRAY = 4, 8, 9
_DENSE = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
_OTHERS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def load_gguf(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The tensors of a GGUF file, dequantized to `float32` where they are stored in blocks.

    Shapes are as PyTorch has them: the dimension that is contiguous in the file is the last.

    Args:
        path (`Path`): the file.
        left_out (`dict[str, str]`): receives the unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if the file is damaged.
        [`OSError`]: if it can't be read.
    """
    data = map_file(path)
    cursor = _Cursor(data)
    alignment, architecture, found = 32, "", []
    tensors, entries = cursor.count(), cursor.count()
    if tensors > MAX_TENSORS:
        raise InvalidFileError(f"more than {MAX_TENSORS} tensors")
    for _ in range(entries):
        key, kind = cursor.text(), cursor.number(4)
        if key == "general.alignment" and kind == _UINT32:
            alignment = cursor.number(4)
        elif key == "general.architecture" and kind == _TEXT:
            architecture = cursor.text()
        else:
            cursor.skip(kind)
    if not 1 <= alignment <= 1 << 20:
        raise InvalidFileError("an invalid alignment")
    for _ in range(tensors):
        name, dimensions = cursor.text(), cursor.number(4)
        if dimensions > MAX_DIMENSIONS:
            raise InvalidFileError("too many dimensions")
        shape = tuple(cursor.count() for _ in range(dimensions))[::-1]
        found.append((name, shape, cursor.number(4), cursor.number(8)))
    weights = data[-(-cursor.at // alignment) * alignment :]
    listed = []
    for name, shape, kind, offset in found:
        try:
            listed.append((name, _tensor(weights, kind, shape, offset)))
        except InvalidFileError as error:
            left_out[name] = str(error)
    return FoundTensors(listed, architecture)


def _tensor(weights: np.ndarray, kind: int, shape: tuple[int, ...], offset: int) -> LazyTensor:
    """A tensor at a place in the file's data."""
    if kind in _DENSE:
        dtype = _DENSE[kind]
        return dense_tensor(slice_bytes(weights, offset, prod(shape) * element_bytes(dtype)), dtype, shape)
    if kind not in BLOCK_TYPES:
        raise InvalidFileError(f"type {_OTHERS.get(kind, kind)}")
    block = BLOCK_TYPES[kind]
    return blocks_tensor(slice_bytes(weights, offset, prod(shape) // block.elements * block.nbytes), block, shape)


class _Cursor:
    """Reads the header and what follows it.

    Args:
        data (`np.ndarray`): the file, `uint8`.

    Raises:
        [`InvalidFileError`]: if it is of no supported version.
    """

    def __init__(self, data: np.ndarray):
        self._view, self.at, self._left, self._wide = memoryview(data), len(_MAGIC), MAX_ITEMS, 8
        version = self.number(4)
        if version not in _VERSIONS:
            order = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise InvalidFileError("GGUF for big-endian machines" if order else f"version {version} of GGUF")
        self._wide = 4 if version == 1 else 8

    def number(self, size: int) -> int:
        """An unsigned number of so many bytes."""
        self._spend()
        return int.from_bytes(self._take(size), "little")

    def count(self) -> int:
        """A count, a length or a size."""
        found = self.number(self._wide)
        if found >> 62:
            raise InvalidFileError(TRUNCATED)
        return found

    def text(self) -> str:
        """A text, cut at [`MAX_NAME`] characters; may be hostile."""
        return bytes(self._take(self.count())[: 4 * MAX_NAME]).decode("utf-8", "replace")[:MAX_NAME]

    def skip(self, kind: int, depth: int = 0) -> None:
        """Goes past a value of the metadata."""
        if kind in _SIZES:
            self._take(_SIZES[kind])
        elif kind == _TEXT:
            self._take(self.count())
        elif kind == _ARRAY and depth < MAX_NESTING:
            inner, count = self.number(4), self.count()
            if inner in _SIZES:
                self._take(_SIZES[inner] * count)
            else:
                for _ in range(count):
                    self.skip(inner, depth + 1)
        else:
            raise InvalidFileError("metadata of an unknown type")

    def _take(self, size: int) -> memoryview:
        if size > len(self._view) - self.at:
            raise InvalidFileError(TRUNCATED)
        self.at += size
        return self._view[self.at - size : self.at]

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidFileError(f"more than {MAX_ITEMS:,} values")


FORMAT = Format("GGUF", (".gguf",), lambda head, path: head.startswith(_MAGIC), load_gguf)
