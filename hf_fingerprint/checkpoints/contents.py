"""Which files of a model's folder go with a copy, and why the others don't.

A training folder holds more than the model: the vault's identity, tokens, training state, unmarked weights. So an
allow-list of names and a check of the content decide what is copied. Every other file is skipped with a reason.
"""

import os
import posixpath
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from hf_fingerprint.checkpoints import kinds, limits
from hf_fingerprint.checkpoints.choosing import is_weight_file
from hf_fingerprint.checkpoints.configs import clean_config, clean_index, names_local_files
from hf_fingerprint.checkpoints.inside import check_inside
from hf_fingerprint.checkpoints.limits import megabytes, parse_json, read_bounded
from hf_fingerprint.checkpoints.model_card import README
from hf_fingerprint.checkpoints.source import Source
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


VAULT_DATABASE, SQLITE = "vault.db", b"SQLite format 3\0"
_MAX_LISTED = 20
# never copied, whatever the file's name: keys, ciphertexts to a vault's identity, tokens
_SECRET_PATTERN = re.compile(
    rb"(?i:age-secret-key-1)|BEGIN [A-Z0-9 ]{0,60}PRIVATE KEY|BEGIN AGE ENCRYPTED|age-encryption\.org/v1"
    rb"|PuTTY-User-Key-File|\bhf_(?=[a-zA-Z0-9]*[A-Z])(?=[a-zA-Z0-9]*[a-z])[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}"
)
_IMAGE_LINKS = re.compile(  # every repeat is bounded: a hostile card must not take the square of its length
    r"!\[[^\]]{0,500}\]\(\s{0,20}<?([^)\s>]{1,500})"  # markdown: ![text](target)
    r"|<(?:img|source|video|image)\b[^>]{0,500}?\b(?:src|srcset|href|poster)\s{0,20}=\s{0,20}[\"']?([^\"'\s>]{1,500})"
    r"|^[ \t]{0,20}\[[^\]]{1,500}\]:\s{0,20}<?(\S{1,500}?)>?[ \t]{0,20}$"  # markdown: [name]: target
    r"|^[ \t]{0,100}-?[ \t]{0,20}(?:src|thumbnail|url|image):\s{0,20}[\"']?([^\"'\s]{1,500})",  # widgets
    re.IGNORECASE | re.MULTILINE,
)


class SkippedFile(NamedTuple):
    """A file or folder that is skipped.

    Attributes:
        name (`str`): path in the model's folder, with a final `/` for a folder; may be hostile.
        reason (`str`): why it is skipped, in a few words.
    """

    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """As a JSON-serializable dictionary."""
        return self._asdict()


@dataclass(frozen=True)
class IncludedFile:
    """A file that goes with a copy.

    Attributes:
        path (`Path`): the file on disk.
        name (`str`): path in the model's folder, with `/`.
        content (`bytes` or `None`): cleaned content to write instead; `None` to copy the file unchanged.
    """

    path: Path
    name: str
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FolderContents:
    """Files of a model's folder other than the chosen weights, sorted by name.

    Attributes:
        included (`tuple[IncludedFile, ...]`): files that go with a copy.
        left_out (`tuple[SkippedFile, ...]`): files and folders that don't.
    """

    included: tuple[IncludedFile, ...] = ()
    left_out: tuple[SkippedFile, ...] = ()


def list_contents(source: Source, include_code: bool = False) -> FolderContents:
    """Files of a model's folder that go with a copy, and those that don't.

    Folders that are not part of a model (`.git`, `checkpoint-10`) or hold too many files are skipped as a whole.

    Args:
        source ([`Source`]): the model. If it was given as a single file, its neighbors are not considered.
        include_code (`bool`, *optional*, defaults to `False`): whether `.py` files go along.

    Raises:
        [`CheckpointError`]: if a file that may go along is missing, unreadable, not a regular file or outside the
            folder.
    """
    included_files: list[IncludedFile] = []
    skipped: list[SkippedFile] = []
    if source.index is not None and not source.pickled:
        included_files.append(_included_index(source.index))
    if source.pickled:
        skipped += [SkippedFile(path.name, "the weights as a pickle") for path in source.weights]
        skipped += [SkippedFile(source.index.name, "the index of pickles")] if source.index is not None else []
    if source.owns_folder:
        linked = _linked_images(source.folder / README)
        chosen = {*source.weights, source.index}
        for path, reason in walk_folder(source.folder):
            name = path.relative_to(source.folder).as_posix()
            if reason is not None:
                skipped.append(SkippedFile(f"{name}/", reason))
            elif path not in chosen:
                found = _classify(path, name, source.folder, linked, include_code)
                if isinstance(found, SkippedFile):
                    skipped.append(found)
                else:
                    included_files.append(found)
    by_name = sorted(set(skipped))
    return FolderContents(tuple(sorted(included_files, key=lambda each: each.name)), tuple(truncate_skipped(by_name)))


