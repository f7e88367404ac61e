"""Preprocessing of a transformers model: an image processor class of the library, with plain settings.

`AutoImageProcessor` follows references to other repos, code and other libraries' processors, so it is not used. The
class is one that transformers maps to its own models, and the settings are selected by name.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.checkpoints.limits import MAX_SIDE
from hf_fingerprint.errors import BuildError, FingerprintWarning
from hf_fingerprint.models.configuration import plain_entries, read_json, short_repr


if TYPE_CHECKING:
    import torch


DEFAULT_SIDE = 224
_SIZES = ("size", "crop_size", "pad_size")
_SWITCHES = ("do_convert_rgb", "do_resize", "default_to_square", "do_rescale", "do_normalize", "do_pad")
_RARE_SWITCHES = (
    "do_center_crop", "do_flip_channel_order", "include_top", "do_thumbnail", "do_align_long_axis", "rescale_offset"
)  # fmt: skip
_VALUES = ("resample", "rescale_factor", "image_mean", "image_std", "crop_pct", "size_divisor", "resize_short")
_SETTINGS = (*_SWITCHES, *_RARE_SWITCHES, *_VALUES)
_EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
_NOT_PLAIN = frozenset(["timm_wrapper", "imagegpt"])  # their processors follow references or return no pixels
_CLASS_SUFFIX = re.compile(r"(Fast|Pil)$")


def read_processor(folder: Path, model_type: str) -> Any | None:
    """The image processor that a folder describes, or `None` if there is none or transformers lacks its class.

    A missing class also raises a warning.

    Args:
        folder (`Path`): the model's folder.
        model_type (`str`): model type in its configuration, used if the processor's file names no class.

    Raises:
        [`BuildError`]: if the processor's file is damaged or has invalid settings.
    """
    file, description = _read_description(folder)
    if not description:
        return None
    name = description.get("image_processor_type") or description.get("feature_extractor_type")
    if (processor_class := _processor_class(name, model_type)) is None:
        warnings.warn(
            f"{file} names an image processor that transformers doesn't have: images are resized to the model's input "
            f"size and normalized with mean and standard deviation 0.5.",
            FingerprintWarning,
            stacklevel=2,
        )
        return None
    settings = plain_entries(description, _SETTINGS, str(file))
    described = [name for name in _SIZES if description.get(name) is not None]
    sizes = {name: _check_sizes(description[name], name, file) for name in described}
    for name in ("crop_pct", "rescale_factor"):
        if not isinstance(settings.get(name, 1.0), int | float) or not 0 <= settings.get(name, 1.0) <= 4:
            raise BuildError(f"{file} gives {name} as {short_repr(settings[name])}: it must be a number from 0 to 4.")
    for name in ("size_divisor", "resize_short"):
        _check_side(settings.get(name, 1), name, file)
    try:
        return processor_class(**settings, **sizes)
    except Exception as error:  # processors raise anything
        problem = f"does not describe a valid image processor ({type(error).__name__})"
        raise BuildError(f"{file} {problem}: fix or remove it.") from error


def make_preprocess(
    processor: Any | None, size: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> "Callable[[Any], torch.Tensor]":
    """A function from a PIL image to a model's input: its processor, or resize and normalize if it has none."""
    channels, height, width = size

    def preprocess(image: Any) -> "torch.Tensor":
        image = image.convert("L" if channels == 1 else "RGB")
        if processor is not None:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
        from torchvision.transforms.functional import normalize, pil_to_tensor

        return normalize(pil_to_tensor(image.resize((width, height))).float() / 255, list(mean), list(std))

    return preprocess


def image_size(processor: Any | None, config: Any, where: str) -> tuple[int, int]:
    """Height and width of a model's input: from its processor, else its configuration, else 224 with a warning.

    Args:
        processor (*optional*): result of [`read_processor`].
        config (`transformers.PreTrainedConfig`): the model's configuration; nested ones count too.
        where (`str`): file of the configuration, for the warning.
    """
    for size_setting in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        if size_setting is not None and "height" in size_setting:
            return size_setting["height"], size_setting["width"]
    for each in nested_configs(config):
        size = getattr(each, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return size[0], size[1]
    shortest = (getattr(processor, "size", None) or {}).get("shortest_edge")
    if shortest is None:
        message = f"{where} has no input size: the model is run at {DEFAULT_SIDE} pixels."
        warnings.warn(message, FingerprintWarning, stacklevel=2)
    return (shortest or DEFAULT_SIDE,) * 2


def nested_configs(config: Any) -> list[Any]:
    """A transformers configuration, and those of its vision model and its backbone, `None` where it has none."""
    return [config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)]


def _read_description(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that describes the image processor, and its description, empty if there is none."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return file, read_json(file)
    file = folder / "processor_config.json"
    inner = read_json(file).get("image_processor") if file.is_file() else None
    return file, inner if isinstance(inner, dict) else {}


def _processor_class(name: object, model_type: str) -> Any | None:
    """The processor class in transformers for a class name or a model type, or `None`."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    known = {
        kind: _class_names(entry) for kind, entry in IMAGE_PROCESSOR_MAPPING_NAMES.items() if kind not in _NOT_PLAIN
    }
    if isinstance(name, str):
        plain = _CLASS_SUFFIX.sub("", name).replace("FeatureExtractor", "ImageProcessor")
        chosen = plain if any(plain in names for names in known.values()) else None
    else:
        chosen = next(iter(known.get(model_type, ())), None)
    found = None if chosen is None else getattr(transformers, chosen, None)
    return found if getattr(found, "__module__", "").startswith("transformers.models.") else None


def _class_names(entry: Any) -> list[str]:
    """The class names in an entry of transformers' mapping, whose structure differs between versions."""
    found = [entry] if isinstance(entry, str) else entry.values() if isinstance(entry, Mapping) else entry
    return sorted({_CLASS_SUFFIX.sub("", name) for name in found if isinstance(name, str)})


def _check_sizes(value: object, name: str, file: Path) -> int | dict[str, int]:
    if isinstance(value, dict):
        return {edge: _check_side(value[edge], name, file) for edge in _EDGES if value.get(edge) is not None}
    if isinstance(value, list) and len(value) == 2:
        return {"height": _check_side(value[0], name, file), "width": _check_side(value[1], name, file)}
    return _check_side(value, name, file)


def _check_side(value: object, name: str, file: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIDE:
        raise BuildError(f"{file} gives {name} as {short_repr(value)}: it must be 1 to {MAX_SIDE:,} pixels.")
    return value
