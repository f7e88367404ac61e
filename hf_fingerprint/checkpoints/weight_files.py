"""Group a folder's weight files into models, by their names and indexes.

A suspect's folder may hold several models: a decoy, the same model in another format, a model in a subfolder. Each is
a group. Files in unsupported formats are listed with a reason and a remedy.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from hf_fingerprint.checkpoints import kinds
from hf_fingerprint.checkpoints.archives import ARCHIVE, ARCHIVE_NAMES
from hf_fingerprint.checkpoints.choosing import (
    METADATA_FILES,
    PREFERRED_FILES,
    TRAINING_STATE_FILES,
    choose_weights,
    indexed_weights,
    is_weight_file,
    matches,
)
from hf_fingerprint.checkpoints.contents import SkippedFile
from hf_fingerprint.checkpoints.formats.recognition import PYTORCH, SAFETENSORS, WEIGHT_SUFFIXES, other_format
from hf_fingerprint.checkpoints.formats.registry import FORMATS
from hf_fingerprint.checkpoints.source import parse_shards
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


MISSING = "missing: download the model again, all of its files"
_PART = re.compile(r"(?P<stem>.*?)[-_.]?\d+[-_]of[-_](?P<total>\d+)(?P<end>.*)", re.DOTALL)
_RENAMED = re.compile(r"\.(safetensors|bin|pth|pt|ckpt)(\.[\w-]+)?$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zst|7z|rar|lzma|lz4)$", re.IGNORECASE)


@dataclass(frozen=True)
class WeightFileGroup:
    """Files that together hold one model's weights.

    Attributes:
        files (`tuple[str, ...]`): paths in the model's folder, with `/`; all of one format.
        index (`str` or `None`): the index that names them.
        companions (`tuple[str, ...]`): further files that may hold weights of theirs, in a format that has some.
    """

    files: tuple[str, ...]
    index: str | None = None
    companions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the group: its index, or its first file."""
        return self.index or self.files[0]

    @property
    def is_training_checkpoint(self) -> bool:
        """Whether the group lies in a training checkpoint folder, of which there may be many."""
        parents = PurePosixPath(self.name).parts[:-1]
        return any(kinds.folder_exclusion_reason(part) == kinds.CHECKPOINTS for part in parents)


def choose_safetensors(sizes: Mapping[str, int | None], where: str) -> str | None:
    """The safetensors file or index that loaders take from a suspect's repo, else the largest nearest the top.

    Args:
        sizes (mapping of `str` to `int` or `None`): all files of the repo with their sizes.
        where (`str`): the repo, for errors.

    Returns:
        `str`, or `None` if the weights are in another format.

    Raises:
        [`CheckpointError`]: if no file may hold weights.
    """
    try:
        chosen = choose_weights([name for name in sizes if "/" not in name], where)
        return chosen if is_safetensors(chosen) else None
    except CheckpointError:
        if not any(map(may_hold_model, sizes)):
            raise
    found = [name for name in sizes if is_safetensors(name) and may_hold_model(indexed_weights(name) or name)]
    found.sort(key=lambda name: (name.count("/"), indexed_weights(name) is None, -(sizes[name] or 0), name))
    return found[0] if found else None


def may_hold_model(name: str) -> bool:
    """Whether a file of this name may hold a model's weights, in any format, rather than training state."""
    return is_weight_file(name) and not is_training_state(name)


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of weight files in a supported format."""
    weights = indexed_weights(name)
    return weights is not None and format_by_name(weights) in (SAFETENSORS, PYTORCH)


def format_by_name(name: str) -> str | None:
    """The supported weight format that a file name stands for, [`ARCHIVE`] for an archive's, or `None`."""
    if WEIGHT_SUFFIXES.search(name):
        return SAFETENSORS if name.lower().endswith(".safetensors") else PYTORCH
    if ARCHIVE_NAMES.search(name):
        return ARCHIVE
    return next((form.name for form in FORMATS if name.lower().endswith(form.suffixes)), None)


