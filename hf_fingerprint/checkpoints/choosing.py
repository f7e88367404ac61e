"""Choose a model's weight files by name."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pt2|ptl|pth|th|ckpt|h5|hdf5|keras|msgpack|onnx|ort|tflite|lite|task|pb|npz|npy|gguf|ot|pkl"
    r"|pickle|mlmodel|mil|distcp|mar|pte|engine|plan|trt|params?|pdparams|mnn|rknn|om|dlc|tar|tgz|tbz2|txz|gz|bz2"
    r"|xz|zst|zip|7z|rar|lzma|lz4|apk|aab|xapk|apks|ipa)"
    r"(\.(bak|old|orig|gz|zip|tmp|part|\d+))*$|\.onnx[._]data|\.data-\d+-of-\d+$|(^|/)\.metadata$"
    r"|(^|/)openvino[\w.-]*\.xml$|\.espresso\.(net|weights)$",
    re.IGNORECASE,
)
PREFERRED_FILES = (
    "model.safetensors", "model.safetensors.index.json", "*.safetensors", "*.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.th",
    "*.pth.tar", "*.pt.tar", "*.pkl", "*.pickle", "*.safetensors.index.*.json", "*.bin.index.*.json",
)  # fmt: skip
ADAPTER_FILES = "adapter_model.*"
ADAPTER_MESSAGE = (
    "holds an adapter, not a model: merge it into its base (peft: merge_and_unload) and save the full model"
)
_INDEX = re.compile(r"(?P<weights>.+)\.index(?P<variant>\.[\w-]+(\.[\w-]+)*)?\.json", re.IGNORECASE | re.DOTALL)
_MAX_LISTED = 8
TRAINING_STATE_FILES = (
    "training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "sampler.bin", "dl_state_dict.bin",
    "rng_state*", "random_states*",
)  # fmt: skip
METADATA_FILES = ("coremldata.bin",)  # of a compiled Core ML model
NOT_MODELS = (*TRAINING_STATE_FILES, ADAPTER_FILES, *METADATA_FILES, "openvino_*")


def is_weight_file(name: str) -> bool:
    """Whether a file of this name may hold weights, in any format."""
    return bool(_WEIGHTS.search(name))


def matches(name: str, patterns: str | Iterable[str]) -> bool:
    """Whether the last part of a path matches one of the patterns, ignoring case."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return any(PurePosixPath(name.lower()).match(pattern) for pattern in patterns)


def indexed_weights(name: str) -> str | None:
    """The name of the weights that an index of this name stands for, such as `model.safetensors` for
    `model.safetensors.index.json` or `model.safetensors.index.fp16.json`; `None` for any other file."""
    found = _INDEX.fullmatch(name)
    if found is None or (found["variant"] and not is_weight_file(found["weights"])):
        return None
    return found["weights"]


def possible_shards(index: str, names: Iterable[str]) -> list[str]:
    """The files that may be the shards of an index: those next to it of its format, and of its variant if there are
    such files."""
    found = _INDEX.fullmatch(index)
    variant = found["variant"].removeprefix(".") if found and found["variant"] else None
    place, suffix = PurePosixPath(index).parent, PurePosixPath(indexed_weights(index) or index).suffix
    siblings = [name for name in names if PurePosixPath(name).parent == place and name.endswith(suffix)]
    return [name for name in siblings if variant and without_variant(name, variant)] or siblings


def without_variant(name: str, variant: str | None) -> str | None:
    """The name of a file or shard of this variant as if it had none; `None` if it is not of this variant."""
    if variant is None:
        return name
    plain, count = re.subn(rf"\.{re.escape(variant)}(?=(-\d+-of-\d+)?\.\w+$)", "", name)
    return plain if count else None


def choose_weights(names: Iterable[str], where: str, variant: str | None = None) -> str:
    """The file with the model's weights: safetensors before pickles, standard names first.

    Args:
        names (iterable of `str`): the files.
        where (`str`): the folder or repo, for errors.
        variant (`str`, *optional*): the variant to choose, such as `"fp16"` for `model.fp16.safetensors`.

    Raises:
        [`CheckpointError`]: if no file or more than one qualifies.
    """
    names = list(names)
    plain = {name: without_variant(name, variant) for name in names if not matches(name, NOT_MODELS)}
    candidates = {name: each for name, each in plain.items() if each is not None}
    has_index = any(map(indexed_weights, candidates))
    for pattern in PREFERRED_FILES:
        found = [name for name, each in candidates.items() if matches(each, pattern)]
        if len(found) == 1:
            return found[0]
        indexed = has_index and ".index." not in pattern
        if found and not indexed:
            raise CheckpointError(
                f"{where} has several weight files ({format_names(found)}): choose one with --file, such as "
                f"--file {min(found)}."
            )
    if variant is not None:
        others = format_names(name for name in names if is_weight_file(name) or indexed_weights(name))
        raise CheckpointError(
            f"{where} has no weights of variant {variant}: choose one of {others or 'its variants'}."
        )
    raise no_weights_error(where, names)


def format_names(names: Iterable[str]) -> str:
    """File names, sorted, as one line of text; long lists are truncated."""
    found = [printable(name) for name in sorted(names)]
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ", ".join(found[:_MAX_LISTED]) + more


def no_weights_error(where: str, names: Iterable[str] = ()) -> CheckpointError:
    """The error for a folder or repo without weights. `names` lists its files."""
    names = list(names)
    if any(matches(name, ADAPTER_FILES) for name in names):
        return CheckpointError(f"{where} {ADAPTER_MESSAGE}.")
    others = [name for name in names if is_weight_file(name) and not matches(name, NOT_MODELS)]
    if others:
        return CheckpointError(
            f"{where} has no model weights in a supported format ({format_names(others)}): convert them to "
            f"safetensors."
        )
    return CheckpointError(
        f"{where} has no model weights (.safetensors, or .bin and .pth): is it the right folder or repo?"
    )


def missing_file_error(where: str, file: str, there: Iterable[str]) -> CheckpointError:
    """The error for a chosen file that does not exist. `there` lists the files that do."""
    found, problem = format_names(there), f"{where} has no file {printable(file)}"
    rest = f": choose one of {found}." if found else " and no weight files: is it the right folder or repo?"
    return CheckpointError(problem + rest)
