"""Find every set of weight files of a suspect: in a folder, its subfolders, or a repo on the Hub.

```python
found = find_weight_sets("org/name", max_bytes=10**9)
for source in found.sets:      # each set is a model
    open_checkpoint(source, suspect=True)
found.unread                   # files that may hold weights but can't be read, with reason and remedy
```
"""

import posixpath
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.archives import ARCHIVE, is_archive, unpack_archive
from hf_fingerprint.checkpoints.choosing import choose_weights, is_weight_file, missing_file_error, no_weights_error
from hf_fingerprint.checkpoints.contents import SkippedFile, walk_folder
from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.formats.recognition import inspect_file, is_format, is_supported, unsupported_reason
from hf_fingerprint.checkpoints.hub_files import HubFiles, OversizedDownload
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions, locate
from hf_fingerprint.checkpoints.inside import path_problem
from hf_fingerprint.checkpoints.limits import MAX_ARCHIVE_DEPTH, MAX_INDEX, MAX_SETS, megabytes
from hf_fingerprint.checkpoints.naming import HubId, LocalFile
from hf_fingerprint.checkpoints.opening_sets import WeightSets, limit_groups, open_groups
from hf_fingerprint.checkpoints.reader import open_checkpoint
from hf_fingerprint.checkpoints.source import Source, resolve
from hf_fingerprint.checkpoints.tensor_names import is_optimizer_state
from hf_fingerprint.checkpoints.weight_files import (
    MISSING,
    WeightFileGroup,
    add_companions,
    format_by_name,
    group_files,
    is_index,
    is_training_state,
    unreadable_reason_by_name,
)
from hf_fingerprint.errors import CheckpointError


_CONFIG = "config.json"
_NOT_SEARCHED = "holds no model"
_SKIPPED_FOLDERS = re.compile(r"\.git|\.cache|\.?venv|__pycache__|node_modules|site-packages|.*_cache", re.IGNORECASE)
_NO_FOLDER = re.compile(r"(?!)")


def find_weight_sets(
    name: str | Path, max_bytes: int | None = None, file: str | None = None, options: HubOptions = NO_OPTIONS
) -> WeightSets:
    """Every set of weight files that a model name may refer to; downloads them if needed.

    Args:
        name (`str` or `Path`): a model name as for [`resolve`]. A file or an index given directly is the only set.
        max_bytes (`int`, *optional*): maximum number of bytes to fetch from the Hub, over all files. Files beyond it
            are listed in `unread`.
        file (`str`, *optional*): the only file of the folder or repo to read.
        options ([`HubOptions`], *optional*): where in the folder or repo, and how to reach it. The weights of a
            variant are the only set.

    Returns:
        [`WeightSets`]: without sets if no weights can be read.

    Raises:
        [`CheckpointError`]: if there is no such model, no file may hold weights, or there are more than [`MAX_SETS`]
            sets.
    """
    location = locate(name, file, options)
    if isinstance(location, HubId):
        return _from_hub(location, max_bytes, options.access)
    try:
        if isinstance(location, LocalFile):
            resolve(location.folder, file=location.file)  # raises if it can't be used
            return _from_file(location.path)
        return _from_folder(location) if location.is_dir() else _from_file(location)
    except OSError as error:
        raise CheckpointError(f"{name} can't be read: {error.strerror or error}.") from None


def _from_file(path: Path) -> WeightSets:
    folder = path.parent
    model = Source(str(path), folder, (), None, None, False)
    if is_index(path.name):
        siblings = [entry.name for entry in folder.iterdir() if entry == path or is_weight_file(entry.name)]
        groups, unread = _group_folder(folder, _filter_inside(folder, siblings, []))
        groups = [group for group in groups if group.index == path.name]
        if not groups:
            resolve(path)  # raises with the reason
        return _open(model, groups, [each for each in unread if each.reason == MISSING])
    if not is_archive(path):
        if path.is_file() and not is_supported(path) and (reason := _unreadable_reason(folder, path.name)) is not None:
            return WeightSets((), (SkippedFile(path.name, reason),))
        resolve(path)
    return _open(model, [WeightFileGroup((path.name,))], [])


