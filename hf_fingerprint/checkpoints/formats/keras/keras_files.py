"""Read Keras's files: `.keras`, `.weights.h5` and `.h5`, and other HDF5 files of arrays."""

from pathlib import Path

import numpy as np

from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.keras.hdf5_datasets import Hdf5Datasets
from hf_fingerprint.checkpoints.formats.keras.hdf5_objects import HDF5_MAGIC, Hdf5File
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC, ZipMembers, names_if_zip
from hf_fingerprint.checkpoints.limits import parse_json


_WEIGHTS = ".weights.h5"  # a large model has several
_METADATA, _LARGEST_METADATA = "metadata.json", 1 << 16
_VERSION = "keras_version"


def load_keras(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of a file, under the names of its layers, such as `layers/dense/vars/0`.

    Args:
        path (`Path`): an HDF5 file, or a zip that holds one.
        left_out (`dict[str, str]`): receives the unreadable data sets, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged or holds no HDF5 file.
        [`OSError`]: if it can't be opened.
    """
    data = map_file(path)
    if data[:4].tobytes() != ZIP_MAGIC:
        tensors, version, _ = _read_hdf5(data, left_out)
    else:
        with path.open("rb", buffering=0) as stream:
            members = ZipMembers(stream, data)
        tensors, version = [], _read_version(members)
        names = [name for name in members if name.endswith(_WEIGHTS)]
        if not names:
            raise InvalidFileError("a zip without Keras weights")
        steps = None
        for name in names:
            content = members.read(name)
            assert content is not None
            found, _, steps = _read_hdf5(content, left_out, steps)
            tensors += found
    return FoundTensors(tensors, f"Keras {version}" if version else "")


def _read_hdf5(
    data: np.ndarray, left_out: dict[str, str], steps: int | None = None
) -> tuple[list[tuple[str, LazyTensor]], str, int]:
    """The tensors, the version of Keras that wrote them if it is said, and the steps that are left of `steps`."""
    file = Hdf5File(data, steps)
    datasets, tensors, version = Hdf5Datasets(file), [], ""
    for name, messages in file.objects(left_out):
        version = version or file.find_text(messages, _VERSION)
        try:
            tensor = datasets.find_tensor(messages)
        except InvalidFileError as error:
            left_out[name] = str(error)
            continue
        if tensor is not None:
            tensors.append((name, tensor))
    return tensors, version, file.steps_left


def _read_version(members: ZipMembers) -> str:
    raw = members.read(_METADATA)
    try:
        metadata = parse_json(b"" if raw is None or len(raw) > _LARGEST_METADATA else raw.tobytes())
    except ValueError:
        return ""
    version = metadata.get(_VERSION) if isinstance(metadata, dict) else None
    return version if isinstance(version, str) else ""


def _matches(head: bytes, path: Path) -> bool:
    if head.startswith(HDF5_MAGIC):
        return True
    names = names_if_zip(head, path)
    return _METADATA in names and any("/" not in name and name.endswith(_WEIGHTS) for name in names)


FORMAT = Format("Keras", (".keras", ".h5", ".hdf5"), _matches, load_keras)
