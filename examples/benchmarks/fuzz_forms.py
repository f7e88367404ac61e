"""The readers of weight formats to fuzz: each reads the mutated forms of the two tiny copies in tests/forms."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples.benchmarks import fuzz_inputs as mutations
from hf_fingerprint.checkpoints import digest_tensors, find_weight_sets, open_checkpoint
from hf_fingerprint.checkpoints.formats.recognition import PYTORCH, SAFETENSORS, inspect_file
from hf_fingerprint.checkpoints.formats.registry import FORMATS


MADE = [Path(__file__).parents[2] / "tests" / "forms" / kind / "made" for kind in ("conv", "vit")]
NAMES = (SAFETENSORS, PYTORCH, *(form.name for form in FORMATS))
READERS = {f"form_{name.lower().replace(' ', '_')}": name for name in NAMES}
_DIGITS = 3


def forms_of(name: str) -> list[tuple[Path, Path]]:
    """The forms of a format: each with the folder that it is in."""
    return [
        (made, path)
        for made in MADE
        for path in sorted(made.rglob("*"))
        if path.is_file() and inspect_file(path) == name
    ]


def form_target(reader: str, folder: Path) -> tuple[list[bytes], mutations.Mutate, Callable[[bytes], object]]:
    """Samples of one reader's forms, a mutation, and the function that reads an input.

    An input begins with the number of the form that it was made from, whose place and further files it is read with.
    """
    forms = forms_of(READERS[reader])
    places: dict[int, Path] = {}
    copies: dict[Path, Path] = defaultdict(Path)
    for number, (made, path) in enumerate(forms):
        if made not in copies:
            copies[made] = Path(shutil.copytree(made, folder / made.parent.name))
        places[number] = copies[made] / path.relative_to(made)
    samples = [f"{number:0{_DIGITS}d}".encode() + path.read_bytes() for number, (_, path) in enumerate(forms)]

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        return content[:_DIGITS] + mutations.of_bytes(content[_DIGITS:], rng)

    def read(content: bytes) -> object:
        number = int(content[:_DIGITS])
        place = places[number]
        place.write_bytes(content[_DIGITS:])
        try:
            found = find_weight_sets(place)
            digests = []
            for source in found.sets:
                with open_checkpoint(source, suspect=True) as opened:
                    digests.append(digest_tensors(opened))
            return digests
        finally:
            place.write_bytes(samples[number][_DIGITS:])

    return samples, mutate, read