def _from_folder(folder: Path) -> WeightSets:
    return _open(Source(str(folder), folder, (), None, None, True), *_search(folder))


def _search(
    folder: Path, skipped: re.Pattern[str] = _SKIPPED_FOLDERS
) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """The groups of weight files in a folder and its subfolders but the skipped ones, and the files that can't be
    read."""
    names, unread = [], []
    for path, reason in walk_folder(folder, lambda name: _NOT_SEARCHED if skipped.fullmatch(name) else None):
        name = path.relative_to(folder).as_posix()
        if reason is None and (is_weight_file(name) or is_index(name) or is_supported(path) or is_archive(path)):
            names.append(name)
        elif reason is not None and reason != _NOT_SEARCHED:
            unread.append(SkippedFile(f"{name}/", f"not searched ({reason}): give its path"))
    groups, more = _group_folder(folder, _filter_inside(folder, names, unread))
    return groups, [*unread, *more]


def _group_folder(folder: Path, names: list[str]) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """The groups among the files of a folder, by their content."""

    def get_format(name: str) -> str | None:
        try:
            found = inspect_file(folder / name)
        except CheckpointError:
            found = ""
        if is_format(found):
            return found
        return ARCHIVE if is_archive(folder / name) else format_by_name(name)

    groups, unread = group_files(
        names,
        lambda name: _read(folder / name),
        get_format,
        lambda name: _unreadable_reason(folder, name),
        lambda name: is_training_state(name) and not _is_disguised(folder / name),
    )
    return add_companions(groups, unread, names, get_format)


def _open(
    model: Source,
    groups: list[WeightFileGroup],
    unread: list[SkippedFile],
    shown: Callable[[str], str] = str,
    depth: int = 0,
) -> WeightSets:
    """The sets of a model's folder and of the archives in it; see [`open_groups`]."""
    archives = [group for group in groups if len(group.files) == 1 and is_archive(model.folder / group.files[0])]
    found = open_groups(model, [group for group in groups if group not in archives], unread, shown)
    sets, left = [*found.sets], [*found.unread]
    for group in archives:
        inner = _from_archive(model, group.name, shown(group.name), depth)
        sets += inner.sets
        left += inner.unread
    if not sets and not left and not depth:
        raise no_weights_error(model.name)
    reason = f"beyond the limit of {MAX_SETS} sets of weights: give its path, or unpack it"
    left += [SkippedFile(", ".join(each.shown_files), reason) for each in sets[MAX_SETS:]]
    return WeightSets(tuple(sets[:MAX_SETS]), tuple(left))


def _from_archive(model: Source, file: str, shown: str, depth: int) -> WeightSets:
    """The sets in an archive."""
    if depth == MAX_ARCHIVE_DEPTH:
        return WeightSets((), (SkippedFile(shown, "an archive in too many archives: unpack it"),))
    try:
        unpacked = unpack_archive(model.folder / file, PurePosixPath(file).name)
        groups, unread = _search(unpacked.folder, _NO_FOLDER)  # what its maker packed is all of it
        if unpacked.problem is not None:
            unread.append(SkippedFile("", unpacked.problem))
        inner = replace(model, folder=unpacked.folder, owns_folder=False, archive=(model.archive, unpacked))
        return _open(inner, groups, unread, lambda name: posixpath.join(shown, *name.split("/")[1:]), depth + 1)
    except CheckpointError as error:
        return WeightSets((), (SkippedFile(shown, str(error).removesuffix(".")),))
    except OSError as error:
        return WeightSets((), (SkippedFile(shown, f"can't be read ({error.strerror or error})"),))


def _is_disguised(path: Path) -> bool:
    """Whether a file named like training state holds weights other than an optimizer's."""
    try:
        with open_checkpoint(Source(str(path), path.parent, (path,), None, None, False), suspect=True) as opened:
            weights = [name for name, t in opened.tensors.items() if len(t.shape) > 1 and t.dtype in READABLE]
            return not all(map(is_optimizer_state, weights))
    except (CheckpointError, OSError):
        return False


