"""Weight files that are mapped into memory, and tensors that are views of them."""

from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage, as_sizes, element_bytes


TRUNCATED = "cut off or damaged"


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file as read-only `uint8`. Its pages are read when they are used.

    Raises:
        [`OSError`]: if it can't be opened.
    """
    with path.open("rb") as stream:
        try:
            return np.frombuffer(mmap(stream.fileno(), 0, access=ACCESS_READ), np.uint8)
        except ValueError:
            return np.empty(0, np.uint8)


def slice_bytes(data: np.ndarray, start: int, count: int) -> np.ndarray:
    """Bytes `start` to `start + count` of a file.

    Raises:
        [`InvalidFileError`]: if the file ends before.
    """
    if start < 0 or count < 0 or start + count > len(data):
        raise InvalidFileError(TRUNCATED)
    return data[start : start + count]


def dense_tensor(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> LazyTensor:
    """A tensor whose elements are contiguous in `raw` (`uint8`), in row-major order.

    Args:
        raw (`np.ndarray`): the bytes, which may be longer than the tensor.
        dtype (`str`): a PyTorch dtype such as `"float16"`, or the name of another one, which makes it unreadable.
        shape (`tuple[int, ...]`): its shape.
    """
    if as_sizes(shape) is None:
        return LazyTensor(dtype, reason="an invalid shape")
    strides = [1]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * size)
    storage = Storage("file", dtype, len(raw) // element_bytes(dtype), data=raw)
    return LazyTensor(dtype, shape, tuple(strides[::-1]) if shape else (), 0, storage)
