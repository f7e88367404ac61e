"""A device that is no CPU, for machines without an accelerator: `torch.device("faux")`.

It computes on the CPU, and refuses tensors of both devices in one operation, as an accelerator does. PyTorch has one
such backend in a process, so import this in a process of its own. It keeps all tensors, has no views, and can't change
the shape of a tensor in place; convolutional networks run on it, forwards and backwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


NAME = "faux"
_ATEN = torch.ops.aten
_COPIES = frozenset(["aten::copy_", "aten::_copy_from", "aten::index"])  # take tensors of both devices
_contents: dict[int, tuple[torch.Tensor, Any]] = {}  # by storage, which is kept so that its address is not used again
ran: list[str] = []  # the operations so far

_setup_privateuseone_for_python_backend(NAME)


def _is_faux(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def _content(value: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return _contents[value.untyped_storage()._cdata][0]


def _make(content: torch.Tensor) -> torch.Tensor:
    content = content.contiguous()
    made = torch._C._acc.create_empty_tensor(tuple(content.shape), content.dtype)
    storage = made.untyped_storage()
    _contents[storage._cdata] = content, storage
    return made


def _copy(source: torch.Tensor, target: torch.Tensor, _non_blocking: bool = False) -> torch.Tensor:
    return target.copy_(source)


def _convolution_backward(grad: Any, image: Any, weight: Any, *rest: Any) -> Any:
    return _ATEN.convolution_backward(grad, image, weight, None, *rest)


_ON_THE_CPU = {
    "aten::_copy_from": _copy,
    "aten::convolution_overrideable": _ATEN.convolution,
    "aten::convolution_backward_overrideable": _convolution_backward,
}


def _run(operation: Any, *args: Any, **options: Any) -> Any:
    """Runs an operation on the CPU; what comes back is on this device, unless another one was asked for."""
    values, name = tree.tree_leaves((args, options)), operation._schema.name
    ran.append(name)
    if name not in _COPIES and any(isinstance(v, torch.Tensor) and v.ndim and not _is_faux(v) for v in values):
        raise RuntimeError(f"{name} got tensors on cpu and on {NAME}.")
    given = {id(_content(value)): value for value in values if _is_faux(value)}
    target = next((value.type for value in values if isinstance(value, torch.device)), NAME)

    def unwrap(value: Any) -> Any:
        return (
            _content(value) if _is_faux(value) else torch.device("cpu") if isinstance(value, torch.device) else value
        )

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or target != NAME:
            return value
        return given[id(value)] if id(value) in given else _make(value)

    args, options = tree.tree_map(unwrap, (args, options))
    return tree.tree_map(wrap, _ON_THE_CPU.get(name, operation)(*args, **options))


def _register(name: str) -> None:
    operation = getattr(_ATEN, name).default
    _own.impl(name, lambda *args, **options: _run(operation, *args, **options), "PrivateUse1")


_all = torch.library.Library("_", "IMPL", "PrivateUse1")
_all.fallback(_run, "PrivateUse1")
_own: Any = torch.library.Library("aten", "IMPL")
for _name in ("convolution_overrideable", "convolution_backward_overrideable"):
    _register(_name)


def _cloning(deepcopy: Callable[..., Any]) -> Callable[..., Any]:
    """A tensor's `__deepcopy__` that clones those on this device, which have nothing in their storage."""

    def copy(self: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if not _is_faux(self):
            return deepcopy(self, memo)
        cloned = self.detach().clone()
        is_parameter = isinstance(self, torch.nn.Parameter)
        return memo.setdefault(id(self), torch.nn.Parameter(cloned, self.requires_grad) if is_parameter else cloned)

    return copy


for _kind in (torch.Tensor, torch.nn.Parameter):
    _kind.__deepcopy__ = _cloning(_kind.__deepcopy__)
