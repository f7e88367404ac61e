"""Trains a recipient's mark with a hand-written Accelerate loop in two processes: add `deepmarks()` to the loss.

A small transformer, trained on handwritten digits, becomes the base. Two processes (DDP over gloo) then train it
further for alice, with gradient accumulation and clipping. Only the main process opens the vault. The saved folder is
recorded, and traced among copies issued to other recipients.

The script starts its own processes. It also runs under `torchrun` and `accelerate launch`.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from examples._common.owner import RECIPIENT, empty_folder, expect_trace, make_owner_vault
from examples._common.real_inputs import digits, load_model, save_timm
from examples._common.training import fine_tune
from hf_fingerprint.training import DeepMarksLoss, Fingerprint


def main() -> None:
    """Runs the example; the exit code is 0 if the trace names alice and nobody else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("accelerate_output"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="steps of each training")
    parser.add_argument("--strength", type=float, default=0.1, help="the factor of the fingerprint term in the loss")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(arguments.processes)}
    method = "fork" if sys.platform == "linux" else "spawn"  # nothing ran yet, so a fork is safe, and imports once
    torch.multiprocessing.start_processes(run_spawned, (arguments,), nprocs=arguments.processes, start_method=method)


def run_spawned(rank: int, arguments: argparse.Namespace) -> None:
    """Sets the environment that torchrun sets, and runs one process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    run_rank(arguments)


def run_rank(arguments: argparse.Namespace) -> None:
    """Runs one process of the training."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    out: Path = arguments.out
    images, labels = digits(32)
    if accelerator.is_main_process:
        empty_folder(out)
        print("1. The base: a small transformer, trained for a few steps\n", flush=True)
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=10, img_size=32)
        fine_tune(model, images, labels, lr=2e-3, steps=arguments.steps, batch=32, label="the owner trains the base")
        make_owner_vault(save_timm(model, out / "base"), out)
        print(f"2. {accelerator.num_processes} processes train it further for {RECIPIENT}\n", flush=True)
    accelerator.wait_for_everyone()

    fingerprint = Fingerprint(out / "base", RECIPIENT, out / "vault")
    model = load_model(out / "base").train()
    deepmarks = DeepMarksLoss(model, fingerprint, arguments.strength)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = 0
    while step < arguments.steps:
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(images), labels) + deepmarks()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            if accelerator.sync_gradients and step % max(1, arguments.steps // 4) == 0:
                figures = {"loss": float(loss.detach())} | deepmarks.metrics
                accelerator.print(f"  step {step}: " + ", ".join(f"{name} {v:.4g}" for name, v in figures.items()))
            if step == arguments.steps:
                break

    if accelerator.is_main_process:
        trained = save_timm(accelerator.unwrap_model(model), out / "trained")
        recorded = fingerprint.record(trained)
        print(f"  recorded: {recorded.path}, score {recorded.score:.1f}, {recorded.agreement:.1%} of the bits\n")
        print("3. It leaks\n", flush=True)
        expect_trace(trained, out / "vault")
    accelerator.end_training()


if __name__ == "__main__":
    main()
