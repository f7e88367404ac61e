"""Models that run, and inputs to run them on."""

from hf_fingerprint.models.building import BuiltModel, build_model, names_in_file
from hf_fingerprint.models.inputs import image_files, synthetic_images, user_images


__all__ = ["BuiltModel", "build_model", "image_files", "names_in_file", "synthetic_images", "user_images"]
