"""Parse model names: a path, a Hub id, or a chosen file in either."""

import errno
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[^:@]+))?(@(?P<revision>[\w./-]+))?(?(file)|(:(?P<file_after>[^:@]+))?)"
)
IN_MEMORY = re.compile(r"\w[\w ]* \(in memory\)")  # the source of a model that was given as a module or a state dict
_SUBFOLDER_END = "/./"  # as in rsync; a recorded file's path never holds it


def format_model_name(name: str | Path, file: str | None) -> str | Path:
    """The model's name, with `:file` appended if one is chosen, or `./file` to a folder in a repo."""
    if file is None:
        return name
    in_subfolder = str(name).endswith("/") and HUB_ID.fullmatch(str(name).removeprefix("hf-hub:")) is not None
    return f"{name}./{file}" if in_subfolder else f"{name}:{file}"


class HubId(NamedTuple):
    """A repo on the Hub, with optional choices in it.

    Attributes:
        repo (`str`): `org/name`.
        revision (`str` or `None`): branch, tag or commit.
        file (`str` or `None`): the chosen file, a path in the model's folder.
        subfolder (`str` or `None`): the model's folder in the repo; `None` for the repo itself.
        variant (`str` or `None`): the chosen variant of the weights.
    """

    repo: str
    revision: str | None
    file: str | None = None
    subfolder: str | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The name to record, without the revision: `org/name`, `org/name:file`, `org/name:subfolder/` or
        `org/name:subfolder/./file`."""
        if self.subfolder is None:
            return str(format_model_name(self.repo, self.file))
        return str(format_model_name(f"{self.repo}:{self.subfolder}/", self.file))

    def path_in_repo(self, name: str) -> str:
        """The path in the repo of a file in the model's folder."""
        return name if self.subfolder is None else f"{self.subfolder}/{name}"

    def names_in_folder(self, names: Iterable[str]) -> list[str]:
        """The paths in the model's folder, of all paths in the repo.

        Raises:
            [`CheckpointError`]: if the repo has no such folder.
        """
        if self.subfolder is None:
            return list(names)
        top = f"{self.subfolder}/"
        found = [name.removeprefix(top) for name in names if name.startswith(top)]
        if not found:
            raise CheckpointError(f"{self.repo} has no folder {printable(self.subfolder)}: check the spelling.")
        return found


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
                return LocalFile(path.resolve(), check_inner_path(file))
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
    chosen = match["file"] or match["file_after"] or ""
    subfolder, _, file = chosen.rpartition(_SUBFOLDER_END) if _SUBFOLDER_END in chosen else ("", "", chosen)
    if chosen.endswith("/"):
        subfolder, file = chosen, ""
    subfolder, file = check_inner_path(subfolder, "folders"), check_inner_path(file)
    return HubId(match["repo"], match["revision"], file or None, subfolder or None)


def check_inner_path(path: str, kind: str = "files") -> str:
    """The normalized path of a file or folder in a model's folder or repo, with `/`; empty for the folder itself.

    Raises:
        [`CheckpointError`]: if it leads out of that folder.
    """
    parts = PurePosixPath(path).parts
    if ".." in parts or path.startswith("/") or "\\" in path:
        raise CheckpointError(f"{printable(path)} leads out of the model's folder: choose one of its {kind}.")
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
