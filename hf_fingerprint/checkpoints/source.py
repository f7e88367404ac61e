"""Resolve a model name (a folder, a file or a Hub id) to the files with its weights.

```python
resolve("models/lite0")  # a timm or transformers folder
resolve("model.safetensors")  # one file
resolve("org/name"), resolve("org/name@v2"), resolve("hf-hub:org/name")
resolve("local-dir:models/lite0"), resolve("org/name:old.pth@v2")
resolve("models/lite0", file="old.pth")  # one of several; the same as "models/lite0:old.pth"
resolve("org/name", options=HubOptions(subfolder="vision"))  # the same as "org/name:vision/"
```

The format of a file is detected from its content, not its name.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from hf_fingerprint.checkpoints.choosing import (
    NOT_MODELS,
    choose_weights,
    indexed_weights,
    is_weight_file,
    matches,
    missing_file_error,
    possible_shards,
)
from hf_fingerprint.checkpoints.configs import CONFIG
from hf_fingerprint.checkpoints.formats.recognition import (
    SAFETENSORS,
    detect_format,
    inspect_file,
    is_format,
    is_supported,
)
from hf_fingerprint.checkpoints.hub_client import fetch_cached_snapshot, fetch_snapshot
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions, locate
from hf_fingerprint.checkpoints.inside import check_inside
from hf_fingerprint.checkpoints.limits import MAX_FILES_PER_FOLDER, MAX_INDEX, MAX_SHARDS, parse_json, read_bounded
from hf_fingerprint.checkpoints.naming import HubId, LocalFile, exists, format_model_name, parse_hub_id
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    Attributes:
        name (`str`): name to record: an absolute path, or `org/name` with the chosen file or folder.
        folder (`Path`): folder of its files.
        weights (`tuple[Path, ...]`): files with its weights, in order.
        index (`Path` or `None`): index of sharded weights.
        revision (`str` or `None`): commit, for a model from the Hub.
        owns_folder (`bool`): whether the whole folder belongs to the model; `False` if it was given as a single file.
        access ([`HubOptions`]): the token and the cache that reach the model on the Hub again.
        file_names (`tuple[str, ...]`): names of the files to show, if a suspect has several folders or archives.
        archive (anything): the unpacked archive that holds the files, which are deleted with it.
    """

    name: str
    folder: Path
    weights: tuple[Path, ...]
    index: Path | None
    revision: str | None
    owns_folder: bool
    access: HubOptions = field(default=NO_OPTIONS, repr=False, compare=False)
    file_names: tuple[str, ...] = field(default=(), repr=False, compare=False)
    archive: object = field(default=None, repr=False, compare=False)

    @property
    def location(self) -> str:
        """The name by which [`resolve`] finds this very model again."""
        return self.name if self.revision is None else f"hf-hub:{self.name}@{self.revision}"

    @property
    def shown_files(self) -> tuple[str, ...]:
        """Names of the weight files to show; they may be hostile."""
        return self.file_names or tuple(path.name for path in self.weights)

    @property
    def in_memory(self) -> bool:
        """Whether it is a module or a state dict, without files."""
        return not self.weights

    @cached_property
    def pickled(self) -> bool:
        """Whether the weights are not in safetensors: in another format, by the first file's content, else by its
        name, or in memory."""
        if self.in_memory:
            return True
        first = self.weights[0]
        with suppress(CheckpointError):
            if self.folder != Path():  # Path() stands for a model on the Hub that is read by ranges
                return is_format(found := inspect_file(first)) and found != SAFETENSORS
        return not first.name.lower().endswith(".safetensors")


def resolve(
    name: str | Path,
    weights_only: bool = False,
    file: str | None = None,
    options: HubOptions = NO_OPTIONS,
    max_bytes: int | None = None,
) -> Source:
    """The local files of a model given by path or Hub id; downloads them if needed.

    Args:
        name (`str` or `Path`): a folder, a weight file, `org/name[@revision]`, `hf-hub:org/name` or
            `local-dir:folder`. An existing path takes precedence over a Hub id. `org/name:folder/` is a folder in a
            repo.
        weights_only (`bool`, *optional*, defaults to `False`): whether to download only the weights from the Hub.
        file (`str`, *optional*): weight file, or index of weight files, to use in the folder or repo.
        options ([`HubOptions`], *optional*): where in the folder or repo, and how to reach it.
        max_bytes (`int`, *optional*): how much may be downloaded from the Hub.

    Raises:
        [`CheckpointError`]: if there is no such model, it has no readable weights, its files point elsewhere, or the
            download is larger.
    """
    location = locate(name, file, options)
    if isinstance(location, HubId):
        wanted, access = partial(_select_files, location, weights_only), options.access
        found = _from_snapshot(location, *fetch_snapshot(location.repo, location.revision, wanted, access, max_bytes))
        return replace(found, access=access)
    try:
        return _from_chosen_file(location) if isinstance(location, LocalFile) else _from_path(location)
    except OSError as error:
        raise CheckpointError(f"{name} can't be read: {error.strerror or error}.") from None


