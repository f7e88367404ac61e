"""A module or a state dict as an open checkpoint, which reads the weights where they are.

```python
with open_checkpoint(model) as checkpoint:  # a torch.nn.Module
    checkpoint.source.name  # "ResNet (in memory)"
```

No weights are copied but the blocks that are read; those on an accelerator are moved one block at a time.
"""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np

from hf_fingerprint.checkpoints.choosing import ADAPTER_MESSAGE
from hf_fingerprint.checkpoints.formats.contained import describe_container
from hf_fingerprint.checkpoints.formats.pickled import find_tied, is_valid_name
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo, largest_tensors
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, NO_DATA, LazyTensor, Storage
from hf_fingerprint.checkpoints.naming import IN_MEMORY
from hf_fingerprint.checkpoints.reader import Checkpoint
from hf_fingerprint.checkpoints.source import Source
from hf_fingerprint.checkpoints.tensor_names import is_adapter
from hf_fingerprint.errors import CheckpointError, FingerprintError
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    import torch

ModelInput: TypeAlias = Union[str, Path, "torch.nn.Module", "Mapping[str, torch.Tensor]"]
ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")
_WRAPPERS = {"OptimizedModule": "_orig_mod", "FingerprintedModel": "model"} | dict.fromkeys(
    ("DataParallel", "DistributedDataParallel", "DeepSpeedEngine"), "module"
)
_EXTRA_STATE = "_extra_state"


