"""Choose a model's weight files by name."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pt2|pth|th|ckpt|h5|keras|msgpack|onnx|tflite|pb|npz|npy|gguf|ot|pkl|pickle|mlmodel|distcp|mar"
    r"|engine|plan|trt|params|pdparams|tar|tgz|gz|bz2|xz|zst|zip|7z)"
    r"(\.(bak|old|orig|gz|zip|tmp|part|\d+))*$|\.onnx[._]data|\.data-\d+-of-\d+$|\.mlpackage/",
    re.IGNORECASE,
)
PREFERRED_FILES = (
    "model.safetensors", "model.safetensors.index.json", "*.safetensors", "*.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.th",
    "*.pth.tar", "*.pt.tar", "*.pkl", "*.pickle",
)  # fmt: skip
ADAPTER_FILES = "adapter_model.*"
ADAPTER_MESSAGE = (
    "holds an adapter, not a model: merge it into its base (peft: merge_and_unload) and save the full model"
)
INDEX_SUFFIX = ".index.json"
_MAX_LISTED = 8
TRAINING_STATE_FILES = (
    "training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "sampler.bin", "dl_state_dict.bin",
    "rng_state*", "random_states*",
)  # fmt: skip
NOT_MODELS = (*TRAINING_STATE_FILES, ADAPTER_FILES, "openvino_*")


def is_weight_file(name: str) -> bool:
    """Whether a file of this name may hold weights, in any format."""
    return bool(_WEIGHTS.search(name))


def matches(name: str, patterns: str | Iterable[str]) -> bool:
    """Whether the last part of a path matches one of the patterns, ignoring case."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return any(PurePosixPath(name.lower()).match(pattern) for pattern in patterns)


def choose_weights(names: Iterable[str], where: str) -> str:
    """The file with the model's weights: safetensors before pickles, standard names first.

    Raises:
        [`CheckpointError`]: if no file or more than one qualifies. `where` names the folder or repo.
    """
    names = list(names)
    candidates = [n for n in names if not matches(n, NOT_MODELS)]
    for pattern in PREFERRED_FILES:
        found = [n for n in candidates if matches(n, pattern)]
        if len(found) == 1:
            return found[0]
        indexed = not pattern.endswith(INDEX_SUFFIX) and any(n.lower().endswith(INDEX_SUFFIX) for n in candidates)
        if found and not indexed:
            raise CheckpointError(
                f"{where} has several weight files ({format_names(found)}): choose one with --file, such as "
                f"--file {min(found)}."
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
