"""Which of a folder's files belong together as one model's weights, by their names and by the indexes among them.

A suspect's folder may hold several: a decoy beside the model, another form of it, a model in a sub-folder. Each is a
group of its own; what is in no form that is read here is named with the way out.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from hf_fingerprint.checkpoints import kinds
from hf_fingerprint.checkpoints.choosing import (
    INDEX_SUFFIX,
    PREFERRED_FILES,
    TRAINING_STATE_FILES,
    choose_weights,
    is_weight_file,
    matches,
)
from hf_fingerprint.checkpoints.contents import SkippedFile
from hf_fingerprint.checkpoints.formats.recognition import PYTORCH, SAFETENSORS, WEIGHT_SUFFIXES
from hf_fingerprint.checkpoints.source import parse_shards
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


MISSING = "missing: get the model again, all of its files"
_PART = re.compile(r"(?P<stem>.*?)[-_.]?\d+[-_]of[-_](?P<total>\d+)(?P<end>.*)", re.DOTALL)
_RENAMED = re.compile(r"\.(safetensors|bin|pth|pt|ckpt)(\.[\w-]+)?$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(tar|tgz|gz|bz2|xz|zst|zip|7z|mar)$", re.IGNORECASE)


@dataclass(frozen=True)
class WeightFileGroup:
    """Files that hold one model's weights together.

    Attributes:
        files (`tuple[str, ...]`): their paths in the model's folder, with `/`; safetensors alone, or pickles alone.
        index (`str` or `None`): the index that says so.
    """

    files: tuple[str, ...]
    index: str | None = None

    @property
    def name(self) -> str:
        """What it is called by: its index, or its first file."""
        return self.index or self.files[0]

    @property
    def is_training_checkpoint(self) -> bool:
        """Whether it lies in a folder of a training's checkpoints, of which there may be many."""
        return any(
            kinds.folder_exclusion_reason(part) == kinds.CHECKPOINTS for part in PurePosixPath(self.name).parts[:-1]
        )


def choose_safetensors(sizes: Mapping[str, int | None], where: str) -> str | None:
    """Which safetensors file of a suspect's repo is read first, or its index: what loaders take; where they can't
    tell, the largest of those nearest the top.

    Args:
        sizes (mapping of `str` to `int` or `None`): all files of the repo, with their sizes as far as they are known.
        where (`str`): the repo, for what is said of it.

    Returns:
        `str`, or `None` if the weights are in another form.

    Raises:
        [`CheckpointError`]: if nothing there may hold weights.
    """
    try:
        chosen = choose_weights([name for name in sizes if "/" not in name], where)
        return chosen if is_safetensors(chosen) else None
    except CheckpointError:
        if not any(map(may_hold_model, sizes)):
            raise
    found = [name for name in sizes if is_safetensors(name) and may_hold_model(name.removesuffix(INDEX_SUFFIX))]
    return min(
        found,
        key=lambda name: (name.count("/"), not name.endswith(INDEX_SUFFIX), -(sizes[name] or 0), name),
        default=None,
    )


def may_hold_model(name: str) -> bool:
    """Whether a file of this name may hold a model's weights, in whatever form; not a training's state."""
    return is_weight_file(name) and not is_training_state(name)


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of weight files that can be read."""
    return name.endswith(INDEX_SUFFIX) and format_by_name(name.removesuffix(INDEX_SUFFIX)) is not None


def format_by_name(name: str) -> str | None:
    """The form of weights that a file's name promises, if it is one that is read."""
    if not WEIGHT_SUFFIXES.search(name):
        return None
    return SAFETENSORS if name.lower().endswith(".safetensors") else PYTORCH


