"""A model as TFLite files of TensorFlow's converter, by way of ONNX: float, half precision, integers, and sparse.

    pip install -r examples/forms/tflite_from_onnx.txt
    python examples/forms/tflite_from_onnx.py MODEL.onnx OUT_FOLDER

`onnx_files.py` makes the ONNX file.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper


CALIBRATION = "calibration_image_sample_data_20x128x128x3_float32.npy"  # which onnx2tf downloads if it isn't there
PRUNED = 0.8  # of the weights of a matrix or convolution, the smallest


def convert(model: Path, out: Path, *options: str) -> Path:
    """The folder with a SavedModel and TFLite files that onnx2tf makes of an ONNX file."""
    np.save(out / CALIBRATION, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
    command = [sys.executable, "-m", "onnx2tf", "-i", str(model), "-o", "saved", "-nuo", *options]
    subprocess.run(command, cwd=out, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
    return out / "saved"


def prune(source: Path, target: Path) -> Path:
    """The model with its smallest weights set to zero."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim > 1 and values.dtype == np.float32:
            values[np.abs(values) < np.quantile(np.abs(values), PRUNED)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, target)
    return target


def main(model: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        saved = convert(model.resolve(), work, "-odrqt", "-oiqt")
        for path in saved.glob("*.tflite"):
            (out / path.name.replace(f"{model.stem}_", "onnx2tf_")).write_bytes(path.read_bytes())
        saved = convert(prune(model, work / "pruned.onnx"), work)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        (out / "sparse.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
