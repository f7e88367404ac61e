"""Build transformers models from untrusted configurations.

`AutoModel...from_pretrained` follows references to repos, files, kernels and code in a configuration, so it is never
called with a folder. The configuration is rebuilt from the entries that its class declares, the model class is one
that transformers maps to it, and the weights are passed as a state dict.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import BuildError
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.configuration import check_count, check_size, plain_entries, printable_value
from hf_fingerprint.models.processors import image_size, make_preprocess, nested_configs, read_processor
from hf_fingerprint.models.weights import bounded_construction, check_weights_loaded, read_state_dict


if TYPE_CHECKING:
    import torch


_LABELS = frozenset(["id2label", "label2id", "num_labels"])
_EXTERNAL_MODEL_KEYS = frozenset(["backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs"])
_IGNORED_KEYS = _LABELS | _EXTERNAL_MODEL_KEYS | {
    "architectures", "transformers_version", "dtype", "torch_dtype", "per_layer_config", "quantization_config",
    "output_hidden_states", "output_attentions", "return_dict", "is_encoder_decoder", "name_or_path",
}  # fmt: skip
_OTHER_LIBRARIES = frozenset(["timm_wrapper", "timm_backbone"])
_PREFIXES = ("module.", "_orig_mod.")
_PROBLEM_TYPES = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def build_transformers(checkpoint: Checkpoint, config: Mapping[str, Any], where: str) -> BuiltModel:
    """A transformers model with the checkpoint's weights.

    Args:
        checkpoint ([`Checkpoint`]): the open weights.
        config (mapping): the model's configuration.
        where (`str`): file of the configuration, for errors.

    Raises:
        [`BuildError`]: if transformers has no such model, the model needs files outside its folder, or the weights
            don't match.
    """
    model_config = _make_config(config, where)
    model_type = str(config["model_type"])
    model_class, output = _model_class(config.get("architectures"), model_type, where)
    module = _load_module(model_class, model_config, checkpoint)
    processor = read_processor(checkpoint.source.folder, model_type)
    return _describe(module.eval(), model_config, processor, output, config.get("problem_type"), where)


def describe_transformers(module: Any, where: str) -> BuiltModel:
    """A transformers module with the input and the kind of output that its configuration says."""
    config = module.config
    output = _output_of_class(type(module).__name__, getattr(config, "model_type", ""))
    return _describe(module, config, None, output or None, getattr(config, "problem_type", None), where)


def _describe(
    module: "torch.nn.Module", model_config: Any, processor: Any, output: str | None, problem_type: Any, where: str
) -> BuiltModel:
    declared = (getattr(part, "num_channels", None) for part in nested_configs(model_config))
    channels = next((count for count in declared if isinstance(count, int)), 3)
    size = check_size((channels, *image_size(processor, model_config, where)), where)
    mean = _per_channel(getattr(processor, "image_mean", None), channels)
    std = _per_channel(getattr(processor, "image_std", None), channels)
    if output is None:
        problem = "multi_label_classification" if getattr(model_config, "num_labels", 0) == 1 else ""
        output = _PROBLEM_TYPES.get(problem_type or problem)
    return BuiltModel(module, size, mean, std, make_preprocess(processor, size, mean, std), output)


def _make_config(config: Mapping[str, Any], where: str) -> Any:
    """A transformers configuration, made of the entries that its class declares."""
    from transformers import CONFIG_MAPPING

    name = config.get("model_type")
    if not isinstance(name, str) or name not in CONFIG_MAPPING or name in _OTHER_LIBRARIES:
        raise BuildError(
            f"{where} has model_type {printable_value(name)}, which transformers doesn't have: upgrade it, or check "
            f"that this is an image classifier."
        )
    config_class = CONFIG_MAPPING[name]
    if not config_class.__module__.startswith("transformers.models."):
        kind = f"model_type {printable_value(name)}"
        raise BuildError(f"{where} has {kind}, which is not part of transformers: don't use this model.")
    return _instantiate_config(config_class, config, where)


def _instantiate_config(config_class: Any, config: Mapping[str, Any], where: str) -> Any:
    named = [name for name in _EXTERNAL_MODEL_KEYS if config.get(name)]
    if named:
        problem = f"{where} has {named[0]}, which refers to another model"
        raise BuildError(f"{problem}: save the model with all of its weights.")
    known = _declared_fields(config_class) - _IGNORED_KEYS
    nested = {name: value for name, value in config.items() if name in known and isinstance(value, dict)}
    entries = plain_entries({n: v for n, v in config.items() if n not in nested}, known, where)
    for name, value in nested.items():
        inner = config_class.sub_configs.get(name)
        if name == "backbone_config" and not _is_configuration(inner):
            entries[name] = _make_config(value, where)
        elif _is_configuration(inner):
            entries[name] = _instantiate_config(inner, value, where)
    return config_class(**entries, **_num_labels(config, where))


def _is_configuration(value: Any) -> bool:
    from transformers import PreTrainedConfig

    return inspect.isclass(value) and issubclass(value, PreTrainedConfig) and value is not PreTrainedConfig


def _declared_fields(config_class: Any) -> frozenset[str]:
    """The names of a configuration class's entries, including older names."""
    if dataclasses.is_dataclass(config_class):
        names = {field.name for field in dataclasses.fields(config_class)}
    else:
        names = set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"}
    return frozenset(names | set(config_class.attribute_map))


