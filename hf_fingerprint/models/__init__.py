"""Models that run, and inputs to run them on."""

from hf_fingerprint.models.building import BuiltModel, build_model, names_in_file
from hf_fingerprint.models.inputs import (
    Images,
    image_files,
    images_at_once,
    many_synthetic_images,
    synthetic_images,
    user_images,
    user_images_apart,
)


__all__ = [
    "BuiltModel",
    "Images",
    "build_model",
    "image_files",
    "images_at_once",
    "many_synthetic_images",
    "names_in_file",
    "synthetic_images",
    "user_images",
    "user_images_apart",
]
