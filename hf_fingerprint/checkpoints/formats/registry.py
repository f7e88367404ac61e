"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import tflite_files
from hf_fingerprint.checkpoints.formats.containers import Format


FORMATS: tuple[Format, ...] = (tflite_files.FORMAT,)
