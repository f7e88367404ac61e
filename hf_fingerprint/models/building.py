"""A model that runs, from a folder, with timm or transformers; never with code that came with the model."""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints import Checkpoint, Source
from hf_fingerprint.checkpoints.dtypes import READABLE, to_float32
from hf_fingerprint.checkpoints.names import normalise
from hf_fingerprint.errors import BuildError


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BuiltModel:
    """A classifier ready to run.

    Attributes:
        module (`torch.nn.Module`): in evaluation mode, `float32`.
        size (`tuple[int, int, int]`): channels, height and width of its input.
        mean, std (`tuple[float, ...]`): of its preprocessing, one for each channel.
        preprocess (callable): from a PIL image to a tensor of that size.
        output (`str` or `None`): the kind of its output, one of `"single_label"`, `"multi_label"`, `"dense"` and
            `"features"`, where its configuration says so.
    """

    module: "torch.nn.Module"
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Callable[[Any], "torch.Tensor"]
    output: str | None = None


def build_model(checkpoint: Checkpoint) -> BuiltModel:
    """Builds the model of a folder.

    Args:
        checkpoint ([`Checkpoint`]): its open weights.

    Raises:
        [`BuildError`]: if that needs a library, a config or code that isn't here.
    """
    source = checkpoint.source
    config_file = source.folder / "config.json"
    if not source.whole_folder or not config_file.is_file():
        raise BuildError(f"{source.name} has no config.json, so it can't be run: give the model's whole folder.")
    try:
        config = json.loads(config_file.read_text())
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            builder = _with_timm if "architecture" in config and "pretrained_cfg" in config else _with_transformers
            return builder(source, config)
    except Exception as error:
        reason = type(error).__name__
        raise BuildError(f"{source.name} can't be built ({reason}): give the model's whole folder.") from error


def names_in_file(module: "torch.nn.Module", checkpoint: Checkpoint) -> dict[str, str]:
    """From the model's parameter names to the file's: same name but for wrappers' prefixes, and same shape; else,
    since loaders rename (transformers 5 does), same shape and same values."""
    parameters = dict(module.named_parameters())
    by_name = {(normalise(name), info.shape): name for name, info in checkpoint.tensors.items()}
    found = {}
    for name, parameter in parameters.items():
        match = by_name.get((normalise(name), tuple(parameter.shape)))
        if match is not None:
            found[name] = match
    renamed = [name for name in parameters if name not in found]
    left = set(checkpoint.tensors) - set(found.values())
    shapes = {tuple(parameters[name].shape) for name in renamed}
    by_value = {}
    for name in left:
        info = checkpoint.tensors[name]
        if info.shape in shapes and info.dtype in READABLE:
            values = to_float32(checkpoint.read(info), info.dtype)
            by_value[info.shape, hashlib.sha256(values).digest()] = name
    for name in renamed:
        values = parameters[name].detach().float().contiguous().numpy()
        match = by_value.get((values.shape, hashlib.sha256(values).digest()))
        if match is not None:
            found[name] = match
    return found


def _with_timm(source: Source, config: dict[str, Any]) -> BuiltModel:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    weights = source.weights[0]
    module = timm.create_model(
        config["architecture"],
        pretrained=True,
        pretrained_cfg=dict(config["pretrained_cfg"], file=str(weights), source="file"),
        num_classes=config.get("num_classes", config["pretrained_cfg"].get("num_classes", 1000)),
        **{k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"},
    )
    data = resolve_model_data_config(module)
    return BuiltModel(
        module.float().eval(),
        data["input_size"],
        data["mean"],
        data["std"],
        create_transform(**data, is_training=False),
    )


def _with_transformers(source: Source, config: dict[str, Any]) -> BuiltModel:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = str(source.folder)
    module = AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    )
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        processor = None
    channels = getattr(module.config, "num_channels", 3)
    mean = tuple(getattr(processor, "image_mean", None) or (0.5,) * channels)
    std = tuple(getattr(processor, "image_std", None) or (0.5,) * channels)
    size = (channels, *_image_size(processor, module.config))

    def preprocess(image: Any) -> "torch.Tensor":
        image = image.convert("L" if channels == 1 else "RGB")
        if processor is not None:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
        from torchvision.transforms.functional import normalize, pil_to_tensor

        scaled = pil_to_tensor(image.resize((size[2], size[1]))).float() / 255
        return normalize(scaled, list(mean), list(std))

    return BuiltModel(module.eval(), size, mean, std, preprocess)


def _image_size(processor: Any, config: Any) -> tuple[int, int]:
    for given in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        if given is not None and "height" in given:
            return given["height"], given["width"]
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])
