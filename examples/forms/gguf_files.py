"""A timm model as GGUF files, as the converters for stable-diffusion.cpp and vit.cpp write them.

    pip install -r examples/forms/gguf_files.txt
    python examples/forms/gguf_files.py MODEL_FOLDER OUT_FOLDER

Matrices of whole blocks are quantized; all else has half precision, and vectors are `float32`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file


KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0)
BLOCK = 32


def kind_of(values: np.ndarray, kind: Kind) -> Kind:
    """How a tensor is stored in a file of a kind."""
    if values.ndim < 2:
        return Kind.F32
    if kind in (Kind.F32, Kind.F16, Kind.BF16) or (values.ndim == 2 and values.shape[-1] % BLOCK == 0):
        return kind
    return Kind.F16


def main(folder: Path, out: Path) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    weights = load_file(folder / "model.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        writer = GGUFWriter(out / f"{kind.name.lower()}.gguf", architecture)
        for name, values in weights.items():
            if values.dtype == np.float32:
                own = kind_of(values, kind)
                writer.add_tensor(name, quantize(values, own), raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
