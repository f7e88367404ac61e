"""Build models safely, and make inputs for them."""

from hf_fingerprint.models.building import build_model
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.devices import device_of, float64_device, for_convolutions, run_model, to_device
from hf_fingerprint.models.folding import fold_batch_norms
from hf_fingerprint.models.images import open_image
from hf_fingerprint.models.inputs import (
    LazyImages,
    fit_batch_size,
    image_files,
    lazy_synthetic_images,
    prepare_image,
    split_user_images,
    synthetic_images,
    user_images,
)
from hf_fingerprint.models.weights import map_parameter_names


__all__ = [
    "BuiltModel",
    "LazyImages",
    "build_model",
    "device_of",
    "fit_batch_size",
    "float64_device",
    "fold_batch_norms",
    "for_convolutions",
    "image_files",
    "lazy_synthetic_images",
    "map_parameter_names",
    "open_image",
    "prepare_image",
    "run_model",
    "split_user_images",
    "synthetic_images",
    "to_device",
    "user_images",
]
