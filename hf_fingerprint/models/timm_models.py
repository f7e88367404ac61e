"""Build timm models from untrusted configurations.

`timm.create_model` follows references to repos, URLs and files in its arguments. Here it only gets the name of an
architecture that timm itself registers, plain values for arguments that the architecture's classes declare, and no
weights.
"""

import inspect
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.configuration import check_count, check_size, plain_entries, printable_value
from hf_fingerprint.models.weights import bounded_construction, load_weights


if TYPE_CHECKING:
    import torch


_ARCHITECTURE = re.compile(r"(?P<name>[a-z0-9_]{1,100})(\.[A-Za-z0-9_]{1,100})?")  # the tag of its weights is optional
_HEADLESS = ["TimmWrapperModel"]
_NORMS = frozenset(["bn_eps", "bn_momentum", "bn_tf"])  # accepted by timm's builders, not declared by classes
_LOADER_ARGUMENTS = frozenset(["cfg", "features_only", "out_indices", "feature_cfg", "pruned", "device", "dtype"])
_INPUTS = ("input_size", "test_input_size", "min_input_size", "fixed_input_size", "mean", "std")
_CROPPING = ("interpolation", "crop_pct", "test_crop_pct", "crop_mode")
_DATA = (*_INPUTS, *_CROPPING, "num_classes", "pool_size", "test_pool_size", "first_conv", "classifier")


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is timm's, or that of transformers' timm wrapper."""
    return config.get("model_type") == "timm_wrapper" or ("architecture" in config and "pretrained_cfg" in config)


def build_timm(checkpoint: Checkpoint, config: Mapping[str, Any], where: str) -> BuiltModel:
    """A timm model with the checkpoint's weights.

    Args:
        checkpoint ([`Checkpoint`]): the open weights.
        config (mapping): the model's configuration.
        where (`str`): file of the configuration, for errors.

    Raises:
        [`BuildError`]: if timm has no such architecture, the configuration has invalid entries, or the weights don't
            match.
    """
    architecture = _check_architecture(config.get("architecture"), where)
    arguments = _select_arguments(architecture, config, where)
    data = _select_data_config(config.get("pretrained_cfg"), where)
    classes = arguments.pop("num_classes", config.get("num_classes", data.get("num_classes", 1000)))
    if config.get("architectures") == _HEADLESS:
        classes = 0
    arguments["num_classes"] = data["num_classes"] = check_count(classes, "num_classes", where)
    if "img_size" in arguments:  # the size of the position embeddings; pretrained_cfg may hold another one
        side = arguments["img_size"]
        sides = side if isinstance(side, tuple) else (side, side)
        data["input_size"] = check_size((data.get("input_size", (3,))[0], *sides), where)
    module = _create_module(architecture, arguments, data, checkpoint)
    load_weights(module, checkpoint)
    return describe_timm(module.float().eval(), module, where)


def describe_timm(module: "torch.nn.Module", timm_model: Any, where: str) -> BuiltModel:
    """A module with the preprocessing and the kind of output of the timm model that it is, or that it wraps."""
    from timm.data import create_transform, resolve_model_data_config

    data_config = resolve_model_data_config(timm_model)
    return BuiltModel(
        module,
        check_size(tuple(data_config["input_size"]), where),
        data_config["mean"],
        data_config["std"],
        create_transform(**data_config, is_training=False),
        {0: "features", 1: "multi_label"}.get(timm_model.num_classes),
    )


def _check_architecture(name: object, where: str) -> str:
    """The name of an architecture that timm itself registers, without the tag of its weights."""
    from timm.models import is_model, model_entrypoint

    found = _ARCHITECTURE.fullmatch(name) if isinstance(name, str) else None
    known = found is not None and is_model(found["name"])
    if found is None or not known or not model_entrypoint(found["name"]).__module__.startswith("timm."):
        problem = f"names {printable_value(name)}, which is not a timm architecture"
        raise BuildError(f"{where} {problem}: check it, or upgrade timm.")
    return found["name"]


def _select_arguments(architecture: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model arguments in a configuration; each must be one of a model class in the architecture's module."""
    model_args = config.get("model_args") or {}
    if not isinstance(model_args, dict):
        raise BuildError(f"{where} has model_args that are not a JSON object: download the model's folder again.")
    known = _argument_names(architecture)
    unknown = [name for name, value in model_args.items() if name not in known and value is not None]
    if unknown:
        problem = f"has {printable_value(unknown[0])} among its model_args, which {architecture} doesn't accept"
        raise BuildError(f"{where} {problem}: remove it if you trust the model.")
    return _as_tuples(plain_entries(model_args, known, where))


def _argument_names(architecture: str) -> frozenset[str]:
    """The arguments of the model classes in an architecture's module, without those of timm's loader."""
    from timm.models import create_model, model_entrypoint
    from timm.models._builder import build_model_with_cfg
    from torch.nn import Module

    loaders = (inspect.signature(loader).parameters for loader in (create_model, build_model_with_cfg))
    refused = _LOADER_ARGUMENTS.union(*loaders)
    classes = vars(sys.modules[model_entrypoint(architecture).__module__]).values()
    modules = [each for each in classes if inspect.isclass(each) and issubclass(each, Module)]
    signatures = (inspect.signature(each.__init__).parameters for each in modules)
    named = (signature for signature in signatures if "num_classes" in signature)
    return _NORMS.union(*named) - refused - {"self"}


def _select_data_config(pretrained_cfg: object, where: str) -> dict[str, Any]:
    """The entries of `pretrained_cfg` about inputs and classes, without those about the source of weights."""
    found = _as_tuples(plain_entries(pretrained_cfg, _DATA, where)) if isinstance(pretrained_cfg, dict) else {}
    for name in ("input_size", "test_input_size"):
        if name in found:
            check_size(found[name] if isinstance(found[name], tuple) else (0, 0, 0), where)
    for name in ("crop_pct", "test_crop_pct"):
        share = found.get(name, 1.0)
        if not isinstance(share, int | float) or not 0.1 <= share <= 4:
            raise BuildError(f"{where} gives {name} as {printable_value(share)}: it must be from 0.1 to 4.")
    return found


def _as_tuples(value: Any) -> Any:
    """The value with tuples for lists, as in timm's own configurations."""
    if isinstance(value, dict):
        return {name: _as_tuples(each) for name, each in value.items()}
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value


def _create_module(
    architecture: str, arguments: dict[str, Any], data: dict[str, Any], checkpoint: Checkpoint
) -> "torch.nn.Module":
    """The model with random weights; created on the meta device first, to bound its size."""
    import torch
    from timm import create_model

    pretrained_cfg = dict(data, architecture=architecture)
    for device in ("meta", "cpu"):
        with bounded_construction(checkpoint), torch.device(device):
            module = create_model(architecture, pretrained=False, pretrained_cfg=pretrained_cfg, **arguments)
    return module
