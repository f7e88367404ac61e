"""A suspect's quantized weights as the values that they stand for.

```python
with dequantize_schemes(open_checkpoint("leaked.safetensors", suspect=True)) as checkpoint:
    checkpoint.tensors["head.weight"].dtype  # "F32": the integers and their scales are one tensor
```
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
from safetensors import SafetensorError, safe_open

from hf_fingerprint.checkpoints.formats.contained import describe_container
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.nesting import unique_name
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage
from hf_fingerprint.checkpoints.limits import MAX_NAME
from hf_fingerprint.checkpoints.reader import Checkpoint
from hf_fingerprint.checkpoints.schemes.known_schemes import SCHEMES
from hf_fingerprint.checkpoints.schemes.scheme import Companions
from hf_fingerprint.checkpoints.views import CheckpointView
from hf_fingerprint.errors import CheckpointError


_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U64": "int64", "U32": "int32", "U16": "int16", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def dequantize_schemes(checkpoint: Checkpoint) -> Checkpoint:
    """A suspect whose quantized weights are `float32` tensors under their modules' names, which replace their parts.

    Args:
        checkpoint ([`Checkpoint`]): the open suspect.

    Returns:
        [`Checkpoint`]: the checkpoint itself if no known scheme is found. Integers of other schemes stay unchanged.
    """
    endings: dict[str, list[tuple[str, int]]] = {}
    for number, scheme in enumerate(SCHEMES):
        for ending in scheme.endings:
            endings.setdefault(ending[-3:], []).append((ending, number))
    tensors = _StoredTensors(checkpoint)
    found: dict[str, tuple[str, LazyTensor]] = {}
    taken: set[str] = set()
    for name in checkpoint.tensors:
        for ending, number in endings.get(name[-3:], ()):
            if not name.endswith(ending) or name in taken:
                continue
            companions = Companions(tensors, name, ending, tensors.metadata)
            with suppress(InvalidFileError):
                made = SCHEMES[number].dequantize(companions)
                if made is None or not companions.taken.isdisjoint(taken):
                    continue
                if not made.tensor.numel() or made.tensor.unreadable_reason() is not None:
                    continue
                taken |= companions.taken | {name}
                found[min(companions.taken, key=tensors.place)] = made.name, made.tensor
    return DequantizedCheckpoint(checkpoint, found, taken) if found else checkpoint


class DequantizedCheckpoint(CheckpointView):
    """A view of an open checkpoint with some tensors computed from others. Closing it closes the checkpoint.

    Args:
        stored ([`Checkpoint`]): the open checkpoint.
        computed (mapping of `str` to `tuple[str, LazyTensor]`): name and values of each computed tensor, by the name
            of the stored tensor in whose place it is.
        hidden (`set[str]`): the stored tensors that they are computed from.
    """

    def __init__(self, stored: Checkpoint, computed: Mapping[str, tuple[str, LazyTensor]], hidden: set[str]):
        super().__init__(stored)
        self.tied = {n: root for n, root in stored.tied.items() if n not in hidden and root not in hidden}
        self.tensors, self._values = {}, {}
        names = {name: 2 for name in stored.tensors if name not in hidden}
        for place, info in stored.tensors.items():
            if place in computed:
                name, values = computed[place]
                name = unique_name(name[:MAX_NAME], names)
                self._values[name] = values
                self.tensors[name] = TensorInfo(name, "F32", values.shape, info.file, 0, values.nbytes)
            if place not in hidden:
                self.tensors[place] = info
        memory = stored._memory | self._values
        self.container = describe_container(
            stored.container.format, stored.container.producer, self.tensors.values(), memory
        )

    @property
    def stored(self) -> Checkpoint:
        """The dequantized model, which can be built from its weights; one in memory runs unchanged."""
        return self._stored.stored if self.source.in_memory else self

    def reopen(self) -> Checkpoint:
        """The same model, opened as a base is: all of its tensors must be readable."""
        return dequantize_schemes(self._stored.reopen())

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`. With `out`, which must be large enough, a view of it."""
        values = self._values.get(info.name)
        if values is None:
            return self._stored.read(info, start, stop, out)
        try:
            found = values.read(start, info.nbytes if stop is None else stop)
        except InvalidFileError as error:
            raise CheckpointError(f"{self.source.name}: {info.name} can't be dequantized ({error}).") from None
        if out is None:
            return found
        out[: len(found)] = found
        return out[: len(found)]


class _StoredTensors(Mapping[str, LazyTensor]):
    """The tensors of an open checkpoint, which are read through it."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._places = {name: number for number, name in enumerate(checkpoint.tensors)}
        self._metadata: dict[str, str] | None = None

    def __getitem__(self, name: str) -> LazyTensor:
        return _StoredTensor(self._checkpoint, self._checkpoint.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)

    def place(self, name: str) -> int:
        """The number of a tensor in the order of the files."""
        return self._places.get(name, len(self._places))

    def metadata(self) -> dict[str, str]:
        """The metadata of all safetensors files, whose headers are checked when the checkpoint is opened."""
        if self._metadata is None:
            self._metadata = {}
            if not self._checkpoint.source.pickled:
                for path in self._checkpoint.source.weights:
                    with suppress(SafetensorError, OSError), safe_open(path, framework="numpy") as opened:
                        self._metadata |= opened.metadata() or {}
        return self._metadata


class _StoredTensor(LazyTensor):
    """A tensor of an open checkpoint. Unsigned integers above 8 bits are taken as signed ones of the same bits."""

    __slots__ = ("_checkpoint", "_info", "stored")

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo):
        super().__init__(_TYPES[info.dtype], info.shape, storage=Storage("", "uint8", info.nbytes, data=_NOTHING))
        self._checkpoint, self._info, self.stored = checkpoint, info, info.dtype

    @property
    def span(self) -> tuple[int, int]:
        """Begin and end of its bytes in a storage, which it has none of."""
        return 0, 0

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as `uint8`."""
        return self._checkpoint.read(self._info, start, stop)


_NOTHING = np.empty(0, np.uint8)
