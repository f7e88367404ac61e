"""What the parts of the GPU benchmark measure, and how a part hands its figures to it."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from examples._common.results import Figure
from hf_fingerprint.blackbox.trigger_set.build import N_SYNTHETIC, STEPS


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        models (tuple): title, timm architecture and batch of each model whose steps are measured;
            the batch is halved until it fits in memory.
        sharded (tuple): the same of the model of DDP and FSDP2; the batch is that of each process.
        precision (`str`): that of the steps.
        pairs (`int`): the most pairs of turns.
        steps (`int`): training steps in a turn, after which the device is waited for.
        issued (tuple): title and architecture of the model that is issued and traced, at most `turns` times.
        turns (`int`): pairs of turns of whole jobs.
        recipients, sample, length (`int`): recipients to decode among, how many of them are compared by turns, and V.
        fitted (tuple): title and architecture of the model whose triggers are fitted.
        triggers, decoys, fitting_steps (`int`): see `make_trigger_set`.
        ordinary (`int`): ordinary images that the trigger images avoid.
    """

    models: tuple[tuple[str, str, int], ...]
    sharded: tuple[str, str, int]
    precision: str
    pairs: int
    steps: int
    issued: tuple[str, str]
    turns: int
    recipients: int
    sample: int
    length: int
    fitted: tuple[str, str]
    triggers: int
    decoys: int
    fitting_steps: int
    ordinary: int


FULL = Sizes(
    models=(
        ("ResNet-50", "resnet50", 256),
        ("ViT-B/16", "vit_base_patch16_224", 128),
        ("ViT-L/16", "vit_large_patch16_224", 64),
    ),
    sharded=("ViT-B/16", "vit_base_patch16_224", 128),
    precision="bf16",
    pairs=20,
    steps=4,
    issued=("ViT-L/16", "vit_large_patch16_224"),
    turns=2,
    recipients=1_000_000,
    sample=16_384,
    length=65_536,
    fitted=("ViT-B/16", "vit_base_patch16_224"),
    triggers=40,
    decoys=20,
    fitting_steps=STEPS,
    ordinary=N_SYNTHETIC,
)
SMALL = Sizes(
    models=(("a tiny ResNet", "test_resnet", 2), ("a tiny ViT", "test_vit", 2)),
    sharded=("a tiny ViT", "test_vit", 2),
    precision="full precision",
    pairs=3,
    steps=1,
    issued=("a tiny ViT", "test_vit"),
    turns=1,
    recipients=2_000,
    sample=512,
    length=1024,
    fitted=("a tiny ViT", "test_vit"),
    triggers=2,
    decoys=1,
    fitting_steps=4,
    ordinary=64,
)


@dataclass(frozen=True)
class Job:
    """One part's work.

    Attributes:
        sizes ([`Sizes`]): what to measure.
        device (`str`): `"cuda"` or `"cpu"`.
        work (`Path`): an empty folder.
        stop_at (`float`): when to end, by the clock of `time.monotonic`.
    """

    sizes: Sizes
    device: str
    work: Path
    stop_at: float

    @property
    def seconds_left(self) -> float:
        """Seconds that are left."""
        return max(self.stop_at - time.monotonic(), 0.0)


Part = Callable[[Job], Iterator[Figure]]


def main(parts: Mapping[str, Part]) -> None:
    """Runs the part that the command line names, and writes its figures to a file, one after another."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    options = parser.parse_args()
    stop_at = time.monotonic() + options.seconds
    job = Job(SMALL if options.small else FULL, options.device, options.work, stop_at)
    for figure in parts[options.part](job):
        if options.small:  # bounds are for models that take a device's time
            figure = replace(figure, bound="reported", holds=True)
        with options.figures.open("a") as stream:
            stream.write(json.dumps(asdict(figure)) + "\n")


def read_figures(file: Path) -> list[Figure]:
    """Returns the figures that a part wrote so far; a last line that was cut short is left out."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [Figure(**json.loads(line)) for line in lines if line.endswith("\n")]
