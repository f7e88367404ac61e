"""Compares the divergence on record with that of issued copies, for each kind of output.

The copies' divergence is the mean over 32 copies on 1,024 images that the calibration did not see.

    python -m examples.benchmarks.budget --out bench_output/budget [--only NAME ...]

EfficientNet-Lite0 has its ImageNet weights: complete, with the difference of two classes as one logit, with 20 of its
classes as labels, and without its head. The transformers segmenter and backbone have random weights.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from examples._common.owner import PASSPHRASE
from examples._common.real_inputs import lite0, save_timm
from examples._common.results import Table, add_results_option, report
from hf_fingerprint import FingerprintConfig, Issuer, Vault
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.models import BuiltModel, LazyImages, build_model, lazy_synthetic_images, user_images
from hf_fingerprint.registration.outputs import divergence, output_values


SIZE, COPIES, EACH, HELD_OUT_SEED = 64, 32, 32, 9
Case = tuple[Callable[[Path], None], FingerprintConfig]


def main() -> None:
    """Measures all cases, or those of `--only`, and prints their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for models and copies")
    parser.add_argument("--only", nargs="*", default=None, help="names of cases")
    parser.add_argument("--copies", type=int, default=COPIES, help="number of copies to issue")
    add_results_option(parser)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (save, config) in cases(arguments.out).items():
        if arguments.only is None or name in arguments.only:
            row = measure(arguments.out / name.replace(" ", "_"), save, config, arguments.copies)
            ratio, least, most = (row[each] / row["recorded"] for each in ("measured", "least", "most"))
            figures = f"{row['recorded']:.1e}", f"{row['measured']:.1e}", f"{ratio:.2f}", f"{least:.2f} - {most:.2f}"
            rows.append((name, row["kind"].replace("_", " "), *figures))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    columns = ("model", "output", "on record", "copies, on average", "ratio", "one copy, relative to the record")
    report(arguments, [Table("budget", "", columns, tuple(rows))])


def cases(out: Path) -> dict[str, Case]:
    """Returns the models and their configurations."""
    plain = FingerprintConfig(expected_recipients=100)
    labels = FingerprintConfig(expected_recipients=100, output_kind="multi_label")
    digits = FingerprintConfig(expected_recipients=100, calibration=out / "digits" / "calibration")
    return {
        "Lite0": (lambda folder: save_lite0(folder), plain),
        "Lite0 on digits": (lambda folder: save_digits(out) or save_lite0(folder), digits),
        "Lite0 with one logit": (lambda folder: save_lite0(folder, lambda head: head[:1] - head[1:2]), plain),
        "Lite0 with 20 labels": (lambda folder: save_lite0(folder, lambda head: head[::50]), labels),
        "Lite0 without a head": (lambda folder: save_lite0(folder, None), plain),
        "Segformer": (save_segformer, plain),
        "ViTModel": (save_backbone, plain),
    }


def measure(folder: Path, save: Callable[[Path], None], config: FingerprintConfig, copies: int) -> dict[str, Any]:
    """Returns the divergence on record and that of issued copies."""
    if not (folder / "model").exists():
        save(folder / "model")
    vault = folder / "vault"
    opened = Vault(vault) if vault.exists() else Vault.create(vault, PASSPHRASE)
    with Issuer(folder / "model", opened, config) as issuer, open_checkpoint(folder / "model") as checkpoint:
        calibration, built = issuer.base.calibration, build_model(checkpoint)
        images = held_out(built, config, copies * EACH)
        each = []
        for number, batch in zip(range(copies), images.batches(EACH), strict=False):
            copy = issuer.issue(f"recipient {number}", folder / "copies" / str(number)).path
            with open_checkpoint(copy) as marked:
                each.append(divergences(built, build_model(marked), batch, str(calibration.output)))
    return {
        "kind": calibration.output,
        "recorded": calibration.kl,
        "measured": float(np.concatenate(each).mean()),
        "least": min(float(one.mean()) for one in each),
        "most": max(float(one.mean()) for one in each),
    }


def held_out(built: BuiltModel, config: FingerprintConfig, count: int) -> LazyImages:
    """Returns images of the same kind as the calibration's that it did not see."""
    if config.calibration is None:
        return lazy_synthetic_images(built, count, HELD_OUT_SEED)
    return user_images(config.calibration.parent / "held out", built, count)


def divergences(base: BuiltModel, copy: BuiltModel, batch: torch.Tensor, kind: str) -> np.ndarray:
    """Returns the divergence of a copy from its base for each image."""
    with torch.no_grad():
        before, after = (output_values(each.module(batch), kind) for each in (base, copy))
    return divergence(before, after, kind).numpy()


def save_lite0(folder: Path, change: Callable[[torch.Tensor], torch.Tensor] | None = lambda head: head) -> None:
    """Saves EfficientNet-Lite0 for images of 64 pixels, with its head changed or removed."""
    model = lite0()
    if change is None:
        model.reset_classifier(0)
        model.num_classes = 0
    else:
        weight, bias = change(model.classifier.weight.detach()), change(model.classifier.bias.detach())
        model.reset_classifier(len(weight))
        model.classifier.load_state_dict({"weight": weight, "bias": bias})
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIZE, SIZE), "num_classes": model.num_classes}
    model.default_cfg = model.pretrained_cfg
    save_timm(model, folder)


def save_segformer(folder: Path) -> None:
    """Saves a small semantic segmenter of transformers."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[32, 64, 80, 128], depths=[1] * 4, decoder_hidden_size=64, num_labels=8, initializer_range=0.1
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 2 * SIZE, "width": 2 * SIZE}).save_pretrained(folder)


def save_backbone(folder: Path) -> None:
    """Saves a small ViT of transformers without a head."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(folder)


def save_digits(out: Path) -> None:
    """Writes scikit-learn's digits as images, half of them for calibration and half held out."""
    from sklearn.datasets import load_digits

    for number, pixels in enumerate(load_digits().images):
        place = out / "digits" / ("calibration" if number % 2 else "held out") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((SIZE, SIZE)).save(place)


if __name__ == "__main__":
    main()
