"""Measures key images of many recipients over one base's trigger set.

Prints how many are read back, how visible they are, how many innocents they name, and how often a copy predicts
another label for them than for the plain trigger images.

    python -m examples.benchmarks.key_images --vault vault --base base    # a base with a trigger set
    python -m examples.benchmarks.key_images --recipients 2 --count 8     # synthetic images instead
"""

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from examples._common.results import Table, add_results_option, report
from hf_fingerprint import Vault
from hf_fingerprint.blackbox import KeyImage, derive_fingerprint
from hf_fingerprint.blackbox.key_images.export import mark_triggers
from hf_fingerprint.blackbox.key_images.identify import CoverMatcher
from hf_fingerprint.blackbox.querying.query import find_base_with_triggers
from hf_fingerprint.blackbox.trigger_set.classifier_head import find_head
from hf_fingerprint.blackbox.trigger_set.labels import assigned_triggers
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet, synthetic_cover_images
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import build_model


RESAMPLED = ("BICUBIC", "BILINEAR", "LANCZOS", "BOX", "NEAREST")
SHARE, QUALITY = 0.5, 75
Pixels = np.ndarray


def through_jpeg(image: Pixels) -> Pixels:
    """Returns an image after JPEG compression."""
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def half_size(image: Pixels, how: str, back: bool = True) -> Pixels:
    """Returns an image at half the size, or scaled to half and back."""
    size, resampling = image.shape[1::-1], Image.Resampling[how]
    small = Image.fromarray(image).resize((size[0] // 2, size[1] // 2), resampling)
    return np.asarray(small.resize(size, resampling) if back else small)


DISTORTIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "untouched": lambda image: image,
    f"JPEG {QUALITY}": through_jpeg,
    "half size (BICUBIC)": partial(half_size, how="BICUBIC", back=False),
    **{f"half size and back ({how})": partial(half_size, how=how) for how in RESAMPLED},
    **{
        f"half size, back, JPEG {QUALITY} ({how})": lambda image, how=how: through_jpeg(half_size(image, how))
        for how in RESAMPLED
    },
}


@dataclass
class Figures:
    """Counts of images made, read back and matched to innocents, by distortion; PSNR and SSIM; CPU seconds."""

    images: int = 0
    skipped: int = 0
    read: Counter[str] = field(default_factory=Counter)
    innocents: Counter[str] = field(default_factory=Counter)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    making: float = 0.0
    reading: float = 0.0

    def table(self, others: int) -> Table:
        """Returns the counts, compared with the fingerprints of this many others."""
        columns = (f"{self.images:,} key images", "read back", f"innocents matched, of {others:,} an image")
        count = max(self.images, 1)
        rows = (
            (name, f"{self.read[name] / count:.2%} ({self.read[name]:,})", f"{self.innocents[name]}")
            for name in DISTORTIONS
        )
        psnr, ssim = (min(values, default=float("nan")) for values in (self.psnr, self.ssim))
        making, reading = 1000 * self.making / count, 1000 * self.reading / count / len(DISTORTIONS)
        note = (
            f"Least PSNR {psnr:.2f} dB, least SSIM {ssim:.4f}; triggers without capacity: {self.skipped}; "
            f"{making:.0f} ms to make one, {reading:.0f} ms to read it."
        )
        return Table("reading", "", columns, tuple(rows), (note,))


def keys_of(count: int) -> list[bytes]:
    """Returns copy keys that are the same in every run."""
    pool = hashlib.shake_256(b"recipients of key images").digest(32 * count)
    return [pool[32 * i : 32 * i + 32] for i in range(count)]


def measure(
    images: Pixels, assigned: Pixels, secret: bytes, keys: list[bytes], innocents: int, bits: int
) -> tuple[Figures, list[list[tuple[int, KeyImage]]]]:
    """Makes, distorts and reads all key images; returns the figures and the images of each recipient."""
    figures, made = Figures(), []
    reader = CoverMatcher(images, secret, bits)
    everyone = {derive_fingerprint(key, bits): index for index, key in enumerate(keys_of(len(keys) + innocents))}
    for row, key in enumerate(track(keys, "key images", transient=True)):
        started = time.process_time()
        every = list(mark_triggers(images, assigned[row], secret, key, bits))
        figures.making += time.process_time() - started
        own = [(index, image) for index, image in every if image is not None]
        figures.skipped += len(every) - len(own)
        figures.images += len(own)
        figures.psnr += [image.psnr for _, image in own]
        figures.ssim += [image.ssim for _, image in own]
        made.append(own)
        for name, distort in DISTORTIONS.items():
            distorted = [distort(image.image) for _, image in own]
            started = time.process_time()
            found = [reader.read(image) for image in distorted]
            figures.reading += time.process_time() - started
            for (index, _), read in zip(own, found, strict=True):
                recipient = None if read is None else everyone.get(read[1])
                figures.read[name] += recipient == row and read[0] == index
                figures.innocents[name] += recipient not in (None, row)
    return figures, made


def query_copies(
    base: Path, trigger_set: TriggerSet, images: Pixels, made: list[list[tuple[int, KeyImage]]], keys: list[bytes]
) -> Table:
    """Returns how often each recipient's copy (the base with a bound head) predicts its trigger labels.

    It queries plain trigger images, key images with its own fingerprint, and those with another recipient's.
    """
    with open_checkpoint(base) as checkpoint:
        built = build_model(checkpoint)
    weight = find_head(built.module, torch.zeros(1, *built.size)).layer.weight
    plain_weight = weight.detach().clone()

    def predict(pixels: list[Pixels]) -> Pixels:
        if not pixels:
            return np.empty(0, int)
        shown = torch.stack([built.preprocess(Image.fromarray(image)) for image in pixels])
        with torch.no_grad():
            return logits_of(built.module(shown)).argmax(1).numpy()

    matching, counted, changed = Counter[str](), Counter[str](), Counter[str]()
    for row, key in enumerate(track(keys, "querying copies", transient=True)):
        with torch.no_grad():
            weight.copy_(plain_weight + torch.from_numpy(trigger_set.head_update(key)).reshape(weight.shape))
        labels, _ = (each[0] for each in trigger_set.assigned_labels([key]))
        own, following = dict(made[row]), dict(made[(row + 1) % len(keys)])
        marks = {"with the mark removed": own, "with its mark": own, "with another's": following}
        shared = {name: [index for index in own if index in marked] for name, marked in marks.items()}
        for name, marked in marks.items():
            plain = predict([images[index] for index in shared[name]])
            predicted = (
                plain if marked is own and "removed" in name else predict([marked[i].image for i in shared[name]])
            )
            matching[name] += int((predicted == labels[shared[name]]).sum())
            changed[name] += int((predicted != plain).sum())
            counted[name] += len(predicted)
    columns = ("assigned triggers", "with the copy's labels", "with another label than plain")
    rows = (
        (name, f"{matching[name] / count:.2%} of {count:,}", f"{changed[name]}") for name, count in counted.items()
    )
    return Table("copies", "", columns, tuple(rows))


def main() -> None:
    """Runs the benchmark and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vault", type=Path, help="a vault with the trigger set of a base; it need not be unlocked")
    parser.add_argument("--base", type=Path, help="the base itself, to query its copies too")
    parser.add_argument("--recipients", type=int, default=20)
    parser.add_argument("--innocents", type=int, default=1000, help="number of other fingerprints to compare")
    parser.add_argument("--count", type=int, default=16, help="number of synthetic images, without a vault")
    parser.add_argument("--bits", type=int, default=304)
    add_results_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keys = keys_of(arguments.recipients)
    if arguments.vault is None:
        secret, trigger_set = bytes(32), None
        images = synthetic_cover_images(secret, arguments.count)
        assigned = assigned_triggers(keys, len(images), SHARE)
    else:
        known, trigger_set = find_base_with_triggers(Vault(arguments.vault), arguments.base and str(arguments.base))
        secret, images = known.secret, trigger_set.images(known.secret)[: trigger_set.count]
        assigned = trigger_set.assigned_labels(keys)[1]
    figures, made = measure(images, assigned, secret, keys, arguments.innocents, arguments.bits)
    tables = [figures.table(arguments.innocents + len(keys) - 1)]
    if trigger_set is not None and arguments.base is not None:
        tables.append(query_copies(arguments.base, trigger_set, images, made, keys))
    report(arguments, tables)


if __name__ == "__main__":
    main()
