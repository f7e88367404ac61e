"""A convolutional model as a frozen TensorFlow graph, from the ONNX file that `onnx_files.py` wrote.

    pip install -r examples/forms/tensorflow_graphs.txt
    python examples/forms/tensorflow_graphs.py OUT_FOLDER/legacy.onnx OUT_FOLDER

The converter has no way for the attention of a vision transformer.
"""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx2tf


SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"  # images that onnx2tf would download


def main(model: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as made:
        os.chdir(made)
        np.save(SAMPLES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
        onnx2tf.convert(str(model), output_folder_path="made", output_tfv1_pb=True, non_verbose=True)
        shutil.copyfile(f"made/{model.stem}_float32.pb", out / "frozen_graph.pb")
        os.chdir(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
