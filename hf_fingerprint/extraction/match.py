"""Matches the suspect's tensors to the base's carriers: by name, else by shape and similarity.

Nothing here sees a codeword, so a wrong match can lose evidence but can't create any.
"""

from collections import Counter, defaultdict
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.vault import Base


SAMPLE_ROWS = 8
MIN_SIMILAR_COSINE = 0.2
_CHUNK_WEIGHTS = 1 << 22  # the suspect's weights that are compared at a time


def match_names(base: Base, suspect: TensorReader) -> dict[str, TensorInfo]:
    """The suspect's tensors by carrier, with the same normalized name and shape; needs only the headers."""
    by_name = {normalize_name(name): info for name, info in suspect.tensors.items() if info.dtype in READABLE}
    found = {carrier.name: by_name.get(normalize_name(carrier.name)) for carrier in base.carriers}
    return {name: info for name, info in found.items() if info is not None and info.shape == base.tensors[name].shape}


def has_unambiguous_names(base: Base, suspect: TensorReader) -> bool:
    """Whether names alone match the carriers: at least half of them have a namesake, and none has two."""
    matches = match_names(base, suspect)
    wanted = {normalize_name(name): info.shape for name, info in matches.items()}
    named = [(normalize_name(name), info) for name, info in suspect.tensors.items() if info.dtype in READABLE]
    namesakes = [name for name, info in named if wanted.get(name) == info.shape]
    return len(matches) >= len(base.carriers) / 2 and len(namesakes) == len(set(namesakes))


def carriers_with_matching_shape(base: Base, suspect: TensorReader) -> list[str]:
    """The carriers that can be paired with distinct tensors of the suspect by shape alone."""
    left = Counter(info.shape for info in suspect.tensors.values() if info.dtype in READABLE)
    found = []
    for carrier in base.carriers:
        shape = base.tensors[carrier.name].shape
        if left[shape]:
            left[shape] -= 1
            found.append(carrier.name)
    return found


def match_tensors(base: Base, original: Checkpoint, suspect: TensorReader) -> dict[str, TensorInfo]:
    """Finds the counterparts of the carriers in the suspect.

    A carrier is matched to its namesake if that has its shape and is similar to it. The others are matched one to one
    within each shape, to the tensors most similar in a sample of rows. Those left get their namesakes, if free.

    Args:
        base, original, suspect: see [`extract`].

    Returns:
        `dict[str, TensorInfo]`: by the carriers' names.
    """
    by_name = match_names(base, suspect)
    samples = {carrier.name: _sample_weights(original, original.tensors[carrier.name]) for carrier in base.carriers}
    cosines = {name: _cosine(samples[name], _sample_weights(suspect, info)) for name, info in by_name.items()}
    matches = {name: info for name, info in by_name.items() if cosines[name] >= MIN_SIMILAR_COSINE}
    taken = {info.name for info in matches.values()}
    unmatched: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for carrier in base.carriers:
        if carrier.name not in matches:
            unmatched[base.tensors[carrier.name].shape].append(carrier.name)
    by_shape: dict[tuple[int, ...], list[TensorInfo]] = defaultdict(list)
    for info in suspect.tensors.values():
        if info.shape in unmatched and info.dtype in READABLE:
            by_shape[info.shape].append(info)
    for shape, names in unmatched.items():
        free = [info for info in by_shape[shape] if info.name not in taken]
        if free:
            similarity = _similarity_matrix([samples[name] for name in names], suspect, free)
            columns = _best_columns(similarity)
            for row, column in zip(*linear_sum_assignment(-similarity[:, columns]), strict=True):
                if similarity[row, columns[column]] >= MIN_SIMILAR_COSINE:
                    matches[names[row]] = free[columns[column]]
                    taken.add(free[columns[column]].name)
    for name, info in by_name.items():
        if name not in matches and info.name not in taken:
            matches[name] = info
    return matches


def sample_row_indices(rows: int, count: int) -> list[int]:
    """Indices of up to `count` rows, evenly spread."""
    return sorted({int(row) for row in np.linspace(0, rows - 1, min(rows, count))})


def _similarity_matrix(ours: list[np.ndarray], suspect: TensorReader, infos: list[TensorInfo]) -> np.ndarray:
    """The cosines of some carriers' samples with those of tensors of the same shape, `(carriers, tensors)`, `float32`.

    Cosines below `MIN_SIMILAR_COSINE` become 0. Reads in chunks: a suspect may have 100,000 tensors of one shape.
    """
    units = np.stack([_unit_vector(sample) for sample in ours])
    found = np.empty((len(ours), len(infos)), np.float32)
    chunk = max(1, _CHUNK_WEIGHTS // max(1, units.shape[1]))
    for start in range(0, len(infos), chunk):
        theirs = np.stack([_unit_vector(_sample_weights(suspect, info)) for info in infos[start : start + chunk]])
        found[:, start : start + len(theirs)] = units @ theirs.T
    found[found < MIN_SIMILAR_COSINE] = 0
    return found


def _best_columns(similarity: np.ndarray) -> np.ndarray:
    """The columns that an optimal assignment can need: for R rows, the R best of each, since the others take R - 1."""
    rows, columns = similarity.shape
    if columns <= rows:
        return np.arange(columns)
    return np.unique(np.argpartition(-similarity, rows - 1)[:, :rows])


def _unit_vector(sample: np.ndarray) -> np.ndarray:
    """A sample scaled to norm 1, `float64`; zeros stay 0."""
    wide = sample.astype(np.float64)  # squares of float32 may overflow
    length = np.linalg.norm(wide)
    return wide / length if length > 0 else wide


def _sample_weights(checkpoint: TensorReader, info: TensorInfo) -> np.ndarray:
    size = info.row_bytes
    rows = [] if info.rows <= SAMPLE_ROWS else _sampled_rows(info.rows)
    raw = [checkpoint.read(info, row * size, (row + 1) * size) for row in rows] or [checkpoint.read(info)]
    return np.nan_to_num(np.concatenate([to_float32(each, info.dtype) for each in raw]), posinf=0, neginf=0)


@lru_cache
def _sampled_rows(rows: int) -> list[int]:
    return sample_row_indices(rows, SAMPLE_ROWS)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)  # squares of float32 may overflow
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
