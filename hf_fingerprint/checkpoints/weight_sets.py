"""Every set of weight files that a suspect's name could mean: in a folder, its sub-folders, or a repo on the Hub.

```python
found = weight_sets("org/name", max_bytes=10**9)
for source in found.sets:      # each opens alone
    open_checkpoint(source, suspect=True)
found.unread                   # what may hold weights and can't be read, with why and the way out
```
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.choosing import AN_ADAPTER, is_weights, no_such_file, no_weights
from hf_fingerprint.checkpoints.contents import LeftOut, shortened, walk
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.formats.recognition import PYTORCH, SAFETENSORS, is_read, look_at, said_of
from hf_fingerprint.checkpoints.formats.safetensors_files import headers_length
from hf_fingerprint.checkpoints.hub_files import HubFiles, MoreThanSaid
from hf_fingerprint.checkpoints.limits import MAX_HEADERS, MAX_INDEX, MAX_SETS, megabytes
from hf_fingerprint.checkpoints.naming import HubId, InFolder, named, place_of
from hf_fingerprint.checkpoints.reader import open_checkpoint
from hf_fingerprint.checkpoints.source import Source, resolve, why_not_inside
from hf_fingerprint.checkpoints.tensor_names import is_adapter
from hf_fingerprint.checkpoints.weight_files import (
    MISSING,
    Group,
    form_by_name,
    group_files,
    is_index,
    is_training_state,
    way_out,
)
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_CONFIG = "config.json"
_NOT_LOOKED_INTO = "holds no model"
_NO_MODELS = re.compile(r"\.git|\.cache|\.?venv|__pycache__|node_modules|site-packages|.*_cache", re.IGNORECASE)
_MOMENT = re.compile(r"(^|\.)state\.\d+\.\w+$")
_HEADERS = f"with it the folder's headers are larger than the {megabytes(MAX_HEADERS)} MB that are read: name it"


@dataclass(frozen=True)
class WeightSets:
    """What of a model can be read, and what can't.

    Attributes:
        sets (`tuple[Source, ...]`): each opens alone; all have the model's name, and `weights` says which files. At
            most [`MAX_SETS`], the likeliest first.
        unread (`tuple[LeftOut, ...]`): files (their paths in the folder, which may be hostile) that may hold weights
            and can't be read here, each with why and the way out.
    """

    sets: tuple[Source, ...]
    unread: tuple[LeftOut, ...]


def weight_sets(name: str | Path, max_bytes: int | None = None, file: str | None = None) -> WeightSets:
    """Finds every set of weight files that a model's name could mean, downloading them if need be.

    Args:
        name (`str` or `Path`): what [`resolve`] takes. A file or an index named directly is the one set.
        max_bytes (`int`, *optional*): how many bytes are fetched at most from the Hub, all files together; what does
            not fit is named in `unread`.
        file (`str`, *optional*): which of the files in the folder or repo is read alone.

    Returns:
        [`WeightSets`]: perhaps without sets, if what is there can't be read.

    Raises:
        [`CheckpointError`]: if there is no such model or nothing in it that may hold weights, or if it holds more than
        [`MAX_SETS`] sets.
    """
    place = place_of(named(name, file))
    if isinstance(place, HubId):
        return _of_hub(place, max_bytes)
    try:
        if isinstance(place, InFolder):
            resolve(place.folder, file=place.file)  # says what is wrong with it
            return _of_file(place.path)
        return _of_folder(place) if place.is_dir() else _of_file(place)
    except OSError as error:
        raise CheckpointError(f"{name} can't be read: {error.strerror or error}.") from None


def _of_file(path: Path) -> WeightSets:
    folder = path.parent
    if is_index(path.name):
        beside = [entry.name for entry in folder.iterdir() if entry == path or is_weights(entry.name)]
        groups, unread = _grouped(folder, _inside(folder, beside, []))
        groups = [group for group in groups if group.index == path.name]
        if not groups:
            resolve(path)  # says what is wrong with it
        missing = tuple(each for each in unread if each.reason == MISSING)
        return _opened(str(path), folder, None, groups, missing, whole_folder=False)
    if path.is_file() and not is_read(path) and (reason := _why_not_read(folder, path.name)) is not None:
        return WeightSets((), (LeftOut(path.name, reason),))
    resolve(path)
    return _opened(str(path), folder, None, [Group((path.name,))], (), whole_folder=False)


def _of_folder(folder: Path) -> WeightSets:
    names, unread = [], []
    for path, reason in walk(folder, lambda name: _NOT_LOOKED_INTO if _NO_MODELS.fullmatch(name) else None):
        name = path.relative_to(folder).as_posix()
        if reason is None and (is_weights(name) or is_index(name) or is_read(path)):
            names.append(name)
        elif reason is not None and reason != _NOT_LOOKED_INTO:
            unread.append(LeftOut(f"{name}/", f"not looked into ({reason}): name it"))
    groups, more = _grouped(folder, _inside(folder, names, unread))
    return _opened(str(folder), folder, None, groups, (*unread, *more))


def _grouped(folder: Path, names: list[str]) -> tuple[list[Group], list[LeftOut]]:
    """The groups among files of a folder, by what is in them."""

    def form(name: str) -> str | None:
        try:
            found = look_at(folder / name)
        except CheckpointError:
            found = ""
        return found if found in (SAFETENSORS, PYTORCH) else form_by_name(name)

    return group_files(
        names,
        lambda name: _read(folder / name),
        form,
        lambda name: _why_not_read(folder, name),
        lambda name: is_training_state(name) and not _is_disguised(folder / name),
    )


def _is_disguised(path: Path) -> bool:
    """Whether a file that is named as a training's state holds more weights than what an optimizer keeps of them."""
    try:
        with open_checkpoint(Source(str(path), path.parent, (path,), None, None, False), suspect=True) as opened:
            tensors = opened.tensors.items()
            return any(len(t.shape) > 1 and t.dtype in READABLE and not _MOMENT.search(name) for name, t in tensors)
    except (CheckpointError, OSError):
        return False


