"""What a process holds of a parameter, and that sums over what all hold are those of the whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hf_fingerprint.carriers.sign_map import SignMap
from hf_fingerprint.errors import CarrierError
from hf_fingerprint.training.shards import all_reduce_sum, local_gradient, local_shard


def whole(rows, columns=(5,)):
    return torch.arange(1.0, 1 + rows * int(np.prod(columns))).view(rows, *columns)


def test_a_plain_parameter_is_all_here_as_rows():
    parameter = torch.nn.Parameter(whole(4, (3, 2, 2)))

    shard = local_shard("conv.weight", parameter)

    assert (shard.first_row, shard.groups) == (0, ())
    assert torch.equal(shard.values, parameter.detach().flatten(1))
    assert not shard.values.requires_grad
    assert local_gradient(parameter, shard.values).shape == parameter.shape


def test_channels_last_reads_in_the_order_of_the_tensor():
    parameter = whole(4, (3, 2, 2)).to(memory_format=torch.channels_last)

    assert torch.equal(local_shard("conv.weight", parameter).values, whole(4, (3, 2, 2)).flatten(1))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(6, 5), (1, 4), (3, 2, 3)])
def test_the_parts_of_zero_3_add_up_to_the_whole_tensor(processes, shape, monkeypatch):
    tensor = whole(shape[0], shape[1:])
    part = -(-tensor.numel() // processes)
    padded = torch.nn.functional.pad(tensor.flatten(), (0, part * processes - tensor.numel()), value=99.0)
    total = torch.zeros(tensor.flatten(1).shape)
    for rank in range(processes):
        monkeypatch.setattr("hf_fingerprint.training.shards.dist.get_rank", lambda group, rank=rank: rank)
        partitioned = SimpleNamespace(
            ds_id=1, ds_shape=tensor.shape, ds_tensor=padded[rank * part : (rank + 1) * part], ds_process_group="all"
        )
        shard = local_shard("weight", partitioned)
        assert shard.groups == ("all",)
        total[shard.first_row : shard.first_row + len(shard.values)] += shard.values

    assert torch.equal(total, tensor.flatten(1))


def test_sharded_over_two_processes(tmp_path):
    mp.start_processes(_both, args=(str(tmp_path),), nprocs=2, start_method="fork")

    results = [torch.load(tmp_path / f"results{rank}", weights_only=True) for rank in (0, 1)]
    for rank, one in enumerate(results):
        assert one["rows"] == {7: [4, 3][rank], 1: [1, 0][rank], 2: 1}
        assert one["first"] == {7: [0, 4][rank], 1: [0, 1][rank], 2: rank}
        for rows, size in ((7, (7, 5)), (1, (1, 5)), (2, (2, 5))):
            assert torch.allclose(one["sums"][rows], _sums(whole(rows)), rtol=1e-6)
            assert torch.equal(one["gradient"][rows], 2 * whole(rows)), size
        assert one["replicated"] == (7, 0, ())
        assert one["columns"].startswith(
            "mlp.weight is sharded as (Shard(dim=1),), but only shards of rows can be marked"
        )
        assert one["columns"].endswith(".")


def _map(rows):
    return SignMap(b"s" * 32, "weight", np.linspace(1, 2, rows, dtype=np.float32), 5, 16)


def _sums(values):
    out = torch.zeros(16)
    _map(len(values)).read(values, 0, out)
    return out


def _both(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    results = {"rows": {}, "first": {}, "sums": {}, "gradient": {}}
    for rows in (7, 1, 2):
        parameter = torch.nn.Parameter(distribute_tensor(whole(rows), mesh, [Shard(0)]))
        shard = local_shard("mlp.weight", parameter)
        results["rows"][rows], results["first"][rows] = len(shard.values), shard.first_row
        sums = torch.zeros(16)
        _map(rows).read(shard.values, shard.first_row, sums)
        results["sums"][rows] = all_reduce_sum(shard.groups, sums)
        parameter.grad = local_gradient(parameter, shard.values.clone())
        results["gradient"][rows] = (parameter.grad + parameter).detach().full_tensor()
    shard = local_shard("mlp.weight", distribute_tensor(whole(7), mesh, [Replicate()]))
    results["replicated"] = (len(shard.values), shard.first_row, shard.groups)
    try:
        local_shard("mlp.weight", distribute_tensor(whole(6), mesh, [Shard(1)]))
    except CarrierError as error:
        results["columns"] = str(error)
    torch.save(results, f"{folder}/results{rank}")
    dist.destroy_process_group()
