"""Traces copies of 20 architectures whose tensors were disguised all at once, and prints what was placed.

The models are timm's, with random weights and normalizations. Each carrier of a copy gets a random permutation of its
axes, may be merged, split, fused with others of its kind or cut in two, and gets axes of 1. All tensors lose their
names and their order. The disguised copy must score what the copy itself does, and nobody else may be accused. A
model of the same architecture with other weights, disguised likewise, must be nobody's.

    python -m examples.benchmarks.layouts --out bench_output/layouts [--only vit_tiny_patch16_224 ...]
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from safetensors.numpy import load_file, save_file

from examples._common.real_inputs import save_timm
from examples._common.results import Figure, Table, add_results_option, figure_table, report
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace


ARCHITECTURES = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "seresnet50",
    "densenet121",
    "regnety_002",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "ghostnet_100",
    "repvgg_a0",
    "vgg11_bn",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "deit_small_patch16_224",
    "beit_base_patch16_224",
    "mixer_s16_224",
)
CLASSES, AMPLITUDE, IMAGES = 10, 0.003, 8
MIN_RATIO = 0.99
PASSPHRASE = "a passphrase for the example"
Arrays = dict[str, np.ndarray]
COLUMNS = ("architecture", "carriers", "placed", "score / the copy's", "others accused", "seconds", "another model")


class _Row(NamedTuple):
    architecture: str
    carriers: int
    placed: int
    ratio: float
    others: int
    seconds: float
    unrelated: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Traces a disguised copy of each architecture, and prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder for the models, their copies and the suspects"
    )
    parser.add_argument("--only", nargs="+", default=ARCHITECTURES, metavar="NAME", help="timm architectures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the disguises")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    rows = []
    for architecture in options.only:
        rows.append(_measure(architecture, options.out / architecture, options.seed))
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    report(options, [_table(rows), figure_table(_figures(rows))])


def random_model(architecture: str, seed: int) -> torch.nn.Module:
    """Returns a timm model with random weights, whose normalizations and biases are random too."""
    torch.manual_seed(seed)
    model = timm.create_model(architecture, pretrained=False, num_classes=CLASSES)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if not values.is_floating_point():
                continue
            if values.ndim > 1:
                values.copy_(torch.randn_like(values) * values[0].numel() ** -0.5)
            elif name.endswith(("running_var", "weight", "gamma")):
                values.uniform_(0.5, 1.5)
            else:
                values.normal_(0, 0.1)
    return model.eval()


def disguise(arrays: Mapping[str, np.ndarray], carriers: Sequence[str], rng: np.random.Generator) -> Arrays:
    """Returns a model's tensors without names, in another order, with its carriers in other layouts.

    Args:
        arrays (mapping of `str` to `np.ndarray`): the tensors.
        carriers (sequence of `str`): the names of those that get another layout.
        rng (`np.random.Generator`): draws the layouts.
    """
    changed = [array for name, array in arrays.items() if name not in carriers]
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for name in carriers:
        by_shape[arrays[name].shape].append(arrays[name])
    for similar in by_shape.values():
        rng.shuffle(similar)
        while similar:
            kind = rng.choice(["one", "one", "fuse", "stack", "cut"])
            count = min(len(similar), int(rng.integers(2, 4)))
            parts = [similar.pop() for _ in range(count if kind in ("fuse", "stack") else 1)]
            if kind == "fuse" and count > 1:
                parts = [np.concatenate(parts, int(rng.integers(2)))]
            elif kind == "stack" and count > 1:
                changed.append(np.stack([np.swapaxes(part, 0, 1) for part in parts]))
                continue
            elif kind == "cut" and parts[0].size > 4096 and len(parts[0]) % 2 == 0:
                parts = np.split(parts[0], 2)
            changed += [_relaid(part, rng) for part in parts]
    order = rng.permutation(len(changed))
    return {f"onnx::{i}": np.ascontiguousarray(changed[place]) for i, place in enumerate(order.tolist())}


def _relaid(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tensor with its axes in a random order, some of them merged or split, and with axes of 1."""
    made = array.transpose(rng.permutation(array.ndim)).squeeze()
    kind = rng.choice(["", "merge", "split"])
    if kind == "merge" and made.ndim > 2:
        made = made.reshape(-1, made.shape[-1])
    if kind == "split" and made.shape[0] % 4 == 0:
        made = made.reshape(4, -1, *made.shape[1:])
    for _ in range(int(rng.integers(3))):
        made = np.expand_dims(made, int(rng.integers(made.ndim + 1)))
    return made


def _measure(architecture: str, folder: Path, seed: int) -> _Row:
    model = save_timm(random_model(architecture, seed), folder / "model")
    vault = Vault.create(folder / "vault", PASSPHRASE)
    vault.unlock(PASSPHRASE)
    with Issuer(model, vault, FingerprintConfig(amplitude=AMPLITUDE, calibration_images=IMAGES)) as issuer:
        copies = list(issuer.issue_all(["leaker", "innocent"], folder / "copies"))
        carriers = [carrier.name for carrier in issuer.base.carriers]
    arrays = load_file(copies[0].path / "model.safetensors")
    plain = _trace(arrays, folder, vault, model)
    started = time.perf_counter()
    found = _trace(disguise(arrays, carriers, np.random.default_rng(seed)), folder, vault, model)
    seconds = time.perf_counter() - started
    other = {name: values.numpy() for name, values in random_model(architecture, seed + 1).state_dict().items()}
    unrelated = _trace(disguise(other, carriers, np.random.default_rng(seed)), folder, vault, model)
    scores = {each.recipient: each.score for each in found.scores}
    others = sum(each.recipient != "leaker" for result in (found, unrelated) for each in result.accused)
    others += len(unrelated.accused)
    ratio = scores["leaker"] / next(each.score for each in plain.scores if each.recipient == "leaker")
    return _Row(architecture, len(carriers), found.tensors_matched, ratio, others, seconds, unrelated.outcome.value)


def _trace(arrays: Arrays, folder: Path, vault: Vault, model: Path) -> TraceResult:
    save_file(arrays, folder / "suspect.safetensors")
    return trace(folder / "suspect.safetensors", vault, base=model, all_scores=True)


def _table(rows: Sequence[_Row]) -> Table:
    cells = tuple(
        (
            row.architecture,
            f"{row.carriers}",
            f"{row.placed}",
            f"{row.ratio:.3f}",
            f"{row.others}",
            f"{row.seconds:.1f}",
            row.unrelated,
        )
        for row in rows
    )
    return Table("layouts", "Copies in random layouts, without names", COLUMNS, cells)


def _figures(rows: Sequence[_Row]) -> list[Figure]:
    placed, carriers = sum(row.placed for row in rows), sum(row.carriers for row in rows)
    least = min(row.ratio for row in rows)
    accused = sum(row.others for row in rows)
    return [
        Figure(
            "carriers that were placed",
            f"{placed} of {carriers}",
            "all but those whose exchange changes no score",
            least >= MIN_RATIO,
        ),
        Figure("least score / the copy's own", f"{least:.3f}", f">= {MIN_RATIO}", least >= MIN_RATIO),
        Figure("innocents accused", f"{accused}", "0", accused == 0),
    ]


if __name__ == "__main__":
    main()
