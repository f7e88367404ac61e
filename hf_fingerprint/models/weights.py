"""Load a checkpoint's weights into a model, or check that a library did.

A loader that doesn't know a tensor's name leaves random weights in the model, and measurements on them would be
meaningless. Here that is an error, which names the tensors.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import BuildError
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    import torch


_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
_SPARE_TENSORS, _SPARE_WEIGHTS = 1000, 1 << 24  # allowed beyond those of the file
_MODULES_PER_TENSOR = 10
_MAX_NAMED = 5


def load_weights(module: "torch.nn.Module", checkpoint: Checkpoint) -> None:
    """Loads a checkpoint's weights into a model, one tensor at a time.

    Args:
        module (`torch.nn.Module`): the model, `float32`; names may differ by wrappers' prefixes.
        checkpoint ([`Checkpoint`]): the open weights.

    Raises:
        [`BuildError`]: if the checkpoint lacks some of the model's tensors, or has them in another shape.
    """
    import torch

    in_file, state = _match_tensors(module, checkpoint), module.state_dict()
    fitting = {name: in_file[name] for name, values in state.items() if _is_compatible(in_file.get(name), values)}
    floating = [name for name, values in state.items() if values.is_floating_point()]
    _refuse_missing([name for name in floating if name not in fitting], checkpoint)
    with torch.no_grad():
        for name, info in fitting.items():
            state[name].copy_(torch.from_numpy(_load(checkpoint, info)))


def read_state_dict(checkpoint: Checkpoint) -> "dict[str, torch.Tensor]":
    """All tensors of a checkpoint by their names in the file; floating point as `float32`."""
    import torch

    readable = (info for info in checkpoint.tensors.values() if info.dtype in _INTEGERS or info.dtype in READABLE)
    return {info.name: torch.from_numpy(_load(checkpoint, info)) for info in readable}


def check_weights_loaded(
    module: "torch.nn.Module", state: "Mapping[str, torch.Tensor]", checkpoint: Checkpoint
) -> None:
    """Checks that a library loaded the given weights into a model, perhaps under other names.

    Raises:
        [`BuildError`]: if some of the model's tensors are not in `state`.
    """
    import torch

    floating = {name: values for name, values in module.state_dict().items() if values.is_floating_point()}
    renamed = {n: v for n, v in floating.items() if not (n in state and torch.equal(state[n], v))}
    if renamed:
        contents = {_content(values) for values in state.values()}
        _refuse_missing([name for name, values in renamed.items() if _content(values) not in contents], checkpoint)


def map_parameter_names(
    module: "torch.nn.Module", checkpoint: Checkpoint, digests: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Maps the model's parameter names to the checkpoint's.

    Names match without wrappers' prefixes, if the shapes are equal. Otherwise a tensor of equal shape and values
    matches, since loaders may rename tensors (transformers 5 does).

    Args:
        module (`torch.nn.Module`): the model, `float32`.
        checkpoint ([`Checkpoint`]): the open weights.
        digests (mapping, *optional*): result of [`digest_tensors`]; saves reading F32 tensors again.
    """
    parameters = dict(module.named_parameters())
    by_name = _match_tensors(module, checkpoint)
    found = {name: by_name[name].name for name, p in parameters.items() if _is_compatible(by_name.get(name), p)}
    renamed = [name for name in parameters if name not in found]
    left = set(checkpoint.tensors) - set(found.values())
    shapes = {tuple(parameters[name].shape) for name in renamed}
    by_value: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name in sorted(left, reverse=True):
        info = checkpoint.tensors[name]
        if info.shape in shapes and info.dtype in READABLE:
            if digests is not None and info.dtype == "F32":  # the file holds the very bytes that would be hashed
                digest = bytes.fromhex(digests[name])
            else:
                digest = _digest(_load(checkpoint, info))
            by_value[info.shape, digest].append(name)
    for name in renamed:
        content = _content(parameters[name].detach().float())
        if by_value.get(content):
            found[name] = by_value[content].pop() if len(by_value[content]) > 1 else by_value[content][0]
    return found


@contextmanager
def bounded_construction(checkpoint: Checkpoint) -> Iterator[None]:
    """Bounds the size of a model that this thread constructs in the block, relative to its checkpoint.

    Raises:
        [`BuildError`]: as soon as the model grows beyond it, since a configuration can ask for a million layers.
    """
    from torch.nn.modules import module as hooks

    infos = checkpoint.tensors.values()
    most_tensors = 2 * len(infos) + _SPARE_TENSORS
    most_weights = 2 * sum(int(np.prod(info.shape, dtype=np.float64)) for info in infos) + _SPARE_WEIGHTS
    tensors = weights = modules = 0
    own = get_ident()

    def note(_module: object, _name: str, added: Any) -> None:
        nonlocal tensors, weights, modules
        if get_ident() != own or added is None:
            return
        if hasattr(added, "numel"):
            tensors, weights = tensors + 1, weights + added.numel()
        else:
            modules += 1
        if tensors > most_tensors or weights > most_weights or modules > _MODULES_PER_TENSOR * most_tensors:
            where = checkpoint.source.name
            raise BuildError(f"{where} describes a model far larger than its weights: don't use this model.")

    handles = [
        hooks.register_module_parameter_registration_hook(note),
        hooks.register_module_buffer_registration_hook(note),
        hooks.register_module_module_registration_hook(note),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _match_tensors(module: "torch.nn.Module", checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """The checkpoint's tensor for each of the model's tensor names: an exact match, else without wrappers' prefixes.

    Several matches, as in a file of two models, are an error.
    """
    infos = checkpoint.tensors
    wrapped: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in infos.items():
        wrapped[normalize_name(name)].append(info)
    found = {}
    for name in module.state_dict():
        candidates = [infos[name]] if name in infos else wrapped[normalize_name(name)]
        if len(candidates) > 1:
            both = " and ".join(printable(info.name) for info in candidates[:2])
            where = checkpoint.source.name
            raise BuildError(f"{where} holds both {both}, as if it were two models: export the one that is used.")
        if candidates:
            found[name] = candidates[0]
    return found


def _is_compatible(info: TensorInfo | None, values: "torch.Tensor") -> bool:
    """Whether a tensor of the checkpoint has the shape and the kind of dtype of the model's tensor."""
    if info is None or info.shape != tuple(values.shape):
        return False
    return info.dtype in (READABLE if values.is_floating_point() else _INTEGERS)


def _load(checkpoint: Checkpoint, info: TensorInfo) -> np.ndarray:
    raw = checkpoint.read(info, out=np.empty(info.nbytes, np.uint8))
    if info.dtype in _INTEGERS:
        return raw.view(_INTEGERS[info.dtype]).reshape(info.shape)
    return to_float32(raw, info.dtype).reshape(info.shape)


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values)).digest()


def _content(values: "torch.Tensor") -> tuple[Any, ...]:
    return tuple(values.shape), _digest(values.detach().cpu().contiguous().numpy())


def _refuse_missing(missing: list[str], checkpoint: Checkpoint) -> None:
    if missing:
        names = ", ".join(missing[:_MAX_NAMED]) + (", ..." if len(missing) > _MAX_NAMED else "")
        raise BuildError(
            f"{checkpoint.source.name} lacks {len(missing)} tensors of the model in its config.json, or has them in "
            f"another shape ({names}): give the config.json that belongs to these weights."
        )
