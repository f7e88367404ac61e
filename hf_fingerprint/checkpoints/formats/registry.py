"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import flax_files, gguf_files, numpy_files, tensorflow_graphs
from hf_fingerprint.checkpoints.formats.containers import Format
from hf_fingerprint.checkpoints.formats.coreml import coreml_files
from hf_fingerprint.checkpoints.formats.keras import keras_files
from hf_fingerprint.checkpoints.formats.onnx import onnx_files, ort_files
from hf_fingerprint.checkpoints.formats.openvino import openvino_files
from hf_fingerprint.checkpoints.formats.pytorch import (
    deepspeed_checkpoints,
    distributed_checkpoints,
    exported_programs,
    mobile_files,
)
from hf_fingerprint.checkpoints.formats.tflite import tflite_files


FORMATS: tuple[Format, ...] = (
    coreml_files.FORMAT,
    deepspeed_checkpoints.FORMAT,
    distributed_checkpoints.FORMAT,
    exported_programs.FORMAT,
    flax_files.FORMAT,
    gguf_files.FORMAT,
    keras_files.FORMAT,
    mobile_files.FORMAT,
    numpy_files.FORMAT,
    onnx_files.FORMAT,
    openvino_files.FORMAT,
    ort_files.FORMAT,
    tensorflow_graphs.FORMAT,
    tflite_files.FORMAT,
)
