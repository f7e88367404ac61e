"""Keeps vaults out of model folders, and output out of vaults.

Model folders are copied and pushed, so a vault in one is a `push_to_hub` away from being public.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hf_fingerprint.checkpoints import Source
from hf_fingerprint.checkpoints.contents import SQLITE, VAULT_DATABASE
from hf_fingerprint.checkpoints.limits import MAX_CONFIG_VALUES, MAX_JSON, parse_json, read_bounded
from hf_fingerprint.errors import CheckpointError, VaultError


_MAX_ENTRIES = 20_000
_SKIPPED_FOLDERS = frozenset([".git", ".cache", "__pycache__"])
_WEIGHTS = [name + ending for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", ".index.json")]
_MODEL_CONFIG_KEYS = frozenset(["model_type", "architectures", "architecture"])


def find_enclosing_vault(place: Path) -> Path | None:
    """The vault that contains a path, or is it, with links resolved; `None` if there is none."""
    resolved = place.resolve()
    return next((folder for folder in (resolved, *resolved.parents) if _is_database(folder / VAULT_DATABASE)), None)


def find_vault_inside(folder: Path, include_identities: bool = False) -> Path | None:
    """A vault's database in a folder or below it; `None` if its first 20,000 entries, breadth first, have none.

    Args:
        folder (`Path`): the folder.
        include_identities (`bool`, *optional*, defaults to `False`): also find the file of a tracing identity.
    """
    for path in islice(_walk(folder), _MAX_ENTRIES):
        if path.name == VAULT_DATABASE and _is_database(path):
            return path
        if include_identities and path.name.startswith("identity") and path.suffix == ".age":
            return path
    return None


def check_outside_vaults(place: Path) -> None:
    """Raises an error if an output path is inside a vault.

    Raises:
        [`VaultError`]: with the vault.
    """
    found = find_enclosing_vault(place)
    if found is not None:
        raise VaultError(f"{place} is inside the vault {found}: choose a place outside it.")


def check_holds_no_vault(folder: Path, what: str, vault: Path, include_identities: bool = False) -> None:
    """Raises an error if a folder that will be shared holds a vault, this one or another.

    Args:
        folder (`Path`): the folder.
        what (`str`): what the folder is, such as "the model's folder".
        vault (`Path`): the folder of the vault in use.
        include_identities (`bool`, *optional*, defaults to `False`): see [`find_vault_inside`].

    Raises:
        [`VaultError`]: with the vault.
    """
    if vault.resolve().is_relative_to(folder.resolve()):
        raise VaultError(f"{vault} is inside {what} {folder}: move the vault out of it.")
    found = find_vault_inside(folder, include_identities) if folder.is_dir() else None
    if found is not None:
        raise VaultError(f"{found} is inside {what} {folder}: move the vault out of it.")


def check_model_folder(source: Source, vault: Path) -> None:
    """Raises an error if a model's folder holds a vault.

    Raises:
        [`VaultError`]: with the vault.
    """
    if source.owns_folder:
        check_holds_no_vault(source.folder, "the model's folder", vault)


def check_outside_models(folder: Path) -> None:
    """Raises an error if the folder for a new vault is a model's, or inside one.

    Raises:
        [`VaultError`]: with the model's folder.
    """
    resolved = folder.resolve()
    found = next((each for each in (resolved, *resolved.parents) if _is_model(each)), None)
    if found is not None:
        raise VaultError(f"{folder} is inside the model folder {found}, and may be pushed: choose a place outside it.")


def _walk(top: Path) -> Iterator[Path]:
    """All files and folders below a folder, breadth first; links are not followed."""
    queue = deque([top])
    while queue:
        folder = queue.popleft()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False) and entry.name not in _SKIPPED_FOLDERS:
                        queue.append(Path(entry.path))
        except OSError:
            continue


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return path.is_file() and stream.read(len(SQLITE)) == SQLITE
    except OSError:
        return False


def _is_model(folder: Path) -> bool:
    try:
        if any((folder / name).is_file() for name in _WEIGHTS):
            return True
        config = parse_json(read_bounded(folder / "config.json", MAX_JSON, "a configuration"), MAX_CONFIG_VALUES)
    except (CheckpointError, OSError, ValueError):
        return False
    return isinstance(config, dict) and not _MODEL_CONFIG_KEYS.isdisjoint(config)
