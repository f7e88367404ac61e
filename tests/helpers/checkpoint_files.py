"""Hand-made checkpoints, valid and invalid, and a check for refusals."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file

from hf_fingerprint.errors import CheckpointError
from tests.helpers import error_checks


refused = partial(error_checks.refused, error=CheckpointError)
NO_DEADLINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """Returns the entry of one tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Returns a safetensors file, valid or not: the length of the header (its own by default), header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def save_model(path: Path, **arrays: np.ndarray) -> Path:
    """Writes a valid safetensors file of these arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    return path


def save_shards(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]], **weight_map: str) -> Path:
    """Writes a sharded model: the files, and an index of them or of `weight_map`."""
    for shard, arrays in shards.items():
        save_model(folder / shard, **arrays)
    weight_map = weight_map or {name: shard for shard, arrays in shards.items() for name in arrays}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Returns all files under a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_of(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """Returns the names of skipped files, without the reasons."""
    return [name for name, _ in left_out]


@contextmanager
def stranger() -> Iterator[None]:
    """For a while, a user for whom file modes mean something, even when the tests are run by root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that a stranger can reach, as pytest's own can't be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
