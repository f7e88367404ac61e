"""Read checkpoints of DeepSpeed's ZeRO stage 3, whose `float32` weights are partitioned over the files of all ranks.

Each rank's `zero_pp_rank_0_mp_rank_00_optim_states.pt` holds its part of all weights in one flat vector, and the
`model_states.pt` next to it their names and shapes. Stages 1 and 2 store the whole model in a PyTorch file.
"""

import re
from collections.abc import Collection, Iterable
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from hf_fingerprint.checkpoints.formats.companion_files import find_companion
from hf_fingerprint.checkpoints.formats.containers import Format, FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.pytorch.sharded_tensors import FlatPiece, join_pieces
from hf_fingerprint.checkpoints.formats.pytorch.torch_files import load_torch_file, load_torch_zip
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, as_sizes, is_size
from hf_fingerprint.checkpoints.formats.zip_members import ZIP_MAGIC
from hf_fingerprint.printable import printable


_MAIN = re.compile(r"zero_pp_rank_0_mp_rank_(\d{2,4})_model_states\.pt")
_PREFIXES = ("", "bf16_", "fp16_")
_MOST_RANKS, _MOST_PIECES = 128, 200_000  # a piece is the part of a weight in a rank's file
_PICKLES, _LARGEST_DIRECTORY = 8_000_000, 1 << 16  # bytes of the pickles of all ranks, and of the directory of a zip


def _is_deepspeed(head: bytes, path: Path) -> bool:
    return head.startswith(ZIP_MAGIC) and _MAIN.fullmatch(path.name) is not None


def _companions(name: str, names: Collection[str]) -> Iterable[str]:
    found = _MAIN.fullmatch(PurePosixPath(name).name)
    if found is None:
        return ()
    part = re.compile(rf"({'|'.join(_PREFIXES)})zero_pp_rank_\d+_mp_rank_{found[1]}_(model|optim)_states\.pt")
    folder = PurePosixPath(name).parent
    near = [each for each in map(PurePosixPath, names) if each.parent == folder and part.fullmatch(each.name)]
    return [str(each) for each in near if str(each) != name]


