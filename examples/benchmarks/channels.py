"""Traces copies whose channels were pruned away with torch-pruning, and prints their scores next to the oracle's.

A small model is trained on Fashion-MNIST for each of six architectures (EfficientNet-Lite0 from its ImageNet weights),
registered, and issued to ten recipients. One copy loses 10, 25 and 40 % of its channels: residual streams, hidden
layers, grouped convolutions and attention heads alike, chosen by criteria of torch-pruning. Then it is trained again,
as is the copy itself: what that one loses is not pruning's. The oracle is the same suspect in the base's shapes, with
zeros for the channels that torch-pruning says it removed.

    pip install torch-pruning==1.6.1
    python -m examples.benchmarks.channels --out bench_output/channels [--only mobilenetv3_small_050 ...]
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch_pruning
from safetensors.torch import save_file
from timm.models import save_for_hf

from examples._common.real_inputs import fashion_mnist, lite0, load_model
from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples._common.training import accuracy, fine_tune
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace


ARCHITECTURES = (
    "tf_efficientnet_lite0",
    "resnet18",
    "mobilenetv3_small_050",
    "regnetx_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
)
SHARES = (0.1, 0.25, 0.4)
CRITERIA = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "LAMP": torch_pruning.importance.LAMPImportance,
    "random": torch_pruning.importance.RandomImportance,
}
OTHER_SHARE = 0.25  # for the criteria besides magnitude, and for magnitude without training
RECIPIENTS = ["leaker", *(f"innocent-{number}" for number in range(9))]
TRAINING_IMAGES, TEST_IMAGES, BATCH, LEARNING_RATE = 6000, 1000, 64, 1e-3
UNPRUNED = "none"
MIN_RATIO, MAX_LOSS = 0.9, 0.1
PASSPHRASE = "a passphrase for the example"
COLUMNS = (
    "architecture",
    "pruned",
    "criterion",
    "steps",
    "accuracy",
    "oracle",
    "score",
    "innocents' highest",
    "accused",
)


class _Row(NamedTuple):
    architecture: str
    share: float
    criterion: str
    steps: int
    lost: float
    accuracy: float
    oracle: float
    score: float
    innocents: float
    accused: list[str]


class _Images(NamedTuple):
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes a copy of each architecture, traces what is left, and prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the models, copies and suspects")
    parser.add_argument("--only", nargs="+", default=ARCHITECTURES, metavar="NAME", help="timm architectures")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--base-steps", type=int, default=1000, help="steps that train the base")
    parser.add_argument("--steps", type=int, default=60, help="steps that train the pruned copy")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    images = _Images(
        fashion_mnist(True, TRAINING_IMAGES, options.size), fashion_mnist(False, TEST_IMAGES, options.size)
    )
    rows = []
    for architecture in options.only:
        for row in _measure(architecture, options, images):
            rows.append(row)
            print(*row, sep="  ", file=sys.stderr, flush=True)
    report(options, [_table(rows), figure_table(_figures(rows))])


def prune(
    model: torch.nn.Module, share: float, criterion: str, image: torch.Tensor
) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Removes a share of the channels of a timm model.

    Returns:
        `(pruned, places)`: the pruned model, and where its weights were in the model's tensors, as flat indices.
    """
    heads, left_out = {}, [model.get_classifier()]
    for part in model.modules():
        if hasattr(part, "qkv"):
            part.fused_attn, heads[part.qkv] = False, part.num_heads
    tagged = copy.deepcopy(model).double()
    pruner = torch_pruning.pruner.BasePruner(
        model.requires_grad_(),
        image,
        importance=CRITERIA[criterion](),
        pruning_ratio=share,
        ignored_layers=left_out,
        num_heads=heads,
        prune_head_dims=True,
    )
    pruner.step()
    for part in model.modules():
        if hasattr(part, "qkv"):
            part.head_dim = part.qkv.out_features // 3 // part.num_heads
            part.attn_dim, part.scale = part.qkv.out_features // 3, part.head_dim**-0.5
    graph = torch_pruning.DependencyGraph().build_dependency(tagged.requires_grad_(), image.double())
    with torch.no_grad():
        for values in tagged.state_dict().values():
            values.copy_(torch.arange(values.numel()).reshape(values.shape))
    graph.load_pruning_history(pruner.pruning_history())
    return model, {name: values.long() for name, values in tagged.state_dict().items()}


