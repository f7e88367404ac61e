"""What a model's name means: a folder, a file or a Hub id, and which files hold its weights.

```python
resolve("models/lite0")  # a timm or transformers folder
resolve("model.safetensors")  # one file
resolve("org/name"), resolve("org/name@v2"), resolve("hf-hub:org/name")
resolve("local-dir:models/lite0")
```
"""

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hf_fingerprint.checkpoints.hub import fetch_snapshot, from_cache
from hf_fingerprint.checkpoints.limits import MAX_INDEX, MAX_SHARDS, parse_json, read_bounded
from hf_fingerprint.checkpoints.names import printable
from hf_fingerprint.errors import CheckpointError


HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pt2|pth|ckpt|h5|keras|msgpack|onnx|tflite|pb|npz|npy|gguf|ot|pkl|pickle|mlmodel|distcp|mar"
    r"|engine|plan|trt|params|pdparams|tar|tgz|gz|bz2|xz|zst|zip|7z)"
    r"(\.(bak|old|orig|gz|zip|tmp|part|\d+))*$|\.onnx[._]data|\.data-\d+-of-\d+$|\.mlpackage/",
    re.IGNORECASE,
)
PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "*.bin",
    "*.pth",
    "*.pt",
    "*.ckpt",
)
NOT_MODELS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "adapter_model.*")


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    Attributes:
        name (`str`): what to record: an absolute path, or `org/name`.
        folder (`Path`): where its files are.
        weights (`tuple[Path, ...]`): the files with its weights, in order.
        index (`Path` or `None`): the index of sharded weights.
        revision (`str` or `None`): the commit, for a model from the Hub.
        whole_folder (`bool`): whether the folder is the model's own, or just where one file happens to be.
    """

    name: str
    folder: Path
    weights: tuple[Path, ...]
    index: Path | None
    revision: str | None
    whole_folder: bool

    @property
    def pickled(self) -> bool:
        """Whether the weights are in PyTorch's pickle format."""
        return self.weights[0].suffix in PICKLES


def is_weights(name: str) -> bool:
    """Whether a file of this name may hold weights, in whatever form."""
    return bool(_WEIGHTS.search(name))


def resolve(name: str | Path, weights_only: bool = False) -> Source:
    """Finds a model by path or Hub id, downloading it if need be.

    Args:
        name (`str` or `Path`): a folder, a weight file, `org/name[@revision]`, `hf-hub:org/name` or
            `local-dir:folder`. An existing path wins over a Hub id of the same spelling.
        weights_only (`bool`, *optional*, defaults to `False`): from the Hub, fetch the weights and no other file.

    Returns:
        [`Source`]

    Raises:
        [`CheckpointError`]: if there is no such model, it has no weights that can be read, or its files point
        elsewhere.
    """
    place = place_of(name)
    if isinstance(place, HubId):
        return _from_hub(place.repo, place.revision, weights_only)
    try:
        return _local(place)
    except OSError as error:
        raise CheckpointError(f"{name} can't be read: {error.strerror or error}.") from None


class HubId(NamedTuple):
    """A repo on the Hub, and the revision that is asked for, if one is."""

    repo: str
    revision: str | None


def place_of(name: str | Path) -> Path | HubId:
    """Where a model is, by its name, without a look at it: an absolute path here, or a repo on the Hub.

    Raises:
        [`CheckpointError`]: if it is neither.
    """
    text = str(name)
    path = Path(text.removeprefix("local-dir:"))
    if text.removeprefix("local-dir:") and not text.startswith("hf-hub:") and exists(path):
        try:
            return path.resolve() if path.is_dir() else path.absolute()
        except OSError as error:
            raise CheckpointError(f"{text} can't be read: {error.strerror or error}.") from None
    match = HUB_ID.fullmatch(text.removeprefix("hf-hub:"))
    if match is None or text.startswith("local-dir:"):
        raise CheckpointError(
            f"{text} is neither a folder, nor a file, nor a Hub id such as org/name: check the spelling."
        )
    return HubId(match["repo"], match["revision"])


def resolve_cached(repo: str, revision: str) -> Source:
    """Finds the weights of a commit on the Hub in the local cache, without asking the Hub.

    Raises:
        [`CheckpointError`]: if they are not whole in the cache.
    """
    folder, commit = from_cache(repo, revision, lambda names: _wanted(names, repo, weights_only=True), "not asked for")
    return _folder(folder, repo, commit)


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            return False
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from None
    except ValueError:  # a null character
        return False


