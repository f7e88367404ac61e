"""What a scheme declares, and how it gets the tensors of one weight.

A scheme gets hostile tensors: it decides by their names, types and shapes, and checks all sizes before anything is
read. It raises an [`InvalidFileError`] or returns `None` for tensors that are not its own, which stay unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.computed_tensors import ComputedTensor, stored_rows, stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.limits import MAX_DIMENSIONS


SHAPE = "shape"  # what follows the name of a tensor subclass in a pickle
MAX_VALUES = 1 << 16  # elements of a companion that is read when a file is opened, such as a code book or a shape
_MAX_GROUP = 1 << 20  # elements of a row that is computed for a part of it
_FEW_COLUMNS = 2048  # which are faster to read than to select
_MAX_SETTING = 16  # elements of a setting of a layer, such as the name of a type
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


class Dequantized(NamedTuple):
    """A weight that a scheme recognizes.

    Attributes:
        name (`str`): its name, as the module has it: `"blocks.0.mlp.fc1.weight"`.
        tensor ([`LazyTensor`]): its values, `float32`, which are computed as they are read.
    """

    name: str
    tensor: LazyTensor


class Companions:
    """The tensors next to the codes of one weight, by the rest of their names. It keeps which ones were taken.

    Args:
        tensors (mapping of `str` to [`LazyTensor`]): all tensors of the file.
        name (`str`): name of the tensor that the scheme's `ending` was found at.
        ending (`str`): that ending.
        metadata (callable): returns the metadata of the file, which may hold anything.
    """

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        name: str,
        ending: str,
        metadata: Callable[[], Mapping[str, str]] = dict,
    ):
        self._tensors, self.metadata = tensors, metadata
        self.name, self.ending, self.prefix = name, ending, name[: len(name) - len(ending)]
        self.taken: set[str] = set()

    def find(self, ending: str) -> LazyTensor | None:
        """The tensor of the name with this ending, or `None`."""
        found = self._tensors.get(self.prefix + ending)
        if found is not None:
            self.taken.add(self.prefix + ending)
        return found

    def get(self, ending: str) -> LazyTensor:
        """The tensor of the name with this ending.

        Raises:
            [`InvalidFileError`]: if there is none.
        """
        found = self.find(ending)
        if found is None:
            raise InvalidFileError(f"no {ending}")
        return found

    def values(self, ending: str) -> np.ndarray | None:
        """All values of a small companion, or `None` if there is none.

        Raises:
            [`InvalidFileError`]: if it is large.
        """
        found = self.find(ending)
        if found is not None and found.numel() > MAX_VALUES:
            raise InvalidFileError(f"a large {ending}")
        return None if found is None else stored_values(found)

    def sizes(self, ending: str) -> tuple[int, ...] | None:
        """A shape that a companion holds as integers, or `None`."""
        found = self.values(ending)
        if found is None or found.ndim != 1 or len(found) > MAX_DIMENSIONS or found.dtype.kind not in "iu":
            return None
        return tuple(int(each) for each in found)

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor subclass of this name in a pickle, or `None`."""
        found = self._tensors.get(f"{name}.{SHAPE}")
        if found is None or len(found.shape) != 1 or found.numel() > MAX_DIMENSIONS or found.dtype != "int64":
            return None
        self.taken.add(f"{name}.{SHAPE}")
        return tuple(int(each) for each in stored_values(found))

    def drop(self, *endings: str) -> None:
        """Takes small companions that hold no weights, such as the scale of a layer's inputs."""
        for ending in endings:
            found = self._tensors.get(self.prefix + ending)
            if found is not None and found.numel() <= _MAX_SETTING:
                self.taken.add(self.prefix + ending)

    def peek(self, ending: str) -> LazyTensor | None:
        """The tensor of the name with this ending, which stays a tensor of its own."""
        return self._tensors.get(self.prefix + ending)