def restore_with_zeros(
    pruned: Mapping[str, torch.Tensor], places: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The pruned weights in the whole model's shapes, with zeros elsewhere."""
    found = {}
    for name, values in whole.items():
        flat = torch.zeros_like(values).flatten()
        flat[places[name].flatten()] = pruned[name].flatten()
        found[name] = flat.reshape(values.shape)
    return found


def _measure(architecture: str, options: argparse.Namespace, images: _Images) -> Iterator[_Row]:
    folder = options.out / architecture
    arguments = {"img_size": options.size} if "vit" in architecture else {}
    torch.manual_seed(0)
    if architecture == "tf_efficientnet_lite0":
        base = lite0()
        base.reset_classifier(10)
    else:
        base = timm.create_model(architecture, num_classes=10, **arguments)
    half, size = (0.5, 0.5, 0.5), (3, options.size, options.size)
    base.pretrained_cfg = dict(base.pretrained_cfg, input_size=size, crop_pct=1.0, mean=half, std=half)
    fine_tune(base, *images.train, LEARNING_RATE, options.base_steps, BATCH)
    save_for_hf(base, folder / "model", model_args=arguments or None, safe_serialization=True)
    vault = Vault.create(folder / "vault", PASSPHRASE)
    vault.unlock(PASSPHRASE)
    with Issuer(folder / "model", vault, FingerprintConfig(calibration_images=8)) as issuer:
        copies = list(issuer.issue_all(RECIPIENTS, folder / "copies"))
    leaked = load_model(copies[0].path)
    before = accuracy(leaked, *images.test)
    tries = [(0.0, UNPRUNED, options.steps)]
    tries += [(share, "magnitude", options.steps) for share in SHARES]
    tries += [(OTHER_SHARE, "magnitude", 0)]
    tries += [(OTHER_SHARE, criterion, options.steps) for criterion in CRITERIA if criterion != "magnitude"]
    for share, criterion, steps in tries:
        torch.manual_seed(1)
        pruned, places = copy.deepcopy(leaked), None
        if share:
            pruned, places = prune(pruned, share, criterion, images.test[0][:1])
        if steps:
            fine_tune(pruned, *images.train, LEARNING_RATE, steps, BATCH)
        reached = accuracy(pruned.eval(), *images.test)
        state = {name: values.contiguous() for name, values in pruned.state_dict().items()}
        found = oracle = _trace(state, folder, vault)
        if places is not None:
            oracle = _trace(restore_with_zeros(state, places, leaked.state_dict()), folder, vault)
        scores, ideal = ({each.recipient: each.score for each in result.scores} for result in (found, oracle))
        highest = max(scores.get(name, 0) for name in RECIPIENTS[1:])
        accused = [each.recipient for each in found.accused]
        score = scores.get("leaker", 0.0)
        lost = before - reached
        yield _Row(architecture, share, criterion, steps, lost, reached, ideal["leaker"], score, highest, accused)


def _trace(state: dict[str, torch.Tensor], folder: Path, vault: Vault) -> TraceResult:
    save_file(state, folder / "suspect.safetensors")
    return trace(folder / "suspect.safetensors", vault, all_scores=True)


def _table(rows: Sequence[_Row]) -> Table:
    cells = tuple(
        (
            row.architecture,
            f"{row.share:.0%}",
            row.criterion,
            f"{row.steps}",
            f"{row.accuracy:.1%} ({-row.lost * 100:+.1f})",
            f"{row.oracle:.1f}",
            f"{row.score:.1f}",
            f"{row.innocents:.1f}",
            ", ".join(row.accused) or "nobody",
        )
        for row in rows
    )
    return Table("channels", "Copies whose channels were pruned away, and trained after it", COLUMNS, cells)


def _figures(rows: Sequence[_Row]) -> list[Figure]:
    traced = {row.architecture for row in rows if row.criterion == UNPRUNED and "leaker" in row.accused}
    pruned = [row for row in rows if row.criterion != UNPRUNED]
    near = [row for row in pruned if row.lost <= MAX_LOSS]
    kept = [row for row in near if row.architecture in traced]
    every, named, fair = (sum("leaker" in row.accused for row in some) for some in (pruned, near, kept))
    ratio = min(row.score / row.oracle for row in rows)
    innocents = sum(each != "leaker" for row in rows for each in row.accused)
    return [
        Figure("named, of those within 10 points of the copy", f"{named} of {len(near)}", "all", named == len(near)),
        Figure("the same, where the copy trained alike is named", f"{fair} of {len(kept)}", "all", fair == len(kept)),
        Figure("named, of all", f"{every} of {len(pruned)}", "reported"),
        Figure("least score / the oracle's", f"{ratio:.3f}", f">= {MIN_RATIO}", ratio >= MIN_RATIO),
        Figure("innocents accused", f"{innocents}", "0", innocents == 0),
    ]


if __name__ == "__main__":
    main()
