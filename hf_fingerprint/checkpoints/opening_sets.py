"""Open groups of weight files as the sets of a suspect, and list the files that can't be read."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_fingerprint.checkpoints.choosing import ADAPTER_MESSAGE
from hf_fingerprint.checkpoints.contents import SkippedFile, truncate_skipped
from hf_fingerprint.checkpoints.formats.recognition import inspect_file, is_format
from hf_fingerprint.checkpoints.formats.safetensors_files import headers_size
from hf_fingerprint.checkpoints.limits import MAX_HEADERS, MAX_SETS, megabytes
from hf_fingerprint.checkpoints.reader import open_checkpoint
from hf_fingerprint.checkpoints.source import Source
from hf_fingerprint.checkpoints.tensor_names import is_adapter
from hf_fingerprint.checkpoints.weight_files import WeightFileGroup
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_HEADERS = f"beyond the limit of {megabytes(MAX_HEADERS)} MB for all headers of the folder: choose it with --file"


@dataclass(frozen=True)
class WeightSets:
    """The sets of weights of a suspect that can be read, and the files that can't.

    Attributes:
        sets (`tuple[Source, ...]`): one [`Source`] per set, all with the model's name. At most [`MAX_SETS`], the
            likeliest first.
        unread (`tuple[SkippedFile, ...]`): files that may hold weights but can't be read, with reason and remedy.
    """

    sets: tuple[Source, ...]
    unread: tuple[SkippedFile, ...]


def limit_groups(
    groups: Sequence[WeightFileGroup], where: str, unread: list[SkippedFile]
) -> Sequence[WeightFileGroup]:
    """The groups within [`MAX_SETS`]. Only training checkpoints may be dropped, which appends them to `unread`."""
    own = sum(not group.is_training_checkpoint for group in groups)
    if own > MAX_SETS:
        raise CheckpointError(
            f"{where} holds {own} sets of weights, and the limit is {MAX_SETS}: choose one with --file, such as "
            f"--file {printable(groups[0].name)}."
        )
    reason = f"beyond the limit of {MAX_SETS} sets of weights: choose it with --file"
    unread += [SkippedFile(group.name, reason) for group in groups[MAX_SETS:]]
    return groups[:MAX_SETS]


def open_groups(
    model: Source, groups: Sequence[WeightFileGroup], unread: Iterable[SkippedFile], shown: Callable[[str], str] = str
) -> WeightSets:
    """The groups that open, as sources like `model`. The others are listed in `unread`.

    Args:
        model ([`Source`]): the model without weights.
        groups (sequence of [`WeightFileGroup`]): groups of files in the model's folder.
        unread (iterable of [`SkippedFile`]): files that can't be read.
        shown (callable, *optional*): from a file's path in the folder to the name to show.
    """
    sets: list[Source] = []
    skipped, headers = list(unread), 0
    used: set[str] = set()
    unused: list[tuple[str, str]] = []
    waiting = deque(limit_groups(groups, model.name, skipped))
    grouped = {file for group in waiting for file in group.files}
    while waiting:
        group = waiting.popleft()
        paths = tuple(model.folder / file for file in group.files)
        index, folder = None if group.index is None else model.folder / group.index, paths[0].parent
        is_own = model.owns_folder and folder == model.folder
        source = replace(
            model,
            folder=folder,
            weights=paths,
            index=index,
            owns_folder=is_own,
            file_names=tuple(map(shown, group.files)),
        )
        headers += headers_size(paths)
        opened: set[str] = set()
        reason = _opening_problem(source, opened) if headers <= MAX_HEADERS or not sets else _HEADERS
        companions = {Path(path).relative_to(model.folder).as_posix() for path in opened}
        used |= companions
        for name in sorted(companions - grouped):
            if _is_model(model.folder / name):  # the file that names it may be there to hide it
                waiting.append(WeightFileGroup((name,)))
                grouped.add(name)
        if reason is None:
            sets.append(source)
            unused += [(name, group.name) for name in group.companions]
        elif len(paths) == 1 or reason == _HEADERS:
            skipped.append(SkippedFile(group.name if reason == _HEADERS else group.files[0], reason))
        elif rest := _readable_parts(source, model.folder, skipped):
            sets.append(rest)
    read = {path.relative_to(model.folder).as_posix() for source in sets for path in source.weights} | used
    skipped += [
        SkippedFile(name, f"not used by {shown(by)}: give its path") for name, by in unused if name not in read
    ]
    listed = [SkippedFile(shown(each.name), each.reason) for each in sorted(set(skipped)) if each.name not in used]
    return WeightSets(tuple(sets), tuple(truncate_skipped(listed)))


def _is_model(companion: Path) -> bool:
    """Whether a file that holds weights of another one is a model by itself; parts of a distributed one aren't."""
    if companion.suffix.lower() in (".distcp", ".pt"):
        return False
    try:
        return is_format(inspect_file(companion))
    except CheckpointError:
        return False


def _readable_parts(source: Source, folder: Path, unread: list[SkippedFile]) -> Source | None:
    """The source without the files that don't open, or `None` if none opens. Appends those files to `unread`."""
    readable = []
    for path, shown in zip(source.weights, source.file_names, strict=True):
        reason = _opening_problem(replace(source, weights=(path,), index=None))
        if reason is None:
            readable.append((path, shown))
        else:
            unread.append(SkippedFile(path.relative_to(folder).as_posix(), reason))
    if not readable:
        return None
    paths, names = zip(*readable, strict=True)
    return replace(source, weights=paths, index=None, file_names=names)


def _opening_problem(source: Source, companions: set[str] | None = None) -> str | None:
    """Why a source doesn't open, or `None`. `companions` receives the further files that hold its weights."""
    try:
        with open_checkpoint(source, suspect=True) as opened:
            if companions is not None:
                companions.update(map(str, opened.companions))
            return ADAPTER_MESSAGE if is_adapter(opened.tensors) else None
    except OSError as error:
        return f"can't be read ({error.strerror or error})"
    except CheckpointError as error:
        text = str(error).removesuffix(".")
        for path in source.weights:
            text = text.replace(str(path), "", 1)
        return text.lstrip(": ")