def resolve_cached(repo: str, revision: str, options: HubOptions = NO_OPTIONS) -> Source:
    """The weights of a commit from the local cache, without querying the Hub.

    Args:
        repo (`str`): a [`Source`]'s name.
        revision (`str`): the commit.
        options ([`HubOptions`], *optional*): for its cache.

    Raises:
        [`CheckpointError`]: if they are not complete in the cache.
    """
    hub = parse_hub_id(repo) or HubId(repo, None)
    wanted = partial(_select_files, hub, True)
    found = fetch_cached_snapshot(hub.repo, revision, wanted, "not requested", options.access)
    return replace(_from_snapshot(hub, *found), access=options.access)


def _from_path(path: Path) -> Source:
    if path.is_dir():
        return _from_folder(path, str(path), None)
    if indexed_weights(path.name):
        return _from_index(path, str(path), None, owns_folder=False)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: give a .safetensors file, a model folder or a Hub id.")
    detect_format(path)
    return Source(str(path), path.parent, (path,), None, None, owns_folder=False)


def _from_chosen_file(chosen: LocalFile) -> Source:
    """A file chosen in a model's folder."""
    folder, name = chosen.folder, str(format_model_name(chosen.folder, chosen.file))
    if not exists(chosen.path):
        there = sorted(entry.name for entry in folder.iterdir() if is_weight_file(entry.name))
        raise missing_file_error(str(folder), chosen.file, there)
    return _from_file(folder, chosen.file, name, None)


def _from_folder(folder: Path, name: str, revision: str | None) -> Source:
    names = [p.name for p in folder.iterdir() if not p.is_dir()]
    try:
        chosen = choose_weights(names, name)
    except CheckpointError:
        others = [each for each in sorted(names)[:MAX_FILES_PER_FOLDER] if not matches(each, NOT_MODELS)]
        read = [each for each in others if not is_weight_file(each) and is_supported(folder / each)]
        if len(read) != 1 or any(map(is_weight_file, others)):
            raise
        chosen = read[0]
    return _from_file(folder, chosen, name, revision)


def _from_file(folder: Path, file: str, name: str, revision: str | None) -> Source:
    """One weight file of a model's folder, or the shards that an index names."""
    path = folder / file
    if indexed_weights(file):
        return _from_index(path, name, revision, owns_folder=path.parent == folder)
    check_inside(path, folder)
    return Source(name, folder, (path,), None, revision, owns_folder=True)


def _from_index(index: Path, name: str, revision: str | None, owns_folder: bool) -> Source:
    check_inside(index, index.parent)
    try:
        shards = parse_shards(read_bounded(index, MAX_INDEX, "an index of weight files"))
    except OSError:
        raise CheckpointError(f"{index} is not an index of weight files: download it again.") from None
    except ValueError as error:
        raise CheckpointError(f"{index} {error}.") from None
    for shard in shards:
        check_inside(index.parent / shard, index.parent)
    return Source(name, index.parent, tuple(index.parent / s for s in shards), index, revision, owns_folder)


def parse_shards(index: bytes) -> list[str]:
    """The shard names in an index of sharded weights, all of them in the index's folder.

    Raises:
        [`ValueError`]: with the problem and the remedy, to follow the index's name.
    """
    try:
        shards = sorted({str(shard) for shard in parse_json(index.decode())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("is not an index of weight files: download it again") from None
    if not shards:
        raise ValueError("names no weight files: download it again")
    if len(shards) > MAX_SHARDS:
        most = f"no model has more than {MAX_SHARDS}"
        raise ValueError(f"names {len(shards)} weight files, and {most}: download it again")
    for shard in shards:
        if len(shard) > 255:
            raise ValueError("names a file whose name is too long for any disk: don't use this model")
        if PurePosixPath(shard).name != shard or "\\" in shard:
            raise ValueError(f"points to {printable(shard)}, outside its folder: don't use this model")
        if not is_weight_file(shard):
            raise ValueError(f"points to {printable(shard)}, which is not a weight file: don't use this model")
    return shards


def _from_snapshot(hub_id: HubId, folder: Path, commit: str) -> Source:
    folder = folder if hub_id.subfolder is None else folder / hub_id.subfolder
    if hub_id.variant is not None:
        names = [path.name for path in folder.iterdir() if not path.is_dir()]
        hub_id = hub_id._replace(file=choose_weights(names, hub_id.name, hub_id.variant))
    if hub_id.file is None:
        return _from_folder(folder, hub_id.name, commit)
    return _from_file(folder, hub_id.file, hub_id.name, commit)


def _select_files(hub_id: HubId, weights_only: bool, in_repo: list[str]) -> list[str]:
    names, chosen = hub_id.names_in_folder(in_repo), hub_id.file
    if chosen is None:
        chosen = choose_weights([name for name in names if "/" not in name], hub_id.name, hub_id.variant)
    elif chosen not in names:
        raise missing_file_error(hub_id._replace(file=None).name, chosen, filter(is_weight_file, names))
    weights = {chosen, *(possible_shards(chosen, names) if indexed_weights(chosen) else ())}
    if weights_only:
        selected = weights | ({CONFIG} & set(names))
    else:
        selected = {name for name in names if name in weights or not is_weight_file(name)}
    return sorted(map(hub_id.path_in_repo, selected))
