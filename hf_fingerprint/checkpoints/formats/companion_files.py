"""Files next to a weight file that hold its weights, as it names them."""

from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.inside import path_problem
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


def find_companion(container: Path, name: PurePosixPath) -> Path:
    """The regular file of this name in or below a weight file's folder. Links to the Hub cache's blobs are allowed.

    Args:
        container (`Path`): the weight file.
        name (`PurePosixPath`): the path in its folder that it gives, which may be hostile.

    Raises:
        [`InvalidFileError`]: if it is elsewhere, missing or no regular file.
    """
    shown = printable(str(name))[:100]
    if name.is_absolute() or ".." in name.parts or "\\" in str(name) or not name.name:
        raise InvalidFileError(f"in a file outside its folder: {shown}")
    folder = container.parent
    path = folder.joinpath(*name.parts)
    try:
        reason = path_problem(path, folder)
    except (CheckpointError, ValueError, OSError, RuntimeError):  # a loop of links, a folder that can't be searched
        reason = "can't be opened: check its permissions"
    if reason is not None:
        raise InvalidFileError(f"in {shown}, which {reason}")
    return path
