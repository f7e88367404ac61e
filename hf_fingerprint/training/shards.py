"""The local shard of a parameter, and sums over processes.

The extracted signal is additive over weights. If a model is sharded over processes (FSDP2, ZeRO-3), each process
extracts from its own shard, and one all-reduce of V numbers adds the results. No weight is gathered.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hf_fingerprint.errors import CarrierError


@dataclass(frozen=True)
class Shard:
    """The rows of a parameter on this process.

    Attributes:
        values (`torch.Tensor` of shape `(rows, columns)`): the rows, without gradient; a view if the layout allows.
        first_row (`int`): index of the first row in the whole tensor.
        groups (`tuple`): process groups over which to sum; empty if this process holds the whole tensor.
    """

    values: torch.Tensor
    first_row: int
    groups: tuple[Any, ...]


def local_shard(name: str, parameter: torch.Tensor) -> Shard:
    """This process's rows of a parameter, or all. Raises a [`CarrierError`] if another dimension is sharded."""
    if hasattr(parameter, "ds_id"):
        return _zero3_shard(parameter)
    if not hasattr(parameter, "device_mesh"):
        return Shard(parameter.detach().flatten(1), 0, ())
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as RowShard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = parameter.device_mesh, parameter.placements
    if not all(isinstance(p, Replicate) or (type(p) is RowShard and p.dim == 0) for p in placements):
        raise CarrierError(
            f"{name} is sharded as {placements}, but only shards of rows can be marked: use FSDP2 without tensor "
            f"parallelism."
        )
    _, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    local = parameter.detach().to_local()
    groups = tuple(mesh.get_group(i) for i, p in enumerate(placements) if type(p) is RowShard)
    return Shard(local.flatten(1), offset[0] if len(local) else parameter.shape[0], groups)


def local_gradient(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient for this process's rows, as the same kind of tensor as the parameter."""
    if not hasattr(parameter, "device_mesh"):
        return gradient.view(parameter.shape)
    from torch.distributed.tensor import DTensor

    local = gradient.view(len(gradient), *parameter.shape[1:])
    mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def all_reduce_sum(groups: tuple[Any, ...], values: torch.Tensor) -> torch.Tensor:
    """Sums `values` over each of the groups, in place, and returns them."""
    for group in groups:
        dist.all_reduce(values, group=group)
    return values


def _zero3_shard(parameter: Any) -> Shard:
    """This process's shard under ZeRO-3, which splits flattened tensors, even inside a row; what is missing is 0."""
    shape, part = parameter.ds_shape, parameter.ds_tensor.detach().flatten()
    columns = shape[1:].numel()
    start = dist.get_rank(parameter.ds_process_group) * len(part)
    stop = min(start + len(part), shape.numel())
    first_row, rows = start // columns, max(0, -(-stop // columns) - start // columns)
    values = part.new_zeros(rows * columns)
    inside, count = start - first_row * columns, max(0, stop - start)
    values[inside : inside + count] = part[:count]
    return Shard(values.view(rows, columns), first_row, (parameter.ds_process_group,))
