"""A GGUF file with random blocks of each type of ggml, and each tensor again as the gguf package dequantizes it.

pip install -r examples/forms/gguf_files.txt
python examples/forms/ggml_types.py OUT_FILE
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize


KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
ROWS, BLOCKS = 3, 2


def main(out: Path) -> None:
    rng = np.random.default_rng(0)
    writer = GGUFWriter(out, "types")
    writer.add_array("a list of texts", ["one", "two"])
    writer.add_array("a list of lists", [[1, 2], [3]])
    for name in KINDS:
        kind = Kind[name]
        drawn = rng.integers(0, 256, (999, GGML_QUANT_SIZES[kind][1]), np.uint8)
        values = dequantize(drawn, kind)
        ordinary = np.isfinite(values).all(axis=1) & (np.abs(values) < 1e3).all(axis=1)
        chosen = drawn[ordinary][: ROWS * BLOCKS].reshape(ROWS, -1)
        writer.add_tensor(name, chosen, raw_dtype=kind)
        writer.add_tensor(f"{name} as float32", dequantize(chosen, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