def load_deepspeed(path: Path, left_out: dict[str, str]) -> FoundTensors:
    """The weights of a ZeRO-3 checkpoint, each joined from its partitions as it is read.

    Args:
        path (`Path`): rank 0's `model_states.pt`, next to the files of all ranks.
        left_out (`dict[str, str]`): receives the names of unreadable tensors, each with a short reason.

    Raises:
        [`InvalidFileError`]: if it is damaged, or a rank's file is missing.
        [`OSError`]: if it can't be opened.
    """
    found = _MAIN.fullmatch(path.name)
    model = load_torch_file(path).content
    if found is None or not isinstance(model, dict):
        raise InvalidFileError("not a checkpoint of DeepSpeed")
    files: list[Path] = []
    first = _open(path, 0, found[1], "optim", files, _PICKLES // 2)
    count = _optimizer(first).get("partition_count")
    ranks = max(count, default=0) if isinstance(count, list) and all(map(is_size, count)) else count
    if not isinstance(ranks, int) or not 0 < ranks <= _MOST_RANKS:
        raise InvalidFileError(f"partitions of no rank, or of more than {_MOST_RANKS}")
    largest = _PICKLES // 4 // ranks
    rest = [_open(path, rank, found[1], "optim", files, largest) for rank in range(1, ranks)]
    tensors = [(name, each) for name, each in _tensors(model.get("module")) if each.numel()]  # buffers
    groups = [_flat_groups(each) for each in (first, *rest)]
    _add_partitioned(_shapes(model.get("param_shapes")), groups, tensors, left_out)
    if frozen := _shapes([model.get("frozen_param_shapes")]):
        others = [_open(path, rank, found[1], "model", files, largest) for rank in range(1, ranks)]
        fragments = [dict(_tensors(each.get("frozen_param_fragments"))) for each in (model, *others)]
        for name, shape in frozen:
            groups = [[each[name]] if name in each else [] for each in fragments]
            _add_partitioned([(name, shape)], groups, tensors, left_out)
    version = model.get("ds_version")
    producer = f"DeepSpeed {version}" if isinstance(version, str) else "DeepSpeed"
    return FoundTensors(tensors, printable(producer[:80]), tuple(files))


FORMAT = Format("DeepSpeed ZeRO-3", ("_mp_rank_00_model_states.pt",), _is_deepspeed, load_deepspeed, _companions)


def _open(path: Path, rank: int, slice_of: str, kind: str, files: list[Path], largest: int) -> dict[Any, Any]:
    """What a rank's file holds. Appends the file to `files`."""
    names = [PurePosixPath(f"{each}zero_pp_rank_{rank}_mp_rank_{slice_of}_{kind}_states.pt") for each in _PREFIXES]
    there = next((name for name in names if (path.parent / name).exists()), names[0])
    file = find_companion(path, there)
    content = load_torch_zip(map_file(file), _LARGEST_DIRECTORY, largest).content
    files.append(file)
    return content if isinstance(content, dict) else {}


def _optimizer(content: dict[Any, Any]) -> dict[Any, Any]:
    found = content.get("optimizer_state_dict")
    return found if isinstance(found, dict) else {}


def _flat_groups(content: dict[Any, Any]) -> list[LazyTensor]:
    """The flat vectors of a rank, which follow one another."""
    found = _optimizer(content).get("fp32_flat_groups")
    found = found if isinstance(found, list) else [found]
    return [each for each in found if isinstance(each, LazyTensor) and len(each.shape) == 1]


def _tensors(found: Any) -> list[tuple[str, LazyTensor]]:
    items = found.items() if isinstance(found, dict) else ()
    return [(name, each) for name, each in items if isinstance(name, str) and isinstance(each, LazyTensor)]


def _shapes(groups: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes from a list of dictionaries, in their order."""
    found = []
    for group in groups if isinstance(groups, list) else ():
        for name, size in group.items() if isinstance(group, dict) else ():
            shape = as_sizes(size)
            if shape is not None and isinstance(name, str):
                found.append((name, shape))
    return found


def _add_partitioned(
    shapes: list[tuple[str, tuple[int, ...]]],
    groups: list[list[LazyTensor]],
    tensors: list[tuple[str, LazyTensor]],
    left_out: dict[str, str],
) -> None:
    """Appends the tensors whose equal partitions follow one another in the flat vectors of each rank.

    Args:
        shapes (`list[tuple[str, tuple[int, ...]]]`): their names and shapes, in the order of the vectors.
        groups (`list[list[LazyTensor]]`): the flat vectors of each rank.
        tensors, left_out: receive them, or why they can't be read.
    """
    if len(shapes) * sum(map(len, groups)) > _MOST_PIECES:
        raise InvalidFileError("more partitions than any model has")
    offset = 0
    for name, shape in shapes:
        part = -(-prod(shape) // len(groups))
        pieces = [piece for vectors in groups for piece in _cut(vectors, offset, part)]
        offset += part
        reasons = (piece.tensor.unreadable_reason() for piece in pieces)
        reason = next((each for each in reasons if each is not None), None)
        if reason is None and sum(piece.size for piece in pieces) < prod(shape):
            reason = "a part of it is missing: run zero_to_fp32.py on the folder"
        if reason is None:
            tensors.append((name, join_pieces(pieces, shape)))
        else:
            left_out[printable(name)] = reason


def _cut(vectors: list[LazyTensor], offset: int, count: int) -> Iterable[FlatPiece]:
    """Yields elements `offset` to `offset + count` of vectors that follow one another."""
    begin = 0
    for vector in vectors:
        end = begin + vector.numel()
        first, last = max(offset, begin), min(offset + count, end)
        if first < last:
            yield FlatPiece(vector, first - begin, last - first)
        begin = end
