"""Copy keys as one array, so that a million of them are no million objects."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from hf_fingerprint.keys import SECRET_BYTES


class KeyTable(Sequence[bytes]):
    """Copy keys, 32 bytes each.

    Args:
        keys (`bytes` or `bytearray`): all of them, one after another.

    Attributes:
        array (`np.ndarray` of shape `(n, 32)`): the same.
    """

    def __init__(self, keys: bytes | bytearray):
        self.array = np.frombuffer(keys, np.uint8).reshape(-1, SECRET_BYTES)

    def __repr__(self) -> str:
        return f"KeyTable({len(self)} keys)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [key.tobytes() for key in self.array[index]]
        return self.array[index].tobytes()

    def take(self, indices: np.ndarray) -> "KeyTable":
        """Some of the keys."""
        return KeyTable(self.array[indices].tobytes())
