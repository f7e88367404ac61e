"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import gguf_files, openvino_files
from hf_fingerprint.checkpoints.formats.containers import Format


FORMATS: tuple[Format, ...] = (gguf_files.FORMAT, openvino_files.FORMAT)
