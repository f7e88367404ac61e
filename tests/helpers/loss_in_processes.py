"""A few steps with `loss + strength * R` in one process or in several, R ours or written from its definition.

`run_in_processes` starts them; this file is then their script. Weights, losses and the seen world size come back.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.task import ClassificationTask

from hf_fingerprint.carriers.projection import TensorProjection, keyed_offset
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.registration import register
from hf_fingerprint.training import DeepMarksLoss, Fingerprint, FingerprintedModel, FingerprintTask
from hf_fingerprint.vault import Vault, begin_training
from tests.helpers.small_models import WEAK_SETTINGS


RECIPIENT = "Ariadne-of-Naxos"
STRENGTH, RATE = 0.02, 0.02  # a step takes a fifth of the way to R's minimum: stable, so that roundings don't grow


def register_base(folder: Path, vault: Vault) -> None:
    """Registers a base and begins the recipient's copy, so that every training uses one codeword."""
    with open_checkpoint(folder) as checkpoint:
        begin_training(vault, register(checkpoint, vault, WEAK_SETTINGS), RECIPIENT)


class ReferenceTerm:
    """`mean((y - b)^2)` with `y = X(a (w - w_ref)) / e`; autograd does all else.

    Args:
        model (`torch.nn.Module`): the timm model, not wrapped.
        folder (`Path`): the base.
        vault ([`Vault`]): where it is registered, as the only base.
    """

    def __init__(self, model: torch.nn.Module, folder: Path, vault: Vault):
        (base,) = vault.bases()
        _, key = begin_training(vault, base, RECIPIENT)
        self.bits = torch.from_numpy(base.codebook().codeword(key).astype(np.float32))
        origin, modules = load_file(folder / "model.safetensors"), dict(model.named_modules())
        self.parts = []
        self.energy = torch.zeros(base.length)
        for carrier in base.carriers:
            if not model.get_parameter(carrier.name).requires_grad:
                continue
            reference = origin[carrier.name].flatten()
            signs = np.ones(len(reference), np.float32)
            TensorProjection(base.secret, carrier.name, base.length).write(  # 1 + X^T 1, which is never 1
                signs.reshape(1, -1), np.ones(1, np.float32), np.full(base.length // 8, 255, np.uint8)
            )
            amplitude = torch.tensor(carrier.amplitude).repeat_interleave(len(reference) // len(carrier.amplitude))
            signed = torch.from_numpy(signs - 1) * amplitude
            positions = (keyed_offset(base.secret, carrier.name, base.length) + torch.arange(len(signed))).remainder(
                base.length
            )
            self.energy.index_add_(0, positions, signed.square())
            module, _, attribute = carrier.name.rpartition(".")
            self.parts.append((modules[module], attribute, reference, positions, signed))

    def __call__(self) -> torch.Tensor:
        """`strength * R`."""
        sums = torch.zeros_like(self.bits)
        for module, attribute, reference, positions, signed in self.parts:
            weights = getattr(module, attribute)
            whole = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
            sums = sums.index_add(0, positions, signed * (whole.flatten() - reference))
        used = self.energy > 0
        return STRENGTH * (sums[used] / self.energy[used] - self.bits[used]).square().mean()


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns labeled noise, another for each process and micro-batch."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.randint(0, 10, (2,), generator=generator)


def load(folder: Path) -> torch.nn.Module:
    """The base's model; without BatchNorm, so several processes do what one does."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).train()


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """FSDP2 by hand, each block on its own and then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One training.

    Args:
        job (`dict`): `freeze` (how many blocks do not train),
            `term` ("ours", "dense" or "none"), `wrap` ("accelerate", "ddp", "fsdp2", "task" or "model"),
            `early` (the term before the forward pass), `clip`, `accumulation`, `steps`.
    """
    folder, vault = Path(job["folder"]), Vault(job["vault"])
    model, wrap, accumulation = load(folder), job["wrap"], job.get("accumulation", 1)
    rank = dist.get_rank() if dist.is_initialized() else 0
    model.blocks[: job.get("freeze", 0)].requires_grad_(False)
    fingerprint = Fingerprint(folder, RECIPIENT, vault)
    term: Any = None
    if job["term"] == "dense":
        term = ReferenceTerm(model, folder, vault)
    elif job["term"] == "ours" and wrap != "fsdp2":
        term = DeepMarksLoss(model, fingerprint, STRENGTH, embed=False)
    trained: Any = model
    if wrap == "model":
        trained = FingerprintedModel(model, fingerprint, STRENGTH, embed=False)
        term = trained.fingerprint_loss
    accelerator = None
    if wrap == "fsdp2":
        trained = shard(model)
        if job["term"] == "ours":  # bound to a model that is sharded already
            term = DeepMarksLoss(trained, fingerprint, STRENGTH, embed=job.get("embed", False))
    elif wrap == "task":
        inner = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        task = FingerprintTask(inner, term).prepare_distributed()
        trained = task.get_trainable_module()
    elif wrap in ("ddp", "model"):
        trained = torch.nn.parallel.DistributedDataParallel(trained)
    optimizer = torch.optim.SGD(trained.parameters(), lr=RATE, momentum=0.9)
    if wrap == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        trained, optimizer = accelerator.prepare(model, optimizer)
    for step in range(job.get("steps", 3)):
        for part in range(accumulation):
            images, labels = batch(accumulation * step + part, rank)
            early = term() if term and job.get("early") else 0.0
            if wrap == "task":
                loss = task(images, labels)["loss"]
            else:
                loss = torch.nn.functional.cross_entropy(trained(images), labels) + early
                if term and not job.get("early"):
                    loss = loss + term()
            if accelerator is not None:
                with accelerator.accumulate(trained):
                    accelerator.backward(loss)
                    if job.get("clip") and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trained.parameters(), job["clip"])
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                (loss / accumulation).backward()
        if accelerator is None:
            if job.get("clip"):
                torch.nn.utils.clip_grad_norm_(trained.parameters(), job["clip"])
            optimizer.step()
            optimizer.zero_grad()
    if fingerprint._lock is not None:
        fingerprint._lock.release()  # the next training of this process is for the same recipient
    state = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.state_dict().items()}
    found = {name: value.detach().clone().contiguous() for name, value in state.items()}
    if job["term"] == "ours":
        deepmarks = trained.module.deepmarks if wrap == "model" else term
        deepmarks()
        found["metrics"] = torch.tensor(list(deepmarks.metrics.values()))
    found["world"] = torch.tensor(dist.get_world_size() if dist.is_initialized() else 1)
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between weights, relative to the largest of its tensor."""
    names = (one.keys() | other.keys()) - {"metrics", "world"}
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp_min(1e-12)) for n in names)


def run_in_processes(jobs: list[dict[str, Any]], work: Path, processes: int) -> list[dict[str, torch.Tensor]]:
    """Runs trainings in processes of their own, which find one another on a free port."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "jobs.json").write_text(json.dumps(jobs, default=str))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ACCELERATE_"))}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, __file__, str(work)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [load_file(work / f"{i}.safetensors") for i in range(len(jobs))]


if __name__ == "__main__":
    gc.freeze()  # accelerate collects garbage
    there = Path(sys.argv[1])
    dist.init_process_group("gloo")
    for number, next_job in enumerate(json.loads((there / "jobs.json").read_text())):
        weights = train(next_job)
        if dist.get_rank() == 0:
            save_file(weights, there / f"{number}.safetensors")
        dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # without gloo's threads, which may abort an interpreter that ends
