"""ONNX files as onnxruntime's own format (`.ort`), by onnxruntime's tool.

    pip install -r examples/forms/ort_files.txt
    python examples/forms/ort_files.py ONNX_FOLDER OUT_FOLDER

`onnx_files.py` makes the ONNX files. On x86, convolutions are stored in blocks of channels (NCHWc).
"""

import subprocess
import sys
from pathlib import Path


TOOL = "onnxruntime.tools.convert_onnx_models_to_ort"


def main(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    styles = ["--optimization_style", "Fixed", "Runtime", "--target_platform", "amd64", "--allow_conversion_failures"]
    subprocess.run([sys.executable, "-m", TOOL, str(folder), "--output_dir", str(out), *styles], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
