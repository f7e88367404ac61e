"""Measures registering, issuing and tracing a model of 10 GB in BF16, in 20 shards, with random weights.

    python -m examples.benchmarks.large_model --out bench_output/large_model

Half of its weights have the shapes of a ViT-g's blocks, half those of a ConvNeXt-XXL's. Times are ratios to plain work
on the same files by turns, both synced to the disk. Memory is the peak of a process of its own, above its imports.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from examples._common.owner import RECIPIENT
from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.speed import AMPLITUDE, PASSPHRASE, bounded, hash_file, measure, seconds, unbuilt
from hf_fingerprint import FingerprintConfig, Issuer, Vault, trace
from hf_fingerprint.checkpoints import sync


SHARDS, PAIRS = 20, 3
VIT, CONVNEXT = 1408, 3072
BLOCKS = (
    {"attn.qkv": (3 * VIT, VIT), "attn.proj": (VIT, VIT), "mlp.fc1": (6144, VIT), "mlp.fc2": (VIT, 6144)},
    {"conv_dw": (CONVNEXT, 1, 7, 7), "fc1": (4 * CONVNEXT, CONVNEXT), "fc2": (CONVNEXT, 4 * CONVNEXT)},
)


def blocks() -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yields the name and the shapes of one block after another, three of a ViT-g for one of a ConvNeXt-XXL."""
    for number, shapes in enumerate(cycle([BLOCKS[0], BLOCKS[0], BLOCKS[0], BLOCKS[1]])):
        yield f"blocks.{number}", shapes


def make_model(folder: Path, gigabytes: float, shards: int) -> int:
    """Writes a model with random weights, and returns the bytes of its largest tensor in single precision."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    index: dict[str, str] = {}
    shapes, largest = blocks(), 0
    for shard in range(shards):
        tensors: dict[str, torch.Tensor] = {}
        while sum(tensor.nbytes for tensor in tensors.values()) < gigabytes * 1e9 / shards:
            name, each = next(shapes)
            for rest, shape in each.items():
                tensors[f"{name}.{rest}.weight"] = (0.02 * torch.randn(shape)).bfloat16()
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        largest = max(largest, *(4 * tensor.numel() for tensor in tensors.values()))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return largest


def plain_copy(model: Path, out: Path) -> None:
    """Loads and saves a model shard by shard."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in sorted(model.glob("*.safetensors")):
        save_file(load_file(path), out / path.name, {"format": "pt"})
        sync(out / path.name)


def load_both(model: Path, copy: Path) -> None:
    """Loads two models shard by shard, and subtracts one from the other."""
    for path in sorted(model.glob("*.safetensors")):
        ours, theirs = load_file(path), load_file(copy / path.name)
        for name, values in ours.items():
            values - theirs[name]


def hash_files(model: Path) -> None:
    """One SHA-256 pass over a model's files."""
    for path in sorted(model.glob("*.safetensors")):
        hash_file(path)


def main() -> None:
    """Makes the model, marks a copy, traces it, and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/large_model"))
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    add_results_option(parser)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    model, copies, plain = (options.out / name for name in ("model", "copies", "plain"))
    largest = make_model(model, options.gigabytes, options.shards)
    vault = Vault.create(options.out / "vault", PASSPHRASE)
    config = FingerprintConfig(expected_recipients=1000, amplitude=AMPLITUDE)
    hashing = [seconds(partial(hash_files, model))]
    with unbuilt():
        registering = [seconds(lambda: Issuer(model, vault, config).__exit__())]
        issuer = Issuer(model, vault, config)
    issuing: list[float] = []
    copying: list[float] = []
    with issuer:
        for turn in range(options.pairs):
            copying.append(seconds(partial(plain_copy, model, plain)))
            shutil.rmtree(plain)
            shutil.rmtree(copies, ignore_errors=True)
            issuing.append(seconds(partial(issuer.issue, f"{RECIPIENT} {turn}", copies)))
    vault.unlock(PASSPHRASE)
    result = trace(copies, vault)
    tracing: list[float] = []
    loading: list[float] = []
    for _ in range(options.pairs):
        loading.append(seconds(partial(load_both, model, copies)))
        tracing.append(seconds(partial(trace, copies, vault)))
    allowed = 4 * largest / 1e6 + 200
    accused = [each.recipient for each in result.accused] == [f"{RECIPIENT} {options.pairs - 1}"]
    figures = [
        Figure("the leaker alone is accused", str(accused), "True", accused),
        bounded("register at a fixed strength / one SHA-256 pass", registering, hashing, 3),
        bounded("issue a copy / load and save it shard by shard, both synced", issuing, copying, 1.5),
        bounded("trace again / load both and subtract, shard by shard", tracing, loading, 2.5),
    ]
    for job, arguments in (
        ("issue", [model, options.out / "vault", options.out / "another"]),
        ("trace", [copies, options.out / "vault"]),
    ):
        used = float(measure(job, *map(str, arguments))[0])
        figures.append(
            Figure(
                f"peak memory of {job} above the imports", f"{used:.0f} MB", f"<= {allowed:.0f} MB", used <= allowed
            )
        )
    for folder in (model, copies, options.out / "another"):
        shutil.rmtree(folder)
    report(options, [figure_table(figures)])


if __name__ == "__main__":
    main()
