"""Parse model names: a path, a Hub id, or a chosen file in either."""

import errno
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[^:@]+))?(@(?P<revision>[\w./-]+))?(?(file)|(:(?P<file_after>[^:@]+))?)"
)
IN_MEMORY = re.compile(r"\w[\w ]* \(in memory\)")  # the source of a model that was given as a module or a state dict


def format_model_name(name: str | Path, file: str | None) -> str | Path:
    """The model's name, with `:file` appended if one is chosen."""
    return name if file is None else f"{name}:{file}"


class HubId(NamedTuple):
    """A repo on the Hub, with an optional revision and an optional chosen file."""

    repo: str
    revision: str | None
    file: str | None = None

    @property
    def name(self) -> str:
        """The name to record, without the revision."""
        return str(format_model_name(self.repo, self.file))


class LocalFile(NamedTuple):
    """A local folder and a chosen file in it."""

    folder: Path
    file: str

    @property
    def path(self) -> Path:
        return self.folder / self.file


def parse_name(name: str | Path) -> Path | LocalFile | HubId:
    """The place that a model name refers to: an absolute local path, a repo on the Hub, or a file chosen in either.

    Raises:
        [`CheckpointError`]: if the name is none of these.
    """
    text = str(name)
    bare = text.removeprefix("local-dir:")
    folder, _, file = bare.rpartition(":")
    if bare and not text.startswith("hf-hub:"):
        try:
            if exists(path := Path(bare)):
                return path.resolve() if path.is_dir() else path.absolute()
            if folder and file and exists(path := Path(folder)) and path.is_dir():
                return LocalFile(path.resolve(), _check_inner_path(file))
        except OSError as error:
            raise CheckpointError(f"{text} can't be read: {error.strerror or error}.") from None
    hub = parse_hub_id(text)
    if hub is None or text.startswith("local-dir:"):
        raise CheckpointError(
            f"{text} is neither a folder, nor a file, nor a Hub id such as org/name: check the spelling."
        )
    return hub


def parse_hub_id(text: str) -> HubId | None:
    """The parts of a Hub id, or `None` if `text` is not one."""
    match = HUB_ID.fullmatch(text.removeprefix("hf-hub:"))
    if match is None:
        return None
    file = match["file"] or match["file_after"]
    return HubId(match["repo"], match["revision"], None if file is None else _check_inner_path(file))


def _check_inner_path(file: str) -> str:
    """The normalized path of a chosen file in its folder or repo."""
    parts = PurePosixPath(file).parts
    if ".." in parts or file.startswith("/") or "\\" in file:
        raise CheckpointError(f"{printable(file)} leads out of the model's folder: choose one of its files.")
    return "/".join(parts)


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            return False
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from None
    except ValueError:  # a null character
        return False