def group_files(
    names: Iterable[str],
    read: Callable[[str], bytes],
    get_format: Callable[[str], str | None] = format_by_name,
    unreadable_reason: Callable[[str], str | None] | None = None,
    is_state: Callable[[str], bool] | None = None,
) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """Sorts the files of a model's folder into groups.

    Args:
        names (iterable of `str`): the files' paths in the folder, with `/`.
        read (callable): what an index of this path holds; a `ValueError` says what is wrong with it.
        get_format (callable, *optional*): the form of the weights in a file of this path, if it is one that is read; by
            default what its name promises.
        unreadable_reason (callable, *optional*): why a weight file of this path, which has no such form, is not read, and what
            to do; by default what its name says of that.
        is_state (callable, *optional*): whether a file of this path holds a training's own state beside the model; by
            default what its name says of that.

    Returns:
        `(groups, unread)`: groups in the order of the folder's depth, training's checkpoints last, and then of what
        loaders prefer; and the files that may hold weights and can't be read, with why.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        folders[posixpath.dirname(name)].append(name)
    groups: dict[tuple[str, ...], WeightFileGroup] = {}
    unread: list[SkippedFile] = []
    for folder in folders.values():
        for group in _groups_of(
            folder,
            read,
            get_format,
            unreadable_reason or unreadable_reason_by_name,
            is_state or is_training_state,
            unread,
        ):
            groups.setdefault(group.files, group)
    return sorted(groups.values(), key=_group_order), unread


def _groups_of(
    names: list[str],
    read: Callable[[str], bytes],
    get_format: Callable[[str], str | None],
    unreadable_reason: Callable[[str], str | None],
    is_state: Callable[[str], bool],
    unread: list[SkippedFile],
) -> list[WeightFileGroup]:
    """The groups among the files of one folder."""
    there = set(names)
    groups: list[WeightFileGroup] = []
    grouped: set[str] = set()
    for index in filter(is_index, names):
        try:
            named = [posixpath.join(posixpath.dirname(index), shard) for shard in parse_shards(read(index))]
        except ValueError as error:
            unread.append(SkippedFile(index, str(error)))
            continue
        unread += [SkippedFile(shard, MISSING) for shard in named if shard not in there]
        forms = _split_by_format((shard for shard in named if shard in there), get_format)
        groups += [WeightFileGroup(tuple(files), index if len(forms) == 1 else None) for files in forms]
        grouped.update(*forms)
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        if name in grouped or is_state(name):
            continue
        if get_format(name) is None:
            if reason := unreadable_reason(name):
                unread.append(SkippedFile(name, reason))
        elif match := _PART.fullmatch(posixpath.basename(name)):
            parts[match["stem"], match["total"], match["end"]].append(name)
        else:
            groups.append(WeightFileGroup((name,)))
    for (_, total, _), found in parts.items():
        if total.lstrip("0") != str(len(found)):
            unread.append(
                SkippedFile(found[0], f"one of {total} parts, of which {len(found)} are here: get the others")
            )
        groups.append(WeightFileGroup(tuple(found)))
    return groups


def _split_by_format(names: Iterable[str], get_format: Callable[[str], str | None]) -> list[list[str]]:
    """Safetensors and pickles apart."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (there := get_format(name)) is not None:
            found[there].append(name)
    return list(found.values())


def _group_order(group: WeightFileGroup) -> tuple[bool, int, int, str]:
    preferred = next(
        (i for i, pattern in enumerate(PREFERRED_FILES) if matches(group.name, pattern)), len(PREFERRED_FILES)
    )
    return group.is_training_checkpoint, group.name.count("/"), preferred, group.name


def is_safetensors(name: str) -> bool:
    """Whether a file, or those that an index names, are safetensors."""
    return format_by_name(name.removesuffix(INDEX_SUFFIX)) == SAFETENSORS


def is_training_state(name: str) -> bool:
    """Whether a file of this name is a training's own, beside the model: no training writes safetensors for that."""
    return matches(name, TRAINING_STATE_FILES) and format_by_name(name) != SAFETENSORS


def unreadable_reason_by_name(name: str) -> str | None:
    """Why a weight file of this name is not read, and what to do; nothing for one that is, or is no weight file."""
    if format_by_name(name) is not None or not is_weight_file(name):
        return None
    if _ARCHIVE.search(name):
        return "an archive, not read: unpack it"
    if _RENAMED.search(name):
        return f"not read for its ending {printable(PurePosixPath(name).suffix)}: name it .safetensors or .bin"
    return "not read: convert it to safetensors"
