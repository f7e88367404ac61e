"""Model JSON files without traces of the machine and the account that saved them.

Libraries record the path a model was loaded from, the token and the commit. No loader needs them, and they reveal the
owner or the unmarked base to a recipient. A file in which nothing is dropped keeps its bytes.
"""

import json
import re
from typing import Any

from hf_fingerprint.checkpoints.limits import MAX_CONFIG_VALUES, parse_json


CONFIG = "config.json"
FORMATS = frozenset(["pt", "tf", "flax", "mlx", "np"])
_DROPPED_KEYS = frozenset([
    "_name_or_path", "name_or_path", "_commit_hash", "token", "hf_token", "auth_token", "use_auth_token",
    "access_token", "api_key", "password",
])  # fmt: skip
_TOTALS = ("total_size", "total_parameters")
_LABEL_KEYS = frozenset(["id2label", "label2id", "label_names"])  # labels such as "/m/01g317" are no paths
_PATH = re.compile(r"(file://|~[\w.-]*/|/[^/\s]+/\S|[A-Za-z]:[\\/]|\\\\\w)")
_HOMES = r"(file://|~/|/(home|Users|root|mnt|tmp|private|scratch)/|[A-Za-z]:\\)"
_PATH_WITHIN = re.compile(rf"(^|[\s\"'=:(\[,]){_HOMES}")


def clean_config(name: str, content: bytes, include_code: bool) -> bytes:
    """The configuration of a model, preprocessor or tokenizer, cleaned for recipients.

    Args:
        name (`str`): file name; in `config.json`, values that timm writes twice are deduplicated for transformers.
        content (`bytes`): content of the file.
        include_code (`bool`): whether the model's code goes along, so that `auto_map` may point to it.

    Returns:
        `bytes`: the same bytes if there is nothing to drop.

    Raises:
        [`ValueError`]: if `content` is not JSON.
    """
    found = parse_json(content, MAX_CONFIG_VALUES)
    try:
        kept = _clean(found, include_code)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if name == CONFIG and isinstance(kept, dict):
        kept = _deduplicate_num_classes(kept)
    return content if kept == found else (json.dumps(kept, indent=2) + "\n").encode()


def clean_index(content: bytes) -> bytes:
    """An index of sharded weights, reduced to the weight map and the total sizes.

    Raises:
        [`ValueError`]: if `content` is not such an index.
    """
    found = parse_json(content)
    if not isinstance(found, dict) or not isinstance(found.get("weight_map"), dict):
        raise ValueError("no index")
    kept = {key: value for key, value in found.items() if key in ("metadata", "weight_map")}
    if "metadata" in kept:
        metadata = kept["metadata"] if isinstance(kept["metadata"], dict) else {}
        kept["metadata"] = {k: v for k, v in metadata.items() if k in _TOTALS and isinstance(v, int | float)}
    return content if kept == found else (json.dumps(kept, indent=2) + "\n").encode()


def clean_header(text: bytes) -> bytes:
    """A safetensors header's JSON with nothing but `format` in its `__metadata__`; tensors keep order and offsets."""
    header = parse_json(text)
    metadata = header.get("__metadata__")
    if metadata is None or (metadata.keys() <= {"format"} and metadata.get("format", "pt") in FORMATS):
        return text
    if metadata.get("format") in FORMATS:
        header["__metadata__"] = {"format": metadata["format"]}
    else:
        del header["__metadata__"]
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def names_local_files(content: bytes) -> bool:
    """Whether a file, such as a list of labels, contains local file paths."""
    return bool(_PATH_WITHIN.search(content.decode("utf-8", "replace")))


def _clean(value: Any, include_code: bool, key: str = "") -> Any:
    """The value without dropped keys and without strings that are paths."""
    if isinstance(value, list) and key in _LABEL_KEYS:
        return [_clean_label(each) for each in value]
    if isinstance(value, list):
        return [_clean(each, include_code, key) for each in value if not _is_path(each)]
    if not isinstance(value, dict):
        return value
    if key in _LABEL_KEYS:
        return {_clean_label(name): _clean_label(each) for name, each in value.items()}
    kept = {}
    for name, each in value.items():
        secret = name in _DROPPED_KEYS and (each is None or isinstance(each, str | bool))
        if secret or _is_path(each):
            continue
        kept[name] = _clean(each, include_code, name)
        if name == "auto_map" and not include_code:
            kept[name] = _external_auto_map(kept[name])
            if not kept[name]:
                del kept[name]
    return kept


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(_PATH.match(value) or _PATH_WITHIN.search(value))


def _clean_label(value: Any) -> Any:
    """The class name; for a local path, its last part."""
    if isinstance(value, str) and _PATH_WITHIN.search(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def _external_auto_map(auto_map: Any) -> Any:
    """The entries that point to code in another repo (`org/name--module.Class`), which the recipient can load."""
    if isinstance(auto_map, dict):
        return {name: each for name, each in auto_map.items() if "--" in str(each)}
    return auto_map if "--" in str(auto_map) else None


def _deduplicate_num_classes(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with `num_classes` once: timm >= 1.0.31 repeats it in `model_args`, and transformers would
    pass it twice."""
    arguments = config.get("model_args")
    if "architecture" not in config or not isinstance(arguments, dict) or "num_classes" not in arguments:
        return config
    kept = {name: value for name, value in config.items() if name != "model_args"}
    kept.setdefault("num_classes", arguments["num_classes"])
    rest = {name: value for name, value in arguments.items() if name != "num_classes"}
    return kept | ({"model_args": rest} if rest else {})
