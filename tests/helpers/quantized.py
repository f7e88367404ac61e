"""Tensors of quantized weights as the schemes get them, and what they are dequantized to."""

import numpy as np

from hf_fingerprint.checkpoints.formats.mapped_files import dense_tensor
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.schemes.scheme import Companions, Dequantized, Scheme


def stored(values: np.ndarray, dtype: str | None = None) -> LazyTensor:
    """Values as a tensor of a file; `dtype` is PyTorch's, if NumPy has none for it."""
    array = np.ascontiguousarray(values)
    return dense_tensor(array.reshape(-1).view(np.uint8), dtype or str(array.dtype), array.shape)


class Unsigned(LazyTensor):
    """Integers of 32 bits that their file says have no sign."""

    __slots__ = ()
    stored = "U32"

    def __init__(self, values: np.ndarray):
        found = stored(values)
        super().__init__("int32", found.shape, found.strides, 0, found.storage)


def dequantized(scheme: Scheme, name: str, metadata: dict[str, str] | None = None, **parts) -> Dequantized | None:
    """What a scheme makes of tensors, found at the one of this name.

    In the names of `parts`, a dot is two underscores at the end of the first word: `a__scale` is `a.scale`.
    """
    tensors = {
        key.replace("__", ".", 1): each if isinstance(each, LazyTensor) else stored(np.asarray(each))
        for key, each in parts.items()
    }
    ending = next(each for each in scheme.endings if name.endswith(each))
    return scheme.dequantize(Companions(tensors, name, ending, lambda: metadata or {}))


def values_of(tensor: LazyTensor) -> np.ndarray:
    """All values of a dequantized tensor."""
    return tensor.read().view(np.float32).reshape(tensor.shape)


def packed_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes without gaps in 32-bit integers, the first code in the lowest bits, as `int32`."""
    each = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    flat = each.astype(np.uint8).reshape(len(codes), -1)
    padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little")).view("<i4")
