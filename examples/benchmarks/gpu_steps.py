"""Measures training steps with and without the term, in one process or in one for each device.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m examples.benchmarks.gpu_steps --help

`gpu` starts it. All processes take the same steps, and the first one's seconds count.
"""

import os
import statistics
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from examples._common.results import Figure
from examples.benchmarks.gpu_sizes import Job, Sizes, main
from examples.benchmarks.training_steps import Loop


WARMUP, BOUND = 2, 1.01


def step_figures(job: Job) -> Iterator[Figure]:
    """Yields the figures of a step of each model in one process."""
    for number, (title, architecture, batch) in enumerate(job.sizes.models):
        share = job.seconds_left / (len(job.sizes.models) - number)
        while True:
            try:
                yield from _model_figures(job, title, architecture, batch, share)
                break
            except torch.OutOfMemoryError:
                if batch < 2:
                    raise
            batch //= 2
            torch.cuda.empty_cache()


def _model_figures(job: Job, title: str, architecture: str, batch: int, seconds: float) -> Iterator[Figure]:
    loop, what = Loop(architecture, batch, job.device, timed=False), f"{title}, batch {batch}"
    figures = [step_ratio(loop, job.sizes, seconds, what)]
    if job.device != "cpu":
        figures.append(peak_memory(loop, what))
    yield from figures


def sharded_figures(job: Job) -> Iterator[Figure]:
    """Yields the figures of a step under DDP, and under FSDP2: each block on its own and then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if job.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if job.device == "cpu" else "nccl")

    def shard(model: torch.nn.Module) -> torch.nn.Module:
        mesh = init_device_mesh(job.device, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    title, architecture, batch = job.sizes.sharded
    kinds = {"DDP": torch.nn.parallel.DistributedDataParallel, "FSDP2": shard}
    for number, (kind, wrap) in enumerate(kinds.items()):
        loop = Loop(architecture, batch, job.device, timed=False, wrap=wrap)
        share = job.seconds_left / (len(kinds) - number)
        what = f"{title}, {kind}, {dist.get_world_size()} processes, batch {batch} each"
        figure = step_ratio(loop, job.sizes, share, what)
        if dist.get_rank() == 0:
            yield figure
    dist.barrier()
    dist.destroy_process_group()


def step_ratio(loop: Loop, sizes: Sizes, seconds: float, what: str) -> Figure:
    """Returns the ratio of steps with the term to steps without, by turns, in as many pairs as the seconds allow."""
    for _ in range(WARMUP):
        loop.steps(1, marked=False), loop.steps(1, marked=True)
    each = loop.steps(1, marked=False) + loop.steps(1, marked=True)
    count = max(3, min(sizes.pairs, int(seconds / (sizes.steps * each))))
    if dist.is_initialized():  # the first process decides, so that all take as many
        decided = [count]
        dist.broadcast_object_list(decided, src=0)
        (count,) = decided
    found = []
    for pair in range(count):
        taken = {marked: loop.steps(sizes.steps, marked) for marked in ((True, False) if pair % 2 else (False, True))}
        found.append((taken[True], taken[False]))
    ratios = [ours / theirs for ours, theirs in found]
    median = statistics.median(ratios)
    plain = statistics.median(theirs for _, theirs in found) / sizes.steps
    measured = f"{median:.4f} ({min(ratios):.4f} - {max(ratios):.4f}, {count} pairs of {sizes.steps} steps)"
    measured += f"; a step without takes {1000 * plain:.1f} ms"
    return Figure(f"step with the term / without, {what}, {sizes.precision}", measured, f"<= {BOUND}", median <= BOUND)


def peak_memory(loop: Loop, what: str) -> Figure:
    """Returns the memory that a step with the term needs above a step without it."""
    peaks = []
    for marked in (False, True):
        torch.cuda.reset_peak_memory_stats()
        loop.steps(2, marked)
        peaks.append(torch.cuda.max_memory_allocated())
    shown = f"{(peaks[1] - peaks[0]) / 1e6:+.0f} MB of {peaks[0] / 1e6:.0f} MB"
    return Figure(f"peak memory of a step with the term, above one without, {what}", shown, "reported")


if __name__ == "__main__":
    main({"step": step_figures, "sharded": sharded_figures})
    sys.stdout.flush()
    os._exit(0)  # without gloo's threads, which may abort an interpreter that ends