def add_companions(
    groups: Sequence[WeightFileGroup],
    unread: Sequence[SkippedFile],
    names: Iterable[str],
    get_format: Callable[[str], str | None] = format_by_name,
) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """Gives each group the further files that may hold its weights, which are no groups of their own then.

    A file that may be a model by its name stays a group as well.

    Args:
        groups, unread: see [`group_files`].
        names (iterable of `str`): all files of the folder or repo, with `/`.
        get_format (callable, *optional*): see [`group_files`].
    """
    names, found = set(names), []
    for group in groups:
        form = other_format(get_format(group.files[0]) or "")
        parts = [] if form is None else [names & set(form.companions(file, names)) for file in group.files]
        found.append(replace(group, companions=tuple(sorted(set().union(*parts) - set(group.files)))))
    claimed = {name for group in found for name in group.companions if not WEIGHT_SUFFIXES.search(name)}
    return (
        [group for group in found if not claimed.issuperset(group.files)],
        [each for each in unread if each.name not in claimed],
    )


def group_files(
    names: Iterable[str],
    read: Callable[[str], bytes],
    get_format: Callable[[str], str | None] = format_by_name,
    unreadable_reason: Callable[[str], str | None] | None = None,
    is_state: Callable[[str], bool] | None = None,
) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """Sorts the files of a model's folder into groups.

    The callables take a file's path in the folder. By default, the last three judge it by its name.

    Args:
        names (iterable of `str`): the files' paths in the folder, with `/`.
        read (callable): returns the content of an index; raises `ValueError` with the reason if it can't.
        get_format (callable, *optional*): returns the weight format of a file, `None` if it is not supported.
        unreadable_reason (callable, *optional*): returns why a weight file in an unsupported format is not read, and
            what to do.
        is_state (callable, *optional*): returns whether a file holds training state rather than the model.

    Returns:
        `(groups, unread)`: the groups, ordered by depth (training checkpoints last), then by loaders' preference; and
        the files that may hold weights but can't be read, with the reason.
    """
    unreadable_reason, is_state = unreadable_reason or unreadable_reason_by_name, is_state or is_training_state
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        folders[posixpath.dirname(name)].append(name)
    groups: dict[tuple[str, ...], WeightFileGroup] = {}
    unread: list[SkippedFile] = []
    for folder in folders.values():
        for group in _groups_of(folder, read, get_format, unreadable_reason, is_state, unread):
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
    """The groups among the files of one folder. Appends unreadable files to `unread`."""
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
        by_format = _split_by_format((shard for shard in named if shard in there), get_format)
        groups += [WeightFileGroup(tuple(files), index if len(by_format) == 1 else None) for files in by_format]
        grouped.update(*by_format)
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
            unread.append(SkippedFile(found[0], f"{len(found)} of {total} parts are here: download the others"))
        groups.append(WeightFileGroup(tuple(found)))
    return groups


def _split_by_format(names: Iterable[str], get_format: Callable[[str], str | None]) -> list[list[str]]:
    """The files, separated by format."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (there := get_format(name)) is not None:
            found[there].append(name)
    return list(found.values())


def _group_order(group: WeightFileGroup) -> tuple[bool, int, int, str]:
    ranks = (rank for rank, pattern in enumerate(PREFERRED_FILES) if matches(group.name, pattern))
    preferred = next(ranks, len(PREFERRED_FILES))
    return group.is_training_checkpoint, group.name.count("/"), preferred, group.name


def is_safetensors(name: str) -> bool:
    """Whether a file or an index of this name stands for safetensors."""
    return format_by_name(indexed_weights(name) or name) == SAFETENSORS


def is_training_state(name: str) -> bool:
    """Whether a file of this name holds training state or metadata. Safetensors files never do."""
    return matches(name, (*TRAINING_STATE_FILES, *METADATA_FILES)) and format_by_name(name) != SAFETENSORS


def unreadable_reason_by_name(name: str) -> str | None:
    """Why a weight file of this name is not read, and what to do; `None` if it is read or no weight file."""
    if format_by_name(name) is not None or not is_weight_file(name):
        return None
    if _ARCHIVE.search(name):
        return "an archive, not read: unpack it"
    if _RENAMED.search(name):
        return f"not read, since it ends in {printable(PurePosixPath(name).suffix)}: rename it to .safetensors or .bin"
    return "not read: convert it to safetensors"
