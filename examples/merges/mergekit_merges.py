"""Merges copies of a model with mergekit, by its own functions and defaults.

    pip install -r examples/merges/mergekit_merges.txt
    python examples/merges/mergekit_merges.py ANCESTOR.safetensors OUT_FOLDER COPY.safetensors COPY.safetensors ...
    python examples/merges/mergekit_merges.py --values tests/attacks/ancestor/mergekit.json

All files have the same tensor names. Weights of two or more dimensions that the ancestor has in the same shape are
merged; the rest of the first copy stays. `--values` writes what mergekit makes of small tensors, for the tests of our
attacks.
"""

import json
import sys
from pathlib import Path

import torch
from mergekit import sparsify
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


RECIPES = {
    "task_arithmetic": ("task_arithmetic", {"weight": 1.0, "normalize": True}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}),
    "dare_linear": ("dare_linear", {"weight": 1.0, "density": 0.1, "normalize": True}),
    "dare_ties": ("dare_ties", {"weight": 1.0, "density": 0.1, "normalize": True}),
    "della": ("della", {"weight": 1.0, "density": 0.5, "epsilon": 0.15}),
    "breadcrumbs": ("breadcrumbs", {"weight": 1.0, "density": 0.9, "gamma": 0.01, "normalize": True}),
    "model_stock": ("model_stock", {}),
    "karcher": ("karcher", {}),
}
RANKS = (0.1, 0.03)


def merge(name: str, origin: torch.Tensor, copies: list[torch.Tensor]) -> torch.Tensor:
    """One tensor of the ancestor and of each copy, merged by a recipe."""
    method, parameters = RECIPES[name]
    if method == "karcher":  # a mean of the copies alone
        return merge_tensors(copies, method, parameters=parameters)
    return merge_tensors([origin, *copies], method, parameters=parameters, base_index=0)


def truncate(origin: torch.Tensor, copy: torch.Tensor, kept: float) -> torch.Tensor:
    """The ancestor and the leading singular directions of the difference, as `mergekit-extract-lora` has them."""
    left, values, right = torch.linalg.svd((copy - origin).flatten(1), full_matrices=False)
    rank = max(1, round(kept * len(values)))
    scale = values[:rank].sqrt().diag()
    return origin + ((left[:, :rank] @ scale) @ (scale @ right[:rank])).reshape(copy.shape)


def merge_files(ancestor: Path, out: Path, copies: list[Path]) -> None:
    """Writes one file for each recipe, and one for each rank of the first copy."""
    origin, states = load_file(ancestor), [load_file(copy) for copy in copies]
    names = [n for n, t in states[0].items() if t.ndim > 1 and n in origin and origin[n].shape == t.shape]
    out.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        torch.manual_seed(0)
        merged = {name: merge(recipe, origin[name], [state[name] for state in states]) for name in names}
        save_file(states[0] | {n: t.contiguous() for n, t in merged.items()}, out / f"{recipe}.safetensors")
    for kept in RANKS:
        merged = {name: truncate(origin[name], states[0][name], kept) for name in names}
        save_file(states[0] | {n: t.contiguous() for n, t in merged.items()}, out / f"rank-{kept}.safetensors")


def numbers(offset: int, modulus: int) -> torch.Tensor:
    """A small tensor of whole numbers and a quarter, `(3, 4)`."""
    values = (torch.arange(12) * (2 * offset + 3) + offset) % modulus
    return (values - modulus // 2 + 0.25).reshape(3, 4)


def small_values() -> dict[str, list[list[float]] | list[list[list[float]]]]:
    """Small tensors, and what mergekit makes of them."""
    origin = numbers(0, 7) / 4
    copies = [origin + (numbers(1, 11) + numbers(2 + i, 5) / 2) / 32 for i in range(3)]
    delta = copies[0] - origin
    found = {"ancestor": origin, "copies": torch.stack(copies)}
    for name in ("task_arithmetic", "model_stock", "karcher"):
        found[name] = merge(name, origin, copies)
    for kept in (0.25, 0.5):
        ties = {"weight": 1.0, "density": kept}
        found[f"ties {kept}"] = merge_tensors([origin, *copies], "ties", parameters=ties, base_index=0)
        found[f"magnitude {kept}"] = sparsify.magnitude(delta, kept)
        found[f"outliers {kept}"] = sparsify.magnitude_outliers(delta, kept, gamma=0.1)
    torch.manual_seed(0)
    found["dare 0.5"] = sparsify.bernoulli(delta, 0.5)
    torch.manual_seed(0)
    found["della 0.5"] = sparsify.della_magprune(delta, 0.5, 0.2)
    return {name: tensor.tolist() for name, tensor in found.items()}


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    if first == "--values":
        Path(others[0]).write_text(json.dumps(small_values(), indent=1) + "\n")
    else:
        merge_files(Path(first), Path(others[0]), [Path(name) for name in others[1:]])
