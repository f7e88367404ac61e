"""The layout of one .safetensors file: where each tensor's bytes lie.

The `safetensors` library checks the file (sizes, offsets, overlaps, truncation); it doesn't tell the offsets, which is
all that is read here: 8 bytes of header length, little-endian, the header in JSON, the data.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.errors import CheckpointError


MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it looks like.

    Attributes:
        name (`str`): its name in the file.
        dtype (`str`): as safetensors calls it, such as `"F32"`.
        shape (`tuple[int, ...]`): its shape.
        file (`int`): which weight file of the checkpoint.
        offset (`int`): where its bytes begin in that file.
        nbytes (`int`): how many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Output channels: the first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one output channel."""
        return self.nbytes // self.rows if self.rows else 0

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return self.row_bytes // SIZES[self.dtype]


def read_layout(path: Path, file: int = 0) -> tuple[int, list[TensorInfo]]:
    """The layout of a file, checked.

    Args:
        path (`Path`): a .safetensors file.
        file (`int`, *optional*): the number to record in each [`TensorInfo`].

    Returns:
        `(data_start, tensors)`: where the data begin, and the tensors in the order of their bytes.

    Raises:
        [`CheckpointError`]: if the file isn't well-formed.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{path} has a header of {length} bytes, which no model has: get the file again."
                )
            header = json.loads(stream.read(length))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole, well-formed safetensors file ({error}): get it again."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    start = 8 + length
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SIZES:
            raise CheckpointError(
                f"{path}: tensor {name!r} has dtype {entry['dtype']}, which this version can't copy: convert it first."
            )
        begin, end = entry["data_offsets"]
        tensors.append(TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, start + begin, end - begin))
    return start, sorted(tensors, key=lambda tensor: tensor.offset)
