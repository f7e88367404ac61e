"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import flax_files, keras_files, numpy_files
from hf_fingerprint.checkpoints.formats.containers import Format


FORMATS: tuple[Format, ...] = (flax_files.FORMAT, keras_files.FORMAT, numpy_files.FORMAT)
