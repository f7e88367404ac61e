"""CUDA tensors without values, for machines without a GPU: an operation on tensors of both devices raises an error.

So does reading a value, for which a GPU has to be waited for. The autograd engine needs a real device, so gradients
are tensors of the right shape on the device of their inputs: what a backward pass computes is not checked.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


CUDA = torch.device("cuda", 0)


class Transfers(TorchDispatchMode):
    """Keeps the names of operations that compute on the CPU or copy from or to it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        result = operation(*args, **(options or {}))
        tensors = [each for each in tree_leaves((args, options, result)) if isinstance(each, torch.Tensor)]
        if operation is not torch.ops.prim.device.default and any(each.device.type == "cpu" for each in tensors):
            self.names.append(str(operation))
        return result


def _empty_gradients(outputs: Any, inputs: Any, *_by_outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(each) for each in tree_leaves(inputs))


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Makes all tensors that are created in it fake. `from_tensor` of what it yields makes one of a real tensor."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, patch("torch.autograd.grad", _empty_gradients):
        yield mode


def fake_module(module: torch.nn.Module, mode: FakeTensorMode) -> torch.nn.Module:
    """A copy of a module with fake tensors on CUDA, without gradients, for code that runs in [`fake_cuda`]."""
    with unset_fake_temporarily():
        module = copy.deepcopy(module)
        kept = [(part, *item) for part in module.modules() for item in (part._parameters | part._buffers).items()]
        real = [(part, name, value.detach()) for part, name, value in kept if value is not None]
    for part, name, value in real:
        moved = mode.from_tensor(value).to(CUDA)
        if name in part._parameters:
            part._parameters[name] = torch.nn.Parameter(moved, False)
        else:
            part._buffers[name] = moved
    # it is there already, and `Module.to` swaps fake tensors, which fails where anything refers to them weakly
    module.to = lambda *args, **options: module  # type: ignore[method-assign]
    return module
