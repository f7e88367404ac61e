"""Read folders of `torch.distributed.checkpoint`, as FSDP and Accelerate save them, without the readers of PyTorch.

`.metadata` is a pickle that lists the chunks of each tensor, and where they lie in `__0_0.distcp` and its siblings. A
chunk is a PyTorch file of one tensor. A `.distcp` file alone gives its chunks without names.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, OpaqueKey
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED, map_file, slice_bytes
from hf_fingerprint.checkpoints.formats.pytorch.inert_pickles import read_pickle
from hf_fingerprint.checkpoints.formats.pytorch.nesting import WRAPPERS, all_tensors, unique_name
from hf_fingerprint.checkpoints.formats.pytorch.sharded_tensors import Chunk, join_chunks
from hf_fingerprint.checkpoints.formats.pytorch.torch_calls import build_call
from hf_fingerprint.checkpoints.formats.pytorch.torch_files import load_torch_zip
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC, list_starts
from hf_fingerprint.checkpoints.limits import MAX_FILE, MAX_SHARDS
from hf_fingerprint.printable import printable


_MODULE = "torch.distributed.checkpoint.metadata"
_METADATA, _PART = ".metadata", ".distcp"
_MOST_CHUNKS = 10_000  # of all tensors; opening one takes 0.2 ms
_LARGEST_PART = 1_024  # bytes of a chunk's pickle, which has about 250, and of its zip's directory
_END, _END_BYTES, _ENDS_64 = b"PK\x05\x06", 22, (0, 76)  # of a zip's directory; bytes of its 64-bit forms before that
_TOO_MANY = f"beyond the limit of {_MOST_CHUNKS:,} chunks"


class _Place(NamedTuple):
    """Where a chunk lies."""

    file: str
    offset: int
    length: int
    transforms: bool


def _is_distributed(head: bytes, path: Path) -> bool:
    if head[:1] == b"\x80":
        return _MODULE.encode() in head[:100]
    if not head.startswith(ZIP_MAGIC) or head[30:46] != b"archive/data.pkl":
        return False
    try:
        return min(list_starts(path), default=0) > 0  # zips one after another
    except (InvalidFileError, OSError):
        return path.name.lower().endswith(_PART)


def _companions(name: str, names: Collection[str]) -> Iterable[str]:
    folder = PurePosixPath(name).parent
    if not name.endswith(_METADATA):
        return ()
    return [each for each in names if each.endswith(_PART) and PurePosixPath(each).parent == folder]


def load_distributed(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The tensors of a distributed checkpoint, each joined from its chunks as it is read.

    Args:
        path (`Path`): the `.metadata`, next to the other files; or a `.distcp` file alone.
        left_out (`dict[str, str]`): receives the names of unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged.
        [`OSError`]: if it can't be opened.
    """
    data = map_file(path)
    if data[:4].tobytes() == ZIP_MAGIC:
        return FoundTensors(list(_parts(data, left_out)), _PRODUCER)
    if len(data) > MAX_FILE:
        raise InvalidFileError("a list of chunks that is too large")
    content, _ = read_pickle(data.tobytes(), 0, build_call, _no_storage)
    described = _state(content, "Metadata")
    tensors, stored = described.get("state_dict_metadata"), described.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(stored, dict):
        raise InvalidFileError("a list of chunks without their places")
    places = _list_places(stored)
    files: dict[str, np.ndarray | str] = {}
    found: list[tuple[str, LazyTensor]] = []
    taken: dict[str, int] = {}
    budget = _MOST_CHUNKS
    for name, entry in sorted(tensors.items(), key=_model_first):
        if not isinstance(name, str) or not isinstance(entry, CallRecord):
            continue
        layout = _layout(entry)
        budget -= 1 if layout is None else len(layout[1])
        try:
            if budget < 0:
                raise InvalidFileError(_TOO_MANY)
            if layout is not None:
                own = [("", _join(path, *layout, places.get(name, {}), files))]
            else:
                own = list(_object_tensors(path, places.get(name, {}), files, left_out))
        except InvalidFileError as error:
            left_out[printable(name)] = str(error)
            continue
        name = _own_name(name, described.get("planner_data"))
        found += [(unique_name(f"{name}{end}", taken), tensor) for end, tensor in own]
    if not found and not left_out:
        raise InvalidFileError("no weights")
    companions = tuple(path.parent / name for name, opened in files.items() if not isinstance(opened, str))
    return FoundTensors(found, _PRODUCER, companions)


_PRODUCER = "torch.distributed.checkpoint"
FORMAT = Format("PyTorch distributed checkpoint", (_METADATA, _PART), _is_distributed, load_distributed, _companions)


def _no_storage(found: Any) -> Any:
    raise InvalidFileError(TRUNCATED)


def _model_first(item: tuple[Any, Any]) -> bool:
    """Sorts the states of optimizers to the end."""
    return isinstance(item[0], str) and re.match(r"(\w+\.)?optim", item[0]) is not None


def _state(found: Any, kind: str) -> dict[Any, Any]:
    """The attributes of an object of this class, or an empty dictionary."""
    is_kind = isinstance(found, CallRecord) and isinstance(found.kind, GlobalRef) and found.kind.name == kind
    return found.state if is_kind and isinstance(found.state, dict) else {}