def holds_secret(content: bytes) -> bool:
    """Whether a file's bytes contain a key, a token, an age ciphertext or an SQLite database."""
    return content.startswith(SQLITE) or bool(_SECRET_PATTERN.search(content.replace(b"\0", b"")))


def _classify(path: Path, name: str, folder: Path, linked: set[str], include_code: bool) -> IncludedFile | SkippedFile:
    base, allowed = path.name, kinds.is_model_file(path.name) or (name in linked and kinds.is_image(path.name))
    if not allowed:
        reason = kinds.exclusion_reason(base) or (kinds.UNMARKED if is_weight_file(base) else None)
        if reason is not None:
            return SkippedFile(name, reason)
    check_inside(path, folder)
    if not allowed and not (include_code and kinds.is_code(base)):
        return SkippedFile(name, _exclusion_reason(path))
    limit = limits.MAX_JSON if kinds.is_config(base) else limits.MAX_FILE
    if path.stat().st_size > limit:
        return SkippedFile(name, f"larger than {megabytes(limit)} MB")
    content = _read(path, limit)
    try:
        kept = _clean_content(base, content, include_code)
    except ValueError:
        return SkippedFile(name, kinds.SECRET if holds_secret(content) else "not valid JSON")
    if holds_secret(kept):
        return SkippedFile(name, kinds.SECRET)
    if kinds.is_labels(base) and names_local_files(kept):
        return SkippedFile(name, "contains local file paths")
    return IncludedFile(path, name, None if kept == content else kept)


def _clean_content(base: str, content: bytes, include_code: bool) -> bytes:
    if kinds.is_config(base):
        return clean_config(base.lower(), content, include_code)
    if base.lower().endswith(".json"):
        parse_json(content)
    return content


def _exclusion_reason(path: Path) -> str:
    """Why a file of unknown kind is skipped; it may still hold a secret."""
    with suppress(OSError), path.open("rb") as stream:
        if holds_secret(stream.read(1 << 16)):
            return kinds.SECRET
    if kinds.is_code(path.name):
        return kinds.CODE
    return kinds.NOT_SHOWN if kinds.is_image(path.name) else kinds.OTHER


def _included_index(path: Path) -> IncludedFile:
    content = _read(path, limits.MAX_INDEX)
    try:
        kept = clean_index(content)
    except ValueError:
        raise CheckpointError(f"{path} is not an index of weight files: download it again.") from None
    return IncludedFile(path, path.name, None if kept == content else kept)


def _linked_images(card: Path) -> set[str]:
    """Paths, relative to the folder, of the images that a model card shows."""
    if not card.is_file() or card.stat().st_size > limits.MAX_CARD:
        return set()
    text = _read(card, limits.MAX_CARD).decode("utf-8", "replace")
    targets = {next(filter(None, found), "") for found in _IMAGE_LINKS.findall(text)}
    return {posixpath.normpath(unquote(target.split("#")[0].split("?")[0])) for target in targets if target}


def walk_folder(
    top: Path, exclusion_reason: Callable[[str], str | None] = kinds.folder_exclusion_reason
) -> Iterator[tuple[Path, str | None]]:
    """Yields the files below a folder with `None`, and the skipped folders with a reason, breadth first.

    Args:
        top (`Path`): the folder.
        exclusion_reason (callable, *optional*): from a folder's name to the reason to skip it, or `None`.
    """
    waiting, seen = deque([top]), 0
    while waiting:
        folder = waiting.popleft()
        limit = None if folder == top else limits.MAX_FILES_PER_FOLDER + 1
        try:
            with os.scandir(folder) as entries:
                listed = sorted(islice(entries, limit), key=lambda entry: entry.name)
        except OSError:
            yield folder, "a folder that can't be read"
            continue
        seen += len(listed)
        if folder != top and (len(listed) > limits.MAX_FILES_PER_FOLDER or seen > limits.MAX_FILES_IN_FOLDERS):
            yield folder, f"{kinds.OTHER}; too many files"
            continue
        if folder != top and any(entry.name == VAULT_DATABASE for entry in listed):
            yield folder, "a vault"
            continue
        for entry in listed:
            path = folder / entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield path, None
                continue
            reason = exclusion_reason(entry.name)
            if reason is None:
                waiting.append(path)
            else:
                yield path, reason


def truncate_skipped(skipped: list[SkippedFile]) -> Iterator[SkippedFile]:
    """Yields the skipped files; of many in one folder with one reason, the first 20 and the count of the others."""
    count: Counter[tuple[str, str]] = Counter()
    for each in skipped:
        kind = (posixpath.dirname(each.name.rstrip("/")), each.reason)
        count[kind] += 1
        if count[kind] <= _MAX_LISTED:
            yield each
    for (folder, reason), total in count.items():
        if total > _MAX_LISTED:
            yield SkippedFile(posixpath.join(folder, "..."), f"{total - _MAX_LISTED} more: {reason}")


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit, "such a file")
    except OSError as error:
        problem = f"{path.parent / printable(path.name)} can't be read ({error.strerror or error})"
        raise CheckpointError(f"{problem}: fix its permissions, or move it out of the model's folder.") from None
