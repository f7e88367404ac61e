"""A timm model as OpenVINO IR: in both float precisions, with compressed weights, and quantized after training.

pip install -r examples/forms/openvino_ir.txt
python examples/forms/openvino_ir.py MODEL_FOLDER OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino
import timm
import torch
from nncf import CompressWeightsMode as Mode
from safetensors.torch import load_file


CALIBRATION = 8  # random images
INT4 = {"ratio": 1.0, "all_layers": True}


def load_model(folder: Path) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """The model of a timm folder, and the shape of an image."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **{**config["model_args"], "num_classes": config["num_classes"]})
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), tuple(config["pretrained_cfg"]["input_size"])


def main(folder: Path, out: Path) -> None:
    model, image = load_model(folder)
    images = np.random.default_rng(0).standard_normal((CALIBRATION, 1, *image), np.float32)
    group = 64 if image[-1] > 32 else 16  # the tiny models have rows of 48
    out.mkdir(parents=True, exist_ok=True)

    def converted() -> openvino.Model:
        return openvino.convert_model(model, example_input=torch.from_numpy(images[0]), input=[1, *image])

    openvino.save_model(converted(), out / "openvino_fp32.xml", compress_to_fp16=False)
    openvino.save_model(converted(), out / "openvino_fp16.xml")
    ways = {
        "int8_sym": {"mode": Mode.INT8_SYM},
        "int8_asym": {"mode": Mode.INT8_ASYM},
        "int4_sym": {"mode": Mode.INT4_SYM, "group_size": -1, **INT4},
        "int4_asym_groups": {"mode": Mode.INT4_ASYM, "group_size": group, **INT4},
        "nf4": {"mode": Mode.NF4, "group_size": group, **INT4},
        "cb4": {"mode": Mode.CB4, "group_size": group, **INT4},
    }
    for name, options in ways.items():
        openvino.save_model(nncf.compress_weights(converted(), **options), out / f"openvino_{name}.xml")
    quantized = nncf.quantize(converted(), nncf.Dataset(list(images)), subset_size=CALIBRATION)
    openvino.save_model(quantized, out / "openvino_ptq_int8.xml")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