def _num_labels(config: Mapping[str, Any], where: str) -> dict[str, int]:
    """The number of classes as a keyword argument, if the configuration has it."""
    labels = config.get("id2label")
    if isinstance(labels, dict):
        return {"num_labels": check_count(len(labels), "id2label", where)}
    if config.get("num_labels") is not None:
        return {"num_labels": check_count(config["num_labels"], "num_labels", where)}
    return {}


def _model_class(names: object, model_type: str, where: str) -> tuple[Any, str | None]:
    """The model class that a configuration names, and the kind of its output, `None` for a classifier.

    It must take images, and transformers must map it to that configuration.
    """
    import transformers

    classifiers = _classes_by_output(model_type)[None]
    named = names[0] if isinstance(names, list) and names else next(iter(classifiers), None)
    output = _output_of_class(named, model_type)
    model_class = getattr(transformers, named, None) if isinstance(named, str) and output != "" else None
    if model_class is None or getattr(model_class, "main_input_name", "") not in ("pixel_values", "inputs"):
        raise BuildError(
            f"{where} names {printable_value(named)}, which is not a transformers image classifier, segmenter or "
            f"backbone that takes pixels: use one of these."
        )
    return model_class, output


def _output_of_class(name: object, model_type: str) -> str | None:
    """The kind of output of a class, `None` for a classifier; empty if transformers doesn't map it to that type."""
    return next((kind for kind, classes in _classes_by_output(model_type).items() if name in classes), "")


def _classes_by_output(model_type: str) -> dict[str | None, tuple[str, ...]]:
    from transformers.models.auto import modeling_auto as auto

    return {
        None: _mapped_classes(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, model_type),
        "dense": _mapped_classes(auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, model_type),
        "features": _mapped_classes(auto.MODEL_MAPPING_NAMES, model_type),
    }


def _mapped_classes(names: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    found = names.get(model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


def _load_module(model_class: Any, model_config: Any, checkpoint: Checkpoint) -> "torch.nn.Module":
    """The model with the checkpoint's weights, which transformers may rename."""
    import torch

    state = {_strip_prefixes(name): values for name, values in read_state_dict(checkpoint).items()}
    arguments: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        arguments["add_pooling_layer"] = any(".pooler." in f".{name}" for name in state)
    with bounded_construction(checkpoint):
        arguments |= {"config": model_config, "state_dict": dict(state), "dtype": torch.float32}
        module = model_class.from_pretrained(None, **arguments)
    check_weights_loaded(module, state, checkpoint)
    return module


def _strip_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """A mean or standard deviation for each channel; 0.5 if the processor has none."""
    if isinstance(values, int | float):
        return (float(values),) * channels
    return tuple(values) if values is not None and len(values) == channels else (0.5,) * channels