def _why_not_read(folder: Path, name: str) -> str | None:
    """Why a weight file of a form that is not read is not, and what to do."""
    if not is_weights(name):
        return None
    try:
        return said_of(folder / name) or way_out(name) or look_at(folder / name)
    except CheckpointError:
        return way_out(name)


def _inside(folder: Path, names: Iterable[str], unread: list[LeftOut]) -> list[str]:
    """Those of a folder's files that are its own; the others go to `unread`."""
    found = []
    for name in names:
        reason = why_not_inside(folder / name, folder)
        if reason is None:
            found.append(name)
        else:
            unread.append(LeftOut(name, reason))
    return found


def _read(index: Path) -> bytes:
    """What an index holds, up to the size that one may have."""
    try:
        with index.open("rb") as stream:
            content = stream.read(MAX_INDEX + 1)
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror or error})") from None
    if len(content) > MAX_INDEX:
        raise ValueError(f"has more than the {megabytes(MAX_INDEX)} MB that an index may have: get it again")
    return content


def _of_hub(place: HubId, max_bytes: int | None) -> WeightSets:
    hub = HubFiles(place.repo, place.revision, max_bytes)
    names = [name for name in hub.sizes if _is_ours(name) and (is_weights(name) or is_index(name))]
    small: list[str] = []
    for name in (_CONFIG, *filter(is_index, names)):
        if (hub.sizes.get(name) or MAX_INDEX) < MAX_INDEX and hub.why_not([*small, name]) is None:
            small.append(name)
    hub.fetch_small(small)
    groups, unread = group_files(names, lambda name: hub.read_small(name, small))
    if place.file is not None:
        groups, unread = _chosen(place, groups, unread, names)
    fetched = []
    for group in _limited(groups, hub.repo, unread):
        reason = hub.why_not(group.files)
        if reason is None:
            try:
                hub.fetch(group.files)
            except MoreThanSaid as error:
                reason = str(error)
        if reason is None:
            fetched.append(group)
        else:
            unread.append(LeftOut(group.name, reason))
    return _opened(hub.repo, hub.folder, hub.commit, fetched, unread)