def _local(path: Path) -> Source:
    if path.is_dir():
        return _folder(path, str(path), None)
    if path.name.endswith(".index.json"):
        return _sharded(path, str(path), None, whole_folder=False)
    if path.suffix != ".safetensors" and path.suffix not in PICKLES:
        raise CheckpointError(f"{path} is not a weight file: give a .safetensors file, a model folder or a Hub id.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: give a .safetensors file, a model folder or a Hub id.")
    return Source(str(path), path.parent, (path,), None, None, whole_folder=False)


def _folder(folder: Path, name: str, revision: str | None) -> Source:
    chosen = choose_weights([p.name for p in folder.iterdir() if not p.is_dir()], name)
    if chosen.endswith(".index.json"):
        return _sharded(folder / chosen, name, revision, whole_folder=True)
    check_inside(folder / chosen, folder)
    return Source(name, folder, (folder / chosen,), None, revision, whole_folder=True)


def choose_weights(names: Iterable[str], where: str) -> str:
    """Which of a model's files holds its weights: safetensors before pickles, a standard name before another."""
    candidates = [n for n in names if not any(PurePosixPath(n).match(pattern) for pattern in NOT_MODELS)]
    for pattern in PREFERRED:
        found = [n for n in candidates if PurePosixPath(n).match(pattern)]
        if len(found) == 1:
            return found[0]
        indexed = not pattern.endswith(".index.json") and any(n.endswith(".index.json") for n in candidates)
        if found and not indexed:
            raise CheckpointError(
                f"{where} has several weight files ({', '.join(sorted(found))}): name the one to use."
            )
    raise no_weights(where)


def no_weights(where: str) -> CheckpointError:
    """What is said of a folder or a repo without weights."""
    return CheckpointError(
        f"{where} has no model weights (.safetensors, or .bin and .pth): is it the right folder or repo?"
    )


def _sharded(index: Path, name: str, revision: str | None, whole_folder: bool) -> Source:
    check_inside(index, index.parent)
    try:
        shards = shards_of(read_bounded(index, MAX_INDEX, "an index of weight files"))
    except OSError:
        raise CheckpointError(f"{index} is not an index of weight files: get it again.") from None
    except ValueError as error:
        raise CheckpointError(f"{index} {error}.") from None
    for shard in shards:
        check_inside(index.parent / shard, index.parent)
    return Source(name, index.parent, tuple(index.parent / s for s in shards), index, revision, whole_folder)


def shards_of(index: bytes) -> list[str]:
    """The files that an index of sharded weights names, all of them beside it.

    Raises:
        [`ValueError`]: what is wrong with it and what to do, to be said after its name.
    """
    try:
        shards = sorted({str(shard) for shard in parse_json(index.decode())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("is not an index of weight files: get it again") from None
    if not shards:
        raise ValueError("names no weight files: get it again")
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"names {len(shards)} weight files, and no model has more than {MAX_SHARDS}: get it again")
    for shard in shards:
        if len(shard) > 255:
            raise ValueError("names a file that no disk has a name for: don't use this model")
        if PurePosixPath(shard).name != shard or "\\" in shard:
            raise ValueError(f"points to {printable(shard)}, outside its folder: don't use this model")
        if not is_weights(shard):
            raise ValueError(f"points to {printable(shard)}, which is not a weight file: don't use this model")
    return shards


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a model's file that is missing, not a regular file, or a link out of its folder (the Hub cache's blobs
    are in).

    Raises:
        [`CheckpointError`]: by its name.
    """
    reason = why_not_inside(path, folder)
    if reason is not None:
        raise CheckpointError(f"{path.parent / printable(path.name)} {reason}.")


def why_not_inside(path: Path, folder: Path) -> str | None:
    """Why a model's file is not one to read, to be said after its name, if there is a reason; see [`check_inside`]."""
    if not exists(path):
        return "is missing: get the model again, all of its files"
    if not path.is_file():
        return "is not a regular file: remove it or put the file itself in its place"
    target, roots = path.resolve(), [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in roots):
        return "is a link to outside its folder: put the file itself in its place"
    return None


def _from_hub(repo: str, revision: str | None, weights_only: bool) -> Source:
    folder, commit = fetch_snapshot(repo, revision, lambda names: _wanted(names, repo, weights_only))
    return _folder(folder, repo, commit)


def _wanted(names: list[str], repo: str, weights_only: bool) -> list[str]:
    chosen = choose_weights([name for name in names if "/" not in name], repo)
    suffix = PurePosixPath(chosen.removesuffix(".index.json")).suffix
    shards = {n for n in names if n.endswith(suffix) and "/" not in n} if chosen.endswith(".index.json") else set()
    weights = {chosen} | shards
    if weights_only:
        return sorted(weights | ({"config.json"} & set(names)))
    return sorted(name for name in names if name in weights or not is_weights(name))
