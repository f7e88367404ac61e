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
from hf_fingerprint.checkpoints.choosing import INDEX, PREFERRED, STATES, choose_weights, is_weights, matches
from hf_fingerprint.checkpoints.contents import LeftOut
from hf_fingerprint.checkpoints.formats.recognition import NAMES, PYTORCH, SAFETENSORS
from hf_fingerprint.checkpoints.source import shards_of
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


MISSING = "missing: get the model again, all of its files"
_PART = re.compile(r"(?P<stem>.*?)[-_.]?\d+[-_]of[-_](?P<total>\d+)(?P<end>.*)", re.DOTALL)
_RENAMED = re.compile(r"\.(safetensors|bin|pth|pt|ckpt)(\.[\w-]+)?$", re.IGNORECASE)
_PACKED = re.compile(r"\.(tar|tgz|gz|bz2|xz|zst|zip|7z|mar)$", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
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
    def of_training(self) -> bool:
        """Whether it lies in a folder of a training's checkpoints, of which there may be many."""
        return any(kinds.why_not_folder(part) == kinds.CHECKPOINTS for part in PurePosixPath(self.name).parts[:-1])


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
        if not any(map(may_be_model, sizes)):
            raise
    found = [name for name in sizes if is_safetensors(name) and may_be_model(name.removesuffix(INDEX))]
    return min(
        found, key=lambda name: (name.count("/"), not name.endswith(INDEX), -(sizes[name] or 0), name), default=None
    )


def may_be_model(name: str) -> bool:
    """Whether a file of this name may hold a model's weights, in whatever form; not a training's state."""
    return is_weights(name) and not is_training_state(name)


def is_index(name: str) -> bool:
    """Whether a file of this name is an index of weight files that can be read."""
    return name.endswith(INDEX) and form_by_name(name.removesuffix(INDEX)) is not None


def form_by_name(name: str) -> str | None:
    """The form of weights that a file's name promises, if it is one that is read."""
    if not NAMES.search(name):
        return None
    return SAFETENSORS if name.lower().endswith(".safetensors") else PYTORCH


def group_files(
    names: Iterable[str],
    read: Callable[[str], bytes],
    form: Callable[[str], str | None] = form_by_name,
    why_not: Callable[[str], str | None] | None = None,
    is_state: Callable[[str], bool] | None = None,
) -> tuple[list[Group], list[LeftOut]]:
    """Sorts the files of a model's folder into groups.

    Args:
        names (iterable of `str`): the files' paths in the folder, with `/`.
        read (callable): what an index of this path holds; a `ValueError` says what is wrong with it.
        form (callable, *optional*): the form of the weights in a file of this path, if it is one that is read; by
            default what its name promises.
        why_not (callable, *optional*): why a weight file of this path, which has no such form, is not read, and what
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
    groups: dict[tuple[str, ...], Group] = {}
    unread: list[LeftOut] = []
    for folder in folders.values():
        for group in _groups_of(folder, read, form, why_not or way_out, is_state or is_training_state, unread):
            groups.setdefault(group.files, group)
    return sorted(groups.values(), key=_order), unread


def _groups_of(
    names: list[str],
    read: Callable[[str], bytes],
    form: Callable[[str], str | None],
    why_not: Callable[[str], str | None],
    is_state: Callable[[str], bool],
    unread: list[LeftOut],
) -> list[Group]:
    """The groups among the files of one folder."""
    there = set(names)
    groups: list[Group] = []
    grouped: set[str] = set()
    for index in filter(is_index, names):
        try:
            named = [posixpath.join(posixpath.dirname(index), shard) for shard in shards_of(read(index))]
        except ValueError as error:
            unread.append(LeftOut(index, str(error)))
            continue
        unread += [LeftOut(shard, MISSING) for shard in named if shard not in there]
        forms = _forms((shard for shard in named if shard in there), form)
        groups += [Group(tuple(files), index if len(forms) == 1 else None) for files in forms]
        grouped.update(*forms)
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        if name in grouped or is_state(name):
            continue
        if form(name) is None:
            if reason := why_not(name):
                unread.append(LeftOut(name, reason))
        elif match := _PART.fullmatch(posixpath.basename(name)):
            parts[match["stem"], match["total"], match["end"]].append(name)
        else:
            groups.append(Group((name,)))
    for (_, total, _), found in parts.items():
        if total.lstrip("0") != str(len(found)):
            unread.append(LeftOut(found[0], f"one of {total} parts, of which {len(found)} are here: get the others"))
        groups.append(Group(tuple(found)))
    return groups


def _forms(names: Iterable[str], form: Callable[[str], str | None]) -> list[list[str]]:
    """Safetensors and pickles apart."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (there := form(name)) is not None:
            found[there].append(name)
    return list(found.values())


def _order(group: Group) -> tuple[bool, int, int, str]:
    preferred = next((i for i, pattern in enumerate(PREFERRED) if matches(group.name, pattern)), len(PREFERRED))
    return group.of_training, group.name.count("/"), preferred, group.name


def is_safetensors(name: str) -> bool:
    """Whether a file, or those that an index names, are safetensors."""
    return form_by_name(name.removesuffix(INDEX)) == SAFETENSORS


def is_training_state(name: str) -> bool:
    """Whether a file of this name is a training's own, beside the model: no training writes safetensors for that."""
    return matches(name, STATES) and form_by_name(name) != SAFETENSORS


def way_out(name: str) -> str | None:
    """Why a weight file of this name is not read, and what to do; nothing for one that is, or is no weight file."""
    if form_by_name(name) is not None or not is_weights(name):
        return None
    if _PACKED.search(name):
        return "an archive, not read: unpack it"
    if _RENAMED.search(name):
        return f"not read for its ending {printable(PurePosixPath(name).suffix)}: name it .safetensors or .bin"
    return "not read: convert it to safetensors"
