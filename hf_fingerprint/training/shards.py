"""What this process holds of a parameter, and sums over processes.

The reading is additive over weights, so a model that is sharded over processes (FSDP2, ZeRO-3) is read by each from
its own part, and costs one all-reduce of V numbers. No weight is gathered.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hf_fingerprint.errors import CarrierError


@dataclass(frozen=True)
class Shard:
    """The rows of a parameter that are on this process.

    Attributes:
        values (`torch.Tensor` of shape `(rows, columns)`): a view where the layout allows, without gradient.
        first_row (`int`): which row of the whole tensor comes first.
        groups (`tuple`): process groups over which sums of the rows add up to the whole tensor's; empty where this
            process holds all of it.
    """

    values: torch.Tensor
    first_row: int
    groups: tuple[Any, ...]


def local_shard(name: str, parameter: torch.Tensor) -> Shard:
    """The part of a parameter that is on this process: all of it, or some rows of a DTensor.

    Raises:
        [`CarrierError`]: if it is sharded along another dimension than rows.
    """
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
            f"{name} is sharded as {placements}: only rows can be marked in shards; use FSDP2 without tensor "
            f"parallelism."
        )
    _, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    local = parameter.detach().to_local()
    groups = tuple(mesh.get_group(i) for i, p in enumerate(placements) if type(p) is RowShard)
    return Shard(local.flatten(1), offset[0] if len(local) else parameter.shape[0], groups)


def local_gradient(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient computed for this process' rows, as the parameter's own kind of tensor."""
    if not hasattr(parameter, "device_mesh"):
        return gradient.view(parameter.shape)
    from torch.distributed.tensor import DTensor

    local = gradient.view(len(gradient), *parameter.shape[1:])
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=torch.empty(parameter.shape, device="meta").stride(),
    )


def all_reduce_sum(groups: tuple[Any, ...], values: torch.Tensor) -> torch.Tensor:
    """All-reduces sums over each of the groups, in place."""
    for group in groups:
        dist.all_reduce(values, group=group)
    return values


def _zero3_shard(parameter: Any) -> Shard:
    """ZeRO-3 cuts the flattened tensor into equal parts, wherever that is in a row; the rest of a row reads as 0."""
    shape, part = parameter.ds_shape, parameter.ds_tensor.detach().flatten()
    columns = shape[1:].numel()
    start = dist.get_rank(parameter.ds_process_group) * len(part)
    stop = min(start + len(part), shape.numel())
    first_row, rows = start // columns, max(0, -(-stop // columns) - start // columns)
    values = part.new_zeros(rows * columns)
    inside = start - first_row * columns
    values[inside : inside + max(0, stop - start)] = part[: max(0, stop - start)]
    return Shard(values.view(rows, columns), first_row, (parameter.ds_process_group,))
