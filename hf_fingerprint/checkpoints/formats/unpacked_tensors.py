"""Tensors of any dtype whose bytes are unpacked or put together when they are read."""

from collections.abc import Callable
from math import prod

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage


_NOTHING = np.empty(0, np.uint8)
_NAN = 0xFF  # each byte of NaN, in every format of floats


class UnpackedTensor(LazyTensor):
    """A tensor whose bytes a function returns.

    Args:
        dtype (`str`): PyTorch dtype.
        shape (`tuple[int, ...]`): its shape.
        unpack (callable): from the first byte and the end, in row-major order, to those bytes as `uint8`.
    """

    __slots__ = ("_unpack",)

    def __init__(self, dtype: str, shape: tuple[int, ...], unpack: Callable[[int, int], np.ndarray]):
        super().__init__(dtype, shape, storage=Storage("", dtype, prod(shape), data=_NOTHING))
        self._unpack = unpack

    @property
    def span(self) -> tuple[int, int]:
        """Begin and end of its bytes in a storage, which it has none of."""
        return 0, 0

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as `uint8`; of damaged parts, those of NaN."""
        stop = self.nbytes if stop is None else stop
        try:
            return self._unpack(start, stop) if start < stop else _NOTHING
        except (
            InvalidFileError
        ):  # one damaged tensor, which nothing may need, must not keep the others from being read
            return np.full(stop - start, _NAN, np.uint8)
