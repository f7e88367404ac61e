"""A timm model as TFLite (LiteRT) files: float, half precision, and quantized in each public way.

pip install -r examples/forms/tflite_files.txt
python examples/forms/tflite_files.py MODEL_FOLDER OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import litert_torch
import numpy as np
import timm
import torch
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.recipe_manager import RecipeManager
from safetensors.torch import load_file


CALIBRATION = 8  # random images
EVERY = {"regex": ".*", "operation_name": TFLOperationName.ALL_SUPPORTED}
BLOCKS = {"regex": ".*fc2.*", "operation_name": TFLOperationName.FULLY_CONNECTED}  # rows of a multiple of 32


def load_model(folder: Path) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """The model of a timm folder, and the shape of an image."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **{**config["model_args"], "num_classes": config["num_classes"]})
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), tuple(config["pretrained_cfg"]["input_size"])


def recipes() -> dict[str, RecipeManager]:
    """The ways to quantize, by the name of the file."""
    found = {name: RecipeManager() for name in ("fp16", "int8_dynamic", "int8", "int8_int16", "int4", "int4_blocks")}
    found["fp16"].add_weight_only_config(**EVERY, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    found["int8_dynamic"].add_dynamic_config(**EVERY, num_bits=8)
    found["int8"].add_static_config(**EVERY, activation_num_bits=8, weight_num_bits=8)
    found["int8_int16"].add_static_config(**EVERY, activation_num_bits=16, weight_num_bits=8)
    found["int4"].add_weight_only_config(**EVERY, num_bits=4)
    found["int4_blocks"].add_dynamic_config(**EVERY, num_bits=8)
    found["int4_blocks"].add_dynamic_config(**BLOCKS, num_bits=4, granularity=QuantGranularity.BLOCKWISE_32)
    return found


def main(folder: Path, out: Path) -> None:
    model, shape = load_model(folder)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "float32.tflite"
    litert_torch.convert(model, (torch.zeros(1, *shape),)).export(str(path))
    generator = np.random.default_rng(0)
    images = [{"args_0": generator.normal(size=(1, *shape)).astype(np.float32)} for _ in range(CALIBRATION)]
    for name, recipe in recipes().items():
        try:
            work = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
            ranges = work.calibrate({"serving_default": images}) if work.need_calibration else None
            work.quantize(ranges).export_model(str(out / f"{name}.tflite"), overwrite=True)
        except (ValueError, RuntimeError) as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
