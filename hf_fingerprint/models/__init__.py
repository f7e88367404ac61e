"""Models that run, and inputs to run them on."""

from hf_fingerprint.models.building import build_model
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.inputs import image_files, synthetic_images, user_images
from hf_fingerprint.models.weights import names_in_file


__all__ = ["BuiltModel", "build_model", "image_files", "names_in_file", "synthetic_images", "user_images"]
