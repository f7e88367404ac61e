"""The weight formats that a suspect may have, besides safetensors and PyTorch files."""

from hf_fingerprint.checkpoints.formats import (
    coreml_files,
    deepspeed_checkpoints,
    distributed_checkpoints,
    exported_programs,
    flax_files,
    gguf_files,
    keras_files,
    mobile_files,
    numpy_files,
    onnx_files,
    openvino_files,
    ort_files,
    tensorflow_graphs,
    tflite_files,
)
from hf_fingerprint.checkpoints.formats.containers import Format


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