class MemoryCheckpoint(Checkpoint):
    """A module or a state dict with the interface of an open checkpoint.

    Args:
        model (`torch.nn.Module` or mapping of `str` to `torch.Tensor`): the model. Wrappers such as DDP are removed.
        suspect (`bool`, *optional*, defaults to `False`): whether to list unreadable tensors in `left_out`; by
            default one such tensor is an error.

    Attributes:
        module (`torch.nn.Module` or `None`): the module without wrappers; `None` for a state dict.
        state_dict (mapping): the module's state dict, or the one that was given.
        values (mapping of `str` to `torch.Tensor`): its tensors by name, which share the model's memory.

    Raises:
        [`CheckpointError`]: if a tensor can't be read, or there is none.
    """

    def __init__(self, model: "torch.nn.Module | Mapping[str, torch.Tensor]", suspect: bool = False):
        import torch

        self.module: torch.nn.Module | None = None
        state: Mapping[Any, Any]
        if isinstance(model, torch.nn.Module):
            self.module = unwrap(model)
            check_not_wrapped(self.module)
            name, state = type(self.module).__name__, self.module.state_dict()
            if any(hasattr(parameter, "ds_id") for parameter in self.module.parameters()):
                raise CheckpointError(f"{name} is partitioned by ZeRO-3: save the whole model, and give its folder.")
        elif isinstance(model, Mapping):
            name, state = "state dict", model
        else:
            what = f"A {type(model).__name__} is no model"
            raise CheckpointError(f"{what}: give a path, a Hub id, a torch.nn.Module or a state dict.")
        self.source = Source(_source_name(name), Path(), (), None, None, owns_folder=False)
        self.tensors, self.left_out, self.tied, self.data_starts = {}, {}, {}, []
        self.state_dict = state
        self.values: dict[str, torch.Tensor] = {}
        self._descriptors, self._memory = [], {}
        self._add_values(state, suspect)
        self._check(suspect)
        self.container = describe_container("memory", "", self.tensors.values(), {})

    def _add_values(self, state: Mapping[Any, Any], suspect: bool) -> None:
        storages: dict[tuple[str, int], Storage] = {}
        for name, values in state.items():
            if isinstance(name, str) and name.endswith(_EXTRA_STATE) and not hasattr(values, "untyped_storage"):
                continue  # what a module saves besides its tensors
            found = LiveTensor(values, storages)
            reason = "an invalid name" if not is_valid_name(name) else found.unreadable_reason()
            if reason is None and suspect and not found.numel():
                reason = EMPTY
            if reason is not None and not suspect:
                raise CheckpointError(
                    f"{self.source.name}: {printable(str(name)[:80])} can't be read ({reason}): give a model whose "
                    f"tensors are all dense, and in memory."
                )
            if reason is not None:
                self.left_out[printable(str(name))] = reason
                continue
            self._memory[name], self.values[name] = found, values.detach()
            self.tensors[name] = TensorInfo(name, DTYPES[found.dtype], found.shape, 0, 0, found.nbytes)

    def _check(self, suspect: bool) -> None:
        if not self.tensors and not self.left_out:
            raise CheckpointError(f"{self.source.name} holds no tensors: give the model, or its state dict.")
        if suspect:
            if (largest := largest_tensors(self.tensors.values(), self.left_out)) is not None:
                self.tensors = {name: info for name, info in self.tensors.items() if name in largest}
            return
        if is_adapter(self.tensors):
            raise CheckpointError(f"{self.source.name} {ADAPTER_MESSAGE}.")
        self.tied.update(find_tied(self._memory, self.source.name))

    def state(self) -> str:
        """Address, version and dtype of each tensor as JSON, which changes when PyTorch changes or replaces one."""
        now = dict(self.values)
        if self.module is not None:
            named = chain(self.module.named_parameters(), self.module.named_buffers())
            now |= {name: values for name, values in named if name in now}
        return json.dumps([(name, v.data_ptr(), _version(v), str(v.dtype)) for name, v in now.items()])

    def reopen(self) -> Checkpoint:
        """The same model, opened as a base is: all of its tensors must be readable."""
        return MemoryCheckpoint(self.state_dict if self.module is None else self.module)

    def read(
        self, info: TensorInfo, start: int = 0, stop: int | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Bytes `start` to `stop` of a tensor as `uint8`, read-only. With `out`, which must be large enough, a view of
        it."""
        found = self._memory[info.name].read(start, info.nbytes if stop is None else stop)
        if out is None:
            return found
        out[: len(found)] = found
        return out[: len(found)]


class LiveTensor(LazyTensor):
    """A tensor of PyTorch whose rows are read where they are; `storages` has the known storages by address."""

    __slots__ = ("_raw", "_values")

    def __init__(self, values: "torch.Tensor", storages: dict[tuple[str, int], Storage]):
        reason = _obstacle(values)
        if reason is not None:
            super().__init__("", reason=reason)
            return
        dtype, memory = str(values.dtype).removeprefix("torch."), values.untyped_storage()
        storage = storages.setdefault(
            storage_of(values), Storage("", "uint8", memory.nbytes(), data=np.empty(0, np.uint8))
        )
        super().__init__(dtype, tuple(values.shape), tuple(values.stride()), int(values.storage_offset()), storage)
        if dtype in DTYPES and self.span[1] > memory.nbytes():  # freed, such as by a library that offloads weights
            self.reason = NO_DATA
        self._values = values.detach()
        self._raw = _raw_bytes(self._values) if values.is_contiguous() and values.device.type == "cpu" else None

    def unreadable_reason(self) -> str | None:
        """Why it can't be read, or `None`."""
        if self.reason is None and self.dtype not in DTYPES:
            return f"dtype {self.dtype}"
        return self.reason

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` in row-major order, as read-only `uint8`."""
        stop = self.nbytes if stop is None else stop
        if self._raw is not None:
            return self._raw[start:stop]
        if start >= stop:
            return np.empty(0, np.uint8)
        row = self.nbytes // self.shape[0] if self.shape else self.nbytes
        first = start // row
        rows = self._values[first : -(-stop // row)] if self.shape else self._values
        return _raw_bytes(rows.contiguous().cpu())[start - first * row : stop - first * row]


def unwrap(module: "torch.nn.Module") -> "torch.nn.Module":
    """The module inside DDP, `torch.compile`, DeepSpeed's engine or this package's model for training."""
    while (inner := getattr(module, _WRAPPERS.get(type(module).__name__, ""), None)) is not None:
        module = inner
    return module


def check_not_wrapped(module: "torch.nn.Module") -> None:
    """Raises a [`FingerprintError`] if a module is wrapped so that its tensors are not the model's (PEFT, FSDP1)."""
    if any(hasattr(part, "peft_config") for part in module.modules()):
        raise FingerprintError("The model is wrapped by PEFT, which freezes its weights: merge the adapter first.")
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules()):
        raise FingerprintError("The model is wrapped by FSDP1, which flattens weights: use FSDP2 (fsdp_version: 2).")


def copy_module(module: ModuleT) -> ModuleT:
    """A deep copy of a module, on the same device and in the same mode.

    Accelerate replaces `forward` by a function that runs the module it was made for; a copy gets its class's own.

    Raises:
        [`CheckpointError`]: if PyTorch can't copy it, or the copy would have weights of the module itself.
    """
    name = _source_name(type(module).__name__)
    try:
        copied = deepcopy(module)
    except Exception as error:  # modules raise anything
        raise CheckpointError(f"{name} can't be copied ({type(error).__name__}): give its state dict.") from error
    if not own_storages(copied).isdisjoint(own_storages(module)):
        raise CheckpointError(f"{name} can't be copied (its copies share its weights): give its state dict.")
    if "_original_forward" in copied.__dict__:
        del copied.__dict__["_original_forward"], copied.__dict__["forward"]
    return copied


def own_storages(module: "torch.nn.Module") -> set[tuple[str, int]]:
    """Device and address of the memory that a module's parameters and buffers lie in."""
    tensors = (*module.parameters(), *module.buffers())
    return {storage_of(values) for values in tensors if _obstacle(values) is None and values.numel()}


def storage_of(values: "torch.Tensor") -> tuple[str, int]:
    """Device and address of the memory that a tensor lies in, which tied tensors and views share."""
    return str(values.device), values.untyped_storage().data_ptr()


def overlaps(values: "torch.Tensor") -> bool:
    """Whether elements of a tensor may share memory, as those of an expanded one do, so that it can't be marked in
    place."""
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(values.stride(), values.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def _source_name(name: str) -> str:
    found = f"{re.sub(r'[^A-Za-z0-9_ ]', '_', name)[:80]} (in memory)"
    assert IN_MEMORY.fullmatch(found)
    return found


def _obstacle(values: Any) -> str | None:
    """Why a value of a state dict can't be read as a tensor, or `None`."""
    import torch

    if type(values) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return "a tensor subclass" if isinstance(values, torch.Tensor) else "not a tensor"
    if values.is_meta:
        return NO_DATA
    if values.layout is not torch.strided or values.is_quantized:
        return f"layout {values.layout}".replace("torch.", "") if not values.is_quantized else "quantized"
    if values.is_conj() or values.is_neg():
        return "a lazy view"
    return None


def _raw_bytes(values: "torch.Tensor") -> np.ndarray:
    """The bytes of a contiguous tensor on the CPU, read-only `uint8`, which share its memory."""
    import torch

    raw: np.ndarray = values.reshape(-1).view(torch.uint8).numpy()
    raw.flags.writeable = False
    return raw


def _version(values: "torch.Tensor") -> int:
    return -1 if values.is_inference() else values._version
