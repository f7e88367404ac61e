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
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np

from hf_fingerprint.checkpoints.choosing import ADAPTER_MESSAGE
from hf_fingerprint.checkpoints.formats.contained import describe_container
from hf_fingerprint.checkpoints.formats.pytorch.pickled import find_tied, is_valid_name
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY, TensorInfo, largest_tensors
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES, Storage
from hf_fingerprint.checkpoints.live_tensors import (
    ComputedLiveTensor,
    LiveTensor,
    dequantized_bytes,
    is_quantized,
    obstacle,
    storage_of,
    without_subclass,
)
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
        dequantize = lru_cache(1)(dequantized_bytes)  # blocks are read one after another
        for name, values in state.items():
            if isinstance(name, str) and name.endswith(_EXTRA_STATE) and not hasattr(values, "untyped_storage"):
                continue  # what a module saves besides its tensors
            values = without_subclass(values) if suspect else values
            found = (
                ComputedLiveTensor(values, dequantize)
                if suspect and is_quantized(values)
                else LiveTensor(values, storages)
            )
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
            self._memory[name] = found
            if isinstance(found, LiveTensor):
                self.values[name] = values.detach()
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
    return {storage_of(values) for values in tensors if obstacle(values) is None and values.numel()}


def _source_name(name: str) -> str:
    found = f"{re.sub(r'[^A-Za-z0-9_ ]', '_', name)[:80]} (in memory)"
    assert IN_MEMORY.fullmatch(found)
    return found


def _version(values: "torch.Tensor") -> int:
    return -1 if values.is_inference() else values._version
