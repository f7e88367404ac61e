"""Check that a model's files lie in its folder: a link or a name in a file may point anywhere."""

from pathlib import Path

from hf_fingerprint.checkpoints.naming import exists
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


def check_inside(path: Path, folder: Path) -> None:
    """Checks that a model's file is a regular file inside its folder. Links to the Hub cache's blobs are allowed.

    Raises:
        [`CheckpointError`]: with the file's name, if it is not.
    """
    reason = path_problem(path, folder)
    if reason is not None:
        raise CheckpointError(f"{path.parent / printable(path.name)} {reason}.")


def path_problem(path: Path, folder: Path) -> str | None:
    """What [`check_inside`] finds wrong with a file, to follow its name, or `None`."""
    if not exists(path):
        return "is missing: download the model again, all of its files"
    if not path.is_file():
        return "is not a regular file: remove it or replace it with the file itself"
    target, roots = path.resolve(), [folder.resolve()]
    snapshot = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), None)
    if snapshot is not None:  # of the Hub's cache, whose files are links
        roots.append(snapshot.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        return "is a link to outside its folder: replace it with the file itself"
    return None
