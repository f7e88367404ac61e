"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import openvino_files
from hf_fingerprint.checkpoints.formats.containers import Format


FORMATS: tuple[Format, ...] = (openvino_files.FORMAT,)
