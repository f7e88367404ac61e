"""Files next to a weight file that hold its weights, as it names them."""

from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
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
        if not path.exists():
            raise InvalidFileError(f"in {shown}, which is missing: download it to the same folder")
        if not path.is_file():
            raise InvalidFileError(f"in {shown}, which is no regular file")
        target, roots = path.resolve(), [folder.resolve()]
        snapshot = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), None)
        if snapshot is not None:  # of the Hub's cache, whose files are links
            roots.append(snapshot.resolve().parent.parent / "blobs")
    except (ValueError, OSError, RuntimeError):  # a null character, a name that is too long, a loop of links
        raise InvalidFileError(f"in {shown}, which can't be opened") from None
    if not any(target.is_relative_to(root) for root in roots):
        raise InvalidFileError(f"in {shown}, a link to outside its folder")
    return path