def _chosen(
    place: HubId, groups: list[Group], unread: list[LeftOut], names: list[str]
) -> tuple[list[Group], list[LeftOut]]:
    """What of a repo is in the one file that is chosen, or in those that it names."""
    if place.file not in names:
        raise no_such_file(place.repo, str(place.file), names)
    found = [group for group in groups if group.index == place.file]
    alone = [Group((str(place.file),))] if any(place.file in group.files for group in groups) else []
    return found or alone, [each for each in unread if each.name == place.file]


def _is_ours(name: str) -> bool:
    """Whether a path in a repo stays in it, and out of folders that hold no model."""
    parts = PurePosixPath(name).parts
    return ".." not in parts and not name.startswith("/") and not any(map(_NO_MODELS.fullmatch, parts[:-1]))


def _limited(groups: Sequence[Group], where: str, unread: list[LeftOut]) -> Sequence[Group]:
    """The groups, if they are not too many; of a training's checkpoints, as many as there is room for."""
    own = sum(not group.of_training for group in groups)
    if own > MAX_SETS:
        raise CheckpointError(
            f"{where} holds {own} sets of weights, and no more than {MAX_SETS} are looked at: name the one file to "
            f"use, such as {printable(groups[0].name)}."
        )
    for group in groups[MAX_SETS:]:
        unread.append(LeftOut(group.name, f"one more than {MAX_SETS} sets of weights: name it"))
    return groups[:MAX_SETS]


def _opened(
    name: str,
    folder: Path,
    revision: str | None,
    groups: Sequence[Group],
    unread: Iterable[LeftOut],
    whole_folder: bool = True,
) -> WeightSets:
    """The groups as sources, but for those that don't open."""
    sets: list[Source] = []
    left, headers = list(unread), 0
    for group in _limited(groups, name, left):
        paths = tuple(folder / file for file in group.files)
        index = None if group.index is None else folder / group.index
        whole = whole_folder and paths[0].parent == folder
        source = Source(name, paths[0].parent, paths, index, revision, whole)
        headers += headers_length(paths)
        reason = _why_not(source) if headers <= MAX_HEADERS or not sets else _HEADERS
        if reason is None:
            sets.append(source)
        elif len(paths) == 1 or reason == _HEADERS:
            left.append(LeftOut(group.name if reason == _HEADERS else group.files[0], reason))
        elif rest := _whole_parts(source, folder, left):
            sets.append(rest)
    if not sets and not left:
        raise no_weights(name)
    return WeightSets(tuple(sets), tuple(shortened(sorted(set(left)))))


def _whole_parts(source: Source, folder: Path, left: list[LeftOut]) -> Source | None:
    """A source without those of its files that don't open, if any are left."""
    whole = []
    for path in source.weights:
        reason = _why_not(replace(source, weights=(path,), index=None))
        if reason is None:
            whole.append(path)
        else:
            left.append(LeftOut(path.relative_to(folder).as_posix(), reason))
    return replace(source, weights=tuple(whole), index=None) if whole else None


def _why_not(source: Source) -> str | None:
    """Why it doesn't open, if it doesn't."""
    try:
        with open_checkpoint(source, suspect=True) as opened:
            return AN_ADAPTER if is_adapter(opened.tensors) else None
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    except CheckpointError as error:
        text = str(error).removesuffix(".")
        for path in source.weights:
            text = text.replace(str(path), "", 1)
        return text.lstrip(": ")
