"""Matches the suspect's tensors to the base's carriers of the same shapes: by name, else by similarity.

Nothing here sees a codeword, so a wrong match can lose evidence but can't create any.
"""

from collections.abc import Mapping

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.row_samples import load_sampled_rows
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.extraction.counterparts import Target, find_counterparts, whole_part
from hf_fingerprint.extraction.placed import full_bounds
from hf_fingerprint.vault import Base


SAMPLE_ROWS = 8
MIN_SIMILAR_COSINE = 0.2


def match_names(base: Base, suspect: TensorReader) -> dict[str, TensorInfo]:
    """The suspect's tensors by carrier, with the same normalized name and shape; needs only the headers."""
    return Namesakes(suspect.tensors, normalize_name).find_shaped(base.carrier_shapes)


def match_similar(base: Base, original: Checkpoint, suspect: TensorReader) -> dict[str, TensorInfo]:
    """Those of [`match_names`] that are similar to the base's tensors."""
    return similar_namesakes(original, suspect, match_names(base, suspect))


def match_unmarked_names(base: Base, original: TensorReader, suspect: TensorReader) -> dict[str, TensorInfo]:
    """The suspect's tensors that have the names and shapes of the base's unmarked tensors."""
    carriers = base.carrier_shapes
    ours = {n: info.shape for n, info in original.tensors.items() if n not in carriers and info.dtype in READABLE}
    return Namesakes(suspect.tensors, normalize_name).find_shaped(ours)


def has_unambiguous_names(base: Base, suspect: TensorReader) -> bool:
    """Whether names alone match the carriers: at least half of them have a namesake, and none has two."""
    matches = match_names(base, suspect)
    wanted = {normalize_name(name): info.shape for name, info in matches.items()}
    named = [(normalize_name(name), info) for name, info in suspect.tensors.items() if info.dtype in READABLE]
    namesakes = [name for name, info in named if wanted.get(name) == info.shape]
    return len(matches) >= len(base.carriers) / 2 and len(namesakes) == len(set(namesakes))


def match_tensors(base: Base, original: Checkpoint, suspect: TensorReader) -> dict[str, TensorInfo]:
    """Finds the counterparts of the carriers that have their shapes.

    A carrier is matched to its namesake if that has its shape and is similar to it. The others are matched one to one
    within each shape, to the tensors most similar in a sample. Those left get their namesakes, if free.

    Args:
        base, original, suspect: see [`extract`].

    Returns:
        `dict[str, TensorInfo]`: by the carriers' names.
    """
    by_name = match_names(base, suspect)
    matches = similar_namesakes(original, suspect, by_name)
    taken = {info.name for info in matches.values()}
    free = [i for i in suspect.tensors.values() if i.dtype in READABLE and i.name not in taken]
    shapes = base.carrier_shapes
    targets = [Target(name, shape, full_bounds(shape)) for name, shape in shapes.items() if name not in matches]
    found, _ = find_counterparts(original, targets, suspect, map(whole_part, free), plain=True)
    matches |= {each.target.name: each.part.info for each in found}
    taken |= {each.part.info.name for each in found}
    return matches | {n: info for n, info in by_name.items() if n not in matches and info.name not in taken}


def similar_namesakes(
    original: Checkpoint, suspect: TensorReader, by_name: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Those namesakes of carriers that are similar to the base's tensors in a sample of rows."""
    return {name: info for name, info in by_name.items() if _is_similar(original, suspect, name, info)}


def _is_similar(original: Checkpoint, suspect: TensorReader, name: str, info: TensorInfo) -> bool:
    ours = load_sampled_rows(original, original.tensors[name], SAMPLE_ROWS)
    return _cosine(ours, load_sampled_rows(suspect, info, SAMPLE_ROWS)) >= MIN_SIMILAR_COSINE


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)  # squares of float32 may overflow
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
