"""Which tensor of the suspect is which carrier of the base: by name, else by shape and similarity.

Nothing here sees a codeword, so a wrong match costs evidence and can't make any.
"""

from collections import Counter, defaultdict

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, Weights
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.names import normalise
from hf_fingerprint.vault import Base


SAMPLE_ROWS = 8
SIMILAR = 0.2


def match_names(base: Base, suspect: Weights) -> dict[str, TensorInfo]:
    """Carriers to suspect tensors of the same normalised name and the same shape; from the headers alone."""
    by_name = {normalise(name): info for name, info in suspect.tensors.items() if info.dtype in READABLE}
    matches = {}
    for carrier in base.carriers:
        info = by_name.get(normalise(carrier.name))
        if info is not None and info.shape == base.tensors[carrier.name].shape:
            matches[carrier.name] = info
    return matches


def names_tell(base: Base, suspect: Weights) -> bool:
    """Whether names alone say which tensors the carriers are: half of them have a namesake, and none has two."""
    matches = match_names(base, suspect)
    wanted = {normalise(name): info.shape for name, info in matches.items()}
    namesakes = [
        normalise(name)
        for name, info in suspect.tensors.items()
        if info.dtype in READABLE and wanted.get(normalise(name)) == info.shape
    ]
    return len(matches) >= len(base.carriers) / 2 and len(namesakes) == len(set(namesakes))


def match_shapes(base: Base, suspect: Weights) -> list[str]:
    """The carriers that could have a counterpart in the suspect by shape alone, each of its tensors counted once."""
    left = Counter(info.shape for info in suspect.tensors.values() if info.dtype in READABLE)
    found = []
    for carrier in base.carriers:
        shape = base.tensors[carrier.name].shape
        if left[shape]:
            left[shape] -= 1
            found.append(carrier.name)
    return found


def match_tensors(base: Base, original: Checkpoint, suspect: Weights) -> dict[str, TensorInfo]:
    """The counterparts of the carriers in the suspect.

    A carrier whose namesake has its shape and looks like it is matched to it. The others are matched within each shape
    to what is most similar on a sample of rows, one to one, and failing that to their namesake, or to nothing.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        suspect ([`Weights`]): the open suspect.

    Returns:
        `dict[str, TensorInfo]`: by the carriers' names.
    """
    by_name = match_names(base, suspect)
    samples = {carrier.name: _sample(original, original.tensors[carrier.name]) for carrier in base.carriers}
    matches = {name: i for name, i in by_name.items() if _cosine(samples[name], _sample(suspect, i)) >= SIMILAR}
    taken = {info.name for info in matches.values()}
    open_carriers: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for carrier in base.carriers:
        if carrier.name not in matches:
            open_carriers[base.tensors[carrier.name].shape].append(carrier.name)
    for shape, names in open_carriers.items():
        free = [
            i for i in suspect.tensors.values() if i.shape == shape and i.dtype in READABLE and i.name not in taken
        ]
        if free:
            drawn = [_sample(suspect, info) for info in free]
            likeness = np.array([[_cosine(samples[name], sample) for sample in drawn] for name in names])
            for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
                if likeness[row, column] >= SIMILAR:
                    matches[names[row]] = free[column]
                    taken.add(free[column].name)
    for name, info in by_name.items():
        if name not in matches and info.name not in taken:
            matches[name] = info
    return matches


def sample_rows(rows: int, count: int) -> list[int]:
    """Up to `count` rows, evenly spread."""
    return sorted({int(row) for row in np.linspace(0, rows - 1, min(rows, count))})


def _sample(checkpoint: Weights, info: TensorInfo) -> np.ndarray:
    rows = [
        to_float32(checkpoint.read(info, row * info.row_bytes, (row + 1) * info.row_bytes), info.dtype)
        for row in sample_rows(info.rows, SAMPLE_ROWS)
    ]
    return np.nan_to_num(np.concatenate(rows), posinf=0, neginf=0)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)  # squares of float32 may overflow
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
