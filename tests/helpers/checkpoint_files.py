"""Checkpoints made by hand, well-formed or not, and the one way to ask for a refusal."""

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
    """What a safetensors header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file as told, right or wrong: length of the header (its own unless given), header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def save_model(path: Path, **arrays: np.ndarray) -> Path:
    """A well-formed safetensors file of these arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    return path


def save_shards(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]], **weight_map: str) -> Path:
    """A sharded model: the files, and an index of them unless `weight_map` says otherwise."""
    for shard, arrays in shards.items():
        save_model(folder / shard, **arrays)
    weight_map = weight_map or {name: shard for shard, arrays in shards.items() for name in arrays}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files under a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_of(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """The names of what was left out, without the reasons."""
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