@dataclass(frozen=True)
class Scheme:
    """A way to store quantized weights.

    Attributes:
        name (`str`): the library, such as `"torchao"`.
        endings (`tuple[str, ...]`): ends of names of tensors that only this scheme has, one for each weight.
        dequantize (callable): from the [`Companions`] of such a tensor to the [`Dequantized`] weight. Returns `None`
            or raises [`InvalidFileError`] if it is another scheme's.
    """

    name: str
    endings: tuple[str, ...]
    dequantize: Callable[[Companions], Dequantized | None]


def fit_scale(scale: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """A scale with as many dimensions as the weight: one for all elements, or one for each row or block.

    Raises:
        [`InvalidFileError`]: if it fits neither.
    """
    if len(scale.shape) == len(shape):
        return scale
    if scale.numel() == 1:
        return reshaped(scale, (1,) * len(shape))
    if shape and scale.numel() == shape[0]:
        return reshaped(scale, (shape[0], *(1,) * (len(shape) - 1)))
    raise InvalidFileError("scales of another shape")


class _Reshaped(LazyTensor):
    """The same bytes in another shape. Those beyond the end are zero."""

    __slots__ = ("_tensor", "stored")

    def __init__(self, tensor: LazyTensor, shape: tuple[int, ...], dtype: str):
        super().__init__(dtype, shape, storage=tensor.storage, reason=tensor.unreadable_reason())
        self._tensor, self.stored = tensor, getattr(tensor, "stored", dtype)

    @property
    def span(self) -> tuple[int, int]:
        """Begin and end of its bytes in a storage, which it has none of."""
        return 0, 0

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as `uint8`."""
        stop = self.nbytes if stop is None else stop
        end = min(stop, self._tensor.nbytes)
        found = self._tensor.read(min(start, end), end)
        return found if len(found) >= stop - start else np.pad(found, (0, stop - start - len(found)))


def reshaped(tensor: LazyTensor, shape: tuple[int, ...], dtype: str | None = None) -> LazyTensor:
    """The elements of a tensor, in row-major order, in another shape; those beyond the end are zero or left out.

    Rows of a tensor that is computed must be short, since a row of the new shape may need a whole one.

    Args:
        tensor ([`LazyTensor`]): the tensor.
        shape (`tuple[int, ...]`): the new shape.
        dtype (`str`, *optional*): PyTorch dtype that its bytes are taken as; by default its own.

    Raises:
        [`InvalidFileError`]: if its rows are too long.
    """
    if tensor.shape != shape and isinstance(tensor, ComputedTensor) and prod(tensor.shape[1:]) > _MAX_GROUP:
        raise InvalidFileError(f"groups of more than {_MAX_GROUP:,} elements")
    return tensor if tensor.shape == shape and dtype is None else _Reshaped(tensor, shape, dtype or tensor.dtype)


def columns_of(values: LazyTensor, start: int, stop: int) -> np.ndarray:
    """Columns `start` to `stop` of a tensor of shape `(groups, columns, ...)`, of which few more are read."""
    groups, columns = values.shape[:2]
    if columns <= _FEW_COLUMNS:
        return stored_rows(values)(0, groups)[:, start:stop]
    read = stored_rows(reshaped(values, (groups * columns, *values.shape[2:])))
    return np.stack([read(group * columns + start, group * columns + stop) for group in range(groups)])


def matrix_shape(elements: int, bias: LazyTensor | None, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer's weight whose file doesn't tell it: as many rows as the layer's bias has elements."""
    rows = 0 if bias is None or len(bias.shape) != 1 else bias.shape[0]
    return (rows, elements // rows) if rows and not elements % rows else otherwise


def check_elements(shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """The shape, if it has this number of elements.

    Raises:
        [`InvalidFileError`]: if it has another.
    """
    if any(size < 1 for size in shape) or prod(shape) != elements:
        raise InvalidFileError("a shape that the codes don't fit")
    return shape