def _own_name(name: str, paths: Any) -> str:
    """The name without the key of the state dict that a training script put it in.

    Args:
        name (`str`): the flat name, such as `"model.fc.weight"`.
        paths (anything): the planner's data: by flat name the keys that lead to the tensor, `("model", "fc.weight")`.
    """
    keys = paths.get(name) if isinstance(paths, dict) else None
    if isinstance(keys, tuple) and len(keys) > 1 and keys[0] in WRAPPERS:
        return name.removeprefix(f"{keys[0]}.")
    return name


def _list_places(stored: dict[Any, Any]) -> dict[str, dict[str, _Place]]:
    """By a tensor's name and the offsets of a chunk as text, where the chunk lies."""
    places: dict[str, dict[str, _Place]] = {}
    for key, value in stored.items():
        index = _state(key.value if isinstance(key, OpaqueKey) else None, "MetadataIndex")
        info = _state(value, "_StorageInfo")
        name, offsets = index.get("fqn"), as_sizes(index.get("offset") or ())
        file, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(name, str) or not isinstance(file, str) or offsets is None:
            continue
        if isinstance(offset, int) and isinstance(length, int):
            place = _Place(file, offset, length, bool(info.get("transform_descriptors")))
            places.setdefault(name, {})[str(offsets)] = place
    return places


def _layout(entry: CallRecord) -> tuple[tuple[int, ...], list[tuple[Any, Any]]] | None:
    """A tensor's shape, and the offsets and sizes of its chunks; `None` if it is not a tensor."""
    described = _state(entry, "TensorStorageMetadata")
    shape, chunks = as_sizes(described.get("size")), described.get("chunks")
    if shape is None or not isinstance(chunks, list):
        return None
    states = [_state(each, "ChunkStorageMetadata") for each in chunks]
    return shape, [(as_sizes(each.get("offsets")), as_sizes(each.get("sizes"))) for each in states]


def _join(
    path: Path,
    shape: tuple[int, ...],
    boxes: list[tuple[Any, Any]],
    places: dict[str, _Place],
    files: dict[str, np.ndarray | str],
) -> LazyTensor:
    """The tensor that the chunks at these offsets, of these sizes, make up."""
    chunks: list[Chunk] = []
    for offsets, sizes in boxes:
        place = places.get(str(offsets))
        if offsets is None or sizes is None or place is None:
            raise InvalidFileError("a chunk without a place")
        tensor = _read_item(path, place, files)
        if not isinstance(tensor, LazyTensor) or tensor.shape != sizes:
            raise InvalidFileError("a chunk of another shape")
        if tensor.nbytes > place.length:
            raise InvalidFileError("larger than its file")
        if (reason := tensor.unreadable_reason()) is not None:
            raise InvalidFileError(reason)
        chunks.append(Chunk(offsets, tensor))
    return join_chunks(chunks, shape)


def _object_tensors(
    path: Path, places: dict[str, _Place], files: dict[str, np.ndarray | str], left_out: dict[str, str]
) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the tensors in an object that is no tensor, each with the end of its name."""
    place = places.get("()")
    if place is not None:
        content = _read_item(path, place, files)
        yield from ((f".{name}", tensor) for name, tensor in all_tensors(content, left_out))


def _read_item(path: Path, place: _Place, files: dict[str, np.ndarray | str]) -> Any:
    """What lies at a place. `files` keeps the open files, or why they can't be opened."""
    if place.transforms:
        raise InvalidFileError("compressed chunks")
    if place.file not in files:
        files[place.file] = _open(path, place.file) if len(files) < MAX_SHARDS else "in too many files"
    opened = files[place.file]
    if isinstance(opened, str):
        raise InvalidFileError(opened)
    return load_torch_zip(slice_bytes(opened, place.offset, place.length), _LARGEST_PART, _LARGEST_PART).content


def _open(path: Path, file: str) -> np.ndarray | str:
    try:
        return map_file(find_companion(path, PurePosixPath(file)))
    except InvalidFileError as error:
        return str(error)
    except OSError as error:
        return f"in {printable(file)[:100]}, which can't be read ({error.strerror or error})"


def _parts(data: np.ndarray, left_out: dict[str, str]) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the tensors of a `.distcp` file, numbered."""
    for number, raw in enumerate(_split_zips(data)):
        if number >= _MOST_CHUNKS:
            left_out["..."] = _TOO_MANY
            return
        name = f"chunk_{number}"
        try:
            content = load_torch_zip(raw, _LARGEST_PART, _LARGEST_PART).content
            yield from ((f"{name}.{own}", tensor) for own, tensor in all_tensors(content, left_out))
        except InvalidFileError as error:
            left_out[name] = str(error)


def _split_zips(data: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the zips that follow one another in a file."""
    view, start, at = memoryview(data), 0, 0
    for found in re.finditer(re.escape(_END), view):
        at = found.start()
        size, offset = (int.from_bytes(view[at + 12 + k : at + 16 + k], "little") for k in (0, 4))
        if any(start + offset + size + extra == at for extra in _ENDS_64):
            stop = at + _END_BYTES + int.from_bytes(view[at + 20 : at + 22], "little")
            yield data[start:stop]
            start = stop
