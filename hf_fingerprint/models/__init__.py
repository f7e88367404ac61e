"""Models that run, and inputs to run them on."""

from hf_fingerprint.models.building import build_model
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.inputs import (
    Images,
    image_files,
    images_at_once,
    many_synthetic_images,
    prepare,
    synthetic_images,
    user_images,
    user_images_apart,
)
from hf_fingerprint.models.pictures import open_picture
from hf_fingerprint.models.weights import names_in_file


__all__ = [
    "BuiltModel",
    "Images",
    "build_model",
    "image_files",
    "images_at_once",
    "many_synthetic_images",
    "names_in_file",
    "open_picture",
    "prepare",
    "synthetic_images",
    "user_images",
    "user_images_apart",
]