def _unreadable_reason(folder: Path, name: str) -> str | None:
    """Why a weight file is not read, and what to do, or `None`."""
    if not is_weight_file(name):
        return None
    try:
        return unsupported_reason(folder / name) or unreadable_reason_by_name(name) or inspect_file(folder / name)
    except CheckpointError:
        return unreadable_reason_by_name(name)


def _filter_inside(folder: Path, names: Iterable[str], unread: list[SkippedFile]) -> list[str]:
    """The files that lie inside the folder. Appends the others to `unread`."""
    found = []
    for name in names:
        reason = path_problem(folder / name, folder)
        if reason is None:
            found.append(name)
        else:
            unread.append(SkippedFile(name, reason))
    return found


def _read(index: Path) -> bytes:
    """Content of an index; `ValueError` with the reason if it can't be read or is too large."""
    try:
        with index.open("rb") as stream:
            content = stream.read(MAX_INDEX + 1)
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror or error})") from None
    if len(content) > MAX_INDEX:
        raise ValueError(f"has more than the {megabytes(MAX_INDEX)} MB that an index may have: download it again")
    return content


def _from_hub(hub_id: HubId, max_bytes: int | None, access: HubOptions) -> WeightSets:
    hub = HubFiles(hub_id, max_bytes, access)
    there = set(filter(_is_model_path, hub.sizes))
    names = [name for name in sorted(there) if is_weight_file(name) or is_index(name) or _is_openvino(name, there)]
    small: list[str] = []
    for name in (_CONFIG, *filter(is_index, names)):
        if (hub.sizes.get(name) or MAX_INDEX) < MAX_INDEX and hub.fetch_problem([*small, name]) is None:
            small.append(name)
    hub.fetch_small(small)
    groups, unread = group_files(names, lambda name: hub.read_small(name, small))
    if hub_id.variant is not None:
        top = [name for name in names if "/" not in name]
        hub_id = hub_id._replace(file=choose_weights(top, hub_id.name, hub_id.variant))
    groups, unread = add_companions(groups, unread, there)
    if hub_id.file is not None:
        groups, unread = _select_chosen(hub_id, groups, unread, names)
    fetched = []
    for group in limit_groups(groups, hub_id.name, unread):
        files = (*group.files, *group.companions)
        reason = hub.fetch_problem(files)
        if reason is None:
            try:
                hub.fetch(files)
            except OversizedDownload as error:
                reason = str(error)
        if reason is None:
            fetched.append(group)
        else:
            unread.append(SkippedFile(group.name, reason))
    name = hub_id._replace(repo=hub.hub_id.repo).name
    model = Source(name, hub.folder, (), None, hub.commit, owns_folder=True, access=access)
    return _open(model, fetched, unread)


def _select_chosen(
    hub_id: HubId, groups: list[WeightFileGroup], unread: list[SkippedFile], names: list[str]
) -> tuple[list[WeightFileGroup], list[SkippedFile]]:
    """The groups and unreadable files of a repo that belong to the chosen file."""
    if hub_id.file not in names:
        raise missing_file_error(hub_id._replace(file=None).name, str(hub_id.file), names)
    found = [group for group in groups if hub_id.file == group.index or (hub_id.file,) == group.files]
    alone = [WeightFileGroup((str(hub_id.file),))] if any(hub_id.file in group.files for group in groups) else []
    return found or alone, [each for each in unread if each.name == hub_id.file]


def _is_openvino(name: str, there: Collection[str]) -> bool:
    """Whether a file is a graph of OpenVINO by its name: an XML document next to weights of its name."""
    return name.lower().endswith(".xml") and f"{name[:-4]}.bin" in there


def _is_model_path(name: str) -> bool:
    """Whether a path stays inside the repo and outside folders that hold no model."""
    parts = PurePosixPath(name).parts
    return ".." not in parts and not name.startswith("/") and not any(map(_SKIPPED_FOLDERS.fullmatch, parts[:-1]))
