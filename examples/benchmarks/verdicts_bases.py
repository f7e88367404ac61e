"""Measures bases with one backbone: whether each leaker is named, and what fifty bases cost a trace."""

import copy
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from examples._common.real_inputs import digits, load_model, save_timm
from examples._common.results import Figure
from examples._common.training import fine_tune
from examples.benchmarks.speed import ratio, seconds
from examples.benchmarks.verdicts_scale import Scale, backbone, drifted, new_vault, opened, record
from hf_fingerprint import trace
from hf_fingerprint.attacks import Quantization


HEAD, NORMS, HALF = "another head", "scaled batch norms", "half precision"
COALITION = 3  # for many bases: certifying a larger one takes seconds for each
WEIGHTS = "model.safetensors"


def sibling_base(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    """Returns another base on the same backbone."""
    other = copy.deepcopy(model)
    if kind == HEAD:
        torch.manual_seed(1)
        other.reset_classifier(10)
    elif kind == NORMS:
        for module in other.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data *= 1.05
                module.bias.data *= 1.05
    else:
        other.half()
    return other


def ties_figure(work: Path, scale: Scale) -> Figure:
    """Returns how many leakers of EfficientNet-Lite0 and of a sibling base of each kind are named with their base."""
    counts: dict[str, dict[str, int]] = {}
    for kind in (HEAD, NORMS, HALF):
        folder = work / kind.replace(" ", "-")
        vault = new_vault(folder / "vault")
        model = backbone(scale)
        issued: dict[str, tuple[Path, str]] = {}
        for name, base in (("one", model), ("two", sibling_base(model, kind))):
            names = [f"{name}-{i:02}" for i in range(scale.copies)]
            with opened(save_timm(base, folder / name), vault, 1000) as issuer:
                for made in issuer.issue_all(names, folder / "copies"):
                    issued[made.recipient] = made.path, issuer.base.base_id
        images = digits(56)
        for recipient, (path, base_id) in track(issued.items(), f"tracing copies, {kind}", transient=True):
            for how, suspect in _leaks(path, folder / "suspect", images, scale.steps):
                found = counts.setdefault(f"{kind}, {how}", {"suspects": 0, "named": 0, "base": 0, "others": 0})
                accused = trace(suspect, vault).accused
                found["suspects"] += 1
                found["named"] += any(each.recipient == recipient for each in accused)
                found["base"] += any((each.recipient, each.base) == (recipient, base_id) for each in accused)
                found["others"] += sum(each.recipient != recipient for each in accused)
        shutil.rmtree(folder)
    suspects, named, right, others = (
        sum(found[key] for found in counts.values()) for key in ("suspects", "named", "base", "others")
    )
    return Figure(
        f"two bases with one backbone, heads or norms or precision apart, {scale.copies} copies each, verbatim, in 8 "
        f"bits, fine-tuned",
        f"{named} of {suspects} named, {right} with their base; {others} others",
        "every one, nobody else",
        named == right == suspects and not others,
        counts,
    )


def _leaks(
    path: Path, folder: Path, digits_: tuple[torch.Tensor, torch.Tensor], steps: int
) -> Iterator[tuple[str, Path]]:
    """Yields the verbatim copy, an 8-bit copy, and a copy fine-tuned on digits with a new head."""
    yield "verbatim", path
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path, folder)
    save_file(Quantization(bits=8)(load_file(path / WEIGHTS)), folder / WEIGHTS)
    yield "8 bits", folder
    fine_tuned = load_model(path).float()
    torch.manual_seed(2)
    fine_tuned.reset_classifier(10)
    fine_tune(fine_tuned, *digits_, lr=1e-4, steps=steps, batch=16)
    shutil.rmtree(folder)
    yield "fine-tuned", save_timm(fine_tuned, folder)


def price_figure(work: Path, scale: Scale) -> Figure:
    """Returns the time of a trace in a vault with many fine-tunes of one backbone, relative to one alone."""
    rng = np.random.default_rng(0)
    unmarked = save_timm(backbone(scale), work / "backbone")
    public = load_arrays(unmarked / WEIGHTS)
    vaults = {"many": new_vault(work / "many"), "one": new_vault(work / "one")}
    leaks = {}
    for i in track(range(scale.bases), "registering fine-tunes", transient=True):
        folder = shutil.copytree(unmarked, work / f"tuned-{i:02}")
        save_arrays(drifted(public, rng, 0.01, 0.03), folder / WEIGHTS)
        for name, vault in vaults.items():
            if name == "one" and i != scale.bases // 2:
                continue
            with opened(folder, vault, 1000, coalition=COALITION) as issuer:
                record(vault, issuer.base, [f"recipient-{i:02}-{j:02}" for j in range(scale.recorded - 1)])
                if i == scale.bases // 2:
                    leaks[name] = issuer.issue("the leaker", work / f"leak-{name}").path
    times: dict[str, list[float]] = {name: [] for name in vaults}
    names = {name: [each.recipient for each in trace(leaks[name], vaults[name]).accused] for name in vaults}  # warm
    for _ in track(range(scale.pairs), "tracing in pairs", transient=True):
        for name, vault in vaults.items():
            times[name].append(seconds(lambda name=name, vault=vault: trace(leaks[name], vault)))
    result = trace(leaks["many"], vaults["many"])
    right = all(found == ["the leaker"] for found in names.values())
    middle = statistics.median(many / one for many, one in zip(times["many"], times["one"], strict=True))
    return Figure(
        f"{scale.bases} fine-tunes of one backbone registered, trace / with one registered",
        f"{ratio(times['many'], times['one'])}; {len(result.bases_read)} read{'' if right else ', wrongly named'}",
        "<= 2",
        right and middle <= 2,
        {"seconds": times, "accused": names, "bases_read": len(result.bases_read), "left": len(result.bases_not_read)},
    )
